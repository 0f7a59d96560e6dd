"""Keep of executed notebooks what a reader sees: text on standard output, without times, counts or warnings.

pytest --nbmake --overwrite examples/notebooks && python scripts/clean_notebooks.py
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).resolve().parent.parent / "examples" / "notebooks"


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with its cells as they are written to disk."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] != "code":
            continue
        cell["execution_count"] = None
        printed = [one for one in cell["outputs"] if one.get("name") == "stdout"]
        cell["outputs"] = [
            {
                "name": "stdout",
                "output_type": "stream",
                "text": [line for one in group for line in one["text"]],
            }
            for _, group in groupby(printed, key=lambda one: one["name"])
        ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook | {"metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        path.write_text(json.dumps(cleaned(json.loads(path.read_text())), indent=1) + "\n")

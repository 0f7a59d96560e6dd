"""How long `querykey --help` takes beside an interpreter that does nothing."""

import statistics
import subprocess
import sys
from pathlib import Path

from timing import Row, in_turns, median_ratio

REPEATS, MOST = 9, 10.0


def run(*words: str) -> None:
    """Run a command and refuse its failure."""
    subprocess.run(words, check=True, capture_output=True)


def imports_torch() -> bool:
    """Whether torch is among the modules that `querykey --help` has loaded when it ends."""
    code = (
        "import sys; from querykey.cli.main import main; sys.argv = ['querykey', '--help']\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] == "True"


def measure() -> list[Row]:
    """Seconds of `querykey --help` by those of `python -c pass`."""
    command = str(Path(sys.executable).with_name("querykey"))
    seconds = in_turns(
        {"help": lambda: run(command, "--help"), "pass": lambda: run(sys.executable, "-c", "pass")}, REPEATS
    )
    ratio, has_torch = median_ratio(seconds["help"], seconds["pass"]), imports_torch()
    figures = {f"{name}_ms": round(1000 * statistics.median(taken), 1) for name, taken in seconds.items()}
    figures["torch_is_imported"] = has_torch
    return [
        Row(
            "querykey --help by python -c pass",
            ratio,
            f"at most {MOST:g}, without torch",
            ratio <= MOST and not has_torch,
            figures,
        )
    ]


if __name__ == "__main__":
    for row in measure():
        print(row)

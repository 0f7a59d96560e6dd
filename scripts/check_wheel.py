"""Install the built wheel into empty environments and use it there.

    core    size of the environment, the commands that need no torch, the message for one that does
    train   the Python examples of README.md, in order

Usage: python scripts/check_wheel.py DIST
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_MB = 150
CORE = """
import sys
import numpy as np
from querykey.runtime import load
z = load(sys.argv[1]).transform(np.eye(6))
assert z.shape == (6, 3), z.shape
assert not {"torch", "sklearn"} & set(sys.modules)
"""


def environment(folder: Path, requirement: str) -> Path:
    """Install one requirement into an empty environment, and return its bin folder."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement)
    return folder / "bin"


def run(*words: object, code: int = 0, cwd: Path | None = None) -> str:
    """Run a command isolated from this checkout; exit with a message on another exit code."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, cwd=cwd, env=clean
    )
    if done.returncode != code:
        sys.exit(f"{words} ended with {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


def megabytes(folder: Path) -> float:
    """The size of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if not path.is_symlink()) / 1e6


def check_core(wheel: Path, folder: Path) -> None:
    """Check the size, the commands and the messages of the core install."""
    home = environment(folder / "core", str(wheel))
    size = megabytes(folder / "core")
    print(f"core: {size:.0f} MB with pip; at most {MOST_MB}")
    if size >= MOST_MB:
        sys.exit("the core is too large")
    adapter = ROOT / "tests" / "fixtures" / "adapter-0.1"
    run(home / "python", "-c", CORE, adapter, cwd=folder)
    run(home / "python", "-c", "import numpy; numpy.save('X.npy', numpy.eye(6))", cwd=folder)
    for words in (
        ["--help"],
        ["--version"],
        ["help", "sources"],
        ["transform", adapter, "X.npy", "--out", "Z.npy"],
    ):
        print(run(home / "querykey", *words, cwd=folder).splitlines()[0])
    print(run(home / "querykey", "adapt", "X.npy", "--out", "run", code=2, cwd=folder).strip())


def check_readme(wheel: Path, folder: Path) -> None:
    """Run the Python blocks of the README in order, in one process."""
    home = environment(folder / "train", f"{wheel}[train]")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    run(home / "python", "-c", "\n".join(blocks), cwd=folder)
    size = megabytes(folder / "train")
    print(f"train: {len(blocks)} blocks of the README run; {size:.0f} MB with pip")


def main(dist: Path) -> None:
    """Check the wheel in a folder."""
    (wheel,) = dist.resolve().glob("*.whl")
    folder = Path(tempfile.mkdtemp(prefix="wheel-"))
    try:
        check_core(wheel, folder)
        check_readme(wheel, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

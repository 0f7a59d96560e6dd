"""How long `querykey --help` takes beside an interpreter that does nothing, and `doctor` beside torch."""

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

from timing import Row, in_turns, median_ratio

REPEATS, MOST, MOST_DOCTOR = 9, 6.0, 1.3


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
    """Seconds of `querykey --help` and of `querykey doctor` by those of the least that each needs."""
    command, python = str(Path(sys.executable).with_name("querykey")), sys.executable
    commands = {
        "help": (command, "--help"),
        "pass": (python, "-c", "pass"),
        "doctor": (command, "doctor"),
        "torch": (python, "-c", "import torch"),
    }
    seconds = in_turns({name: partial(run, *words) for name, words in commands.items()}, REPEATS)
    milliseconds = {
        f"{name}_ms": round(1000 * statistics.median(taken), 1) for name, taken in seconds.items()
    }
    shown, checked = (
        median_ratio(seconds["help"], seconds["pass"]),
        median_ratio(seconds["doctor"], seconds["torch"]),
    )
    has_torch = imports_torch()
    return [
        Row(
            "querykey --help by python -c pass",
            shown,
            f"at most {MOST:g}, without torch",
            shown <= MOST and not has_torch,
            {**milliseconds, "torch_is_imported": has_torch},
        ),
        Row(
            "querykey doctor by python -c 'import torch'",
            checked,
            f"at most {MOST_DOCTOR:g}",
            checked <= MOST_DOCTOR,
            milliseconds,
        ),
    ]


if __name__ == "__main__":
    for row in measure():
        print(row)

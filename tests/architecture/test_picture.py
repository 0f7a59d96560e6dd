"""The picture of the packages is drawn from today's imports."""

import subprocess
import sys

from architecture.source import ROOT


def test_the_picture_is_that_of_todays_imports():
    script = ROOT / "scripts" / "architecture.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr

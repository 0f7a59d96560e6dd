"""Run the blocks of a page in order, as a reader types them: python page_blocks.py PAGE, in an empty folder.

Python blocks share one namespace. Lines of `sh` blocks that begin with `querykey` run in a fork of this
process, which has imported what they need; a reader's shell would start Python for each.
"""

import os
import re
import shlex
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_command(line):
    words = shlex.split(line, comments=True)
    assert words[0] == "querykey", f"only querykey is called in a block that is run: {line}"
    child = os.fork()
    if child == 0:
        from querykey.cli.main import main

        sys.argv = words
        try:
            main()
        except SystemExit as left:
            sys.stdout.flush()
            os._exit(left.code or 0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, f"{line}: exit code {code}"


def run_page(path):
    """Run all blocks of a page."""
    namespace = {"__name__": "__main__"}
    for language, text in BLOCK.findall(Path(path).read_text()):
        if language == "python":
            exec(compile(text, str(path), "exec"), namespace)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip():
                run_command(line)


if __name__ == "__main__":
    run_page(sys.argv[1])

"""What a program says, and its exit code."""

import pytest

from querykey.errors import DataError
from querykey.io.program import exit_code


def _raises(error: BaseException) -> object:
    raise error


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: _raises(DataError("rows.npy: 0 rows; give at least one"))) == 2
    assert capsys.readouterr().err == "error: rows.npy: 0 rows; give at least one\n"


def test_ctrl_c_says_that_it_goes_on_and_exits_as_a_shell_expects(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: _raises(KeyboardInterrupt())) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_an_internal_error_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: _raises(ZeroDivisionError()))

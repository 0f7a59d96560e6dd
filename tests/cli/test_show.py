"""What a person sees where space is short."""

from querykey.cli.console import table


def test_text_is_cut_and_numbers_never(capsys):
    """Eighty columns, where no terminal says otherwise."""
    rows = [["1", "0.456", "an id as long as half a line is wide", "a text " + "that does not end " * 9]]
    table(["rank", "score", "id", "text"], rows, words=[2, 3])
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("rank", "score", "0.456", "an id", "a text", "…"))
    assert max(map(len, shown.splitlines())) <= 80

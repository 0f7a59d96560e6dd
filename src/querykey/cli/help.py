"""`querykey help TOPIC`: names of data and models, and the keys of `--set`."""

from importlib.resources import files
from typing import Annotated

import typer

__all__ = ["show_help"]

SETTINGS = """\
Settings of `querykey adapt`, by --set KEY=VALUE or in a file given with
--run-file. Values are TOML; a bare word is a string. The fit chooses settings
that are not given, and RUN/run.json records its choices.
"""

PRETRAINING = """\
Settings of `querykey pretrain`, by --set KEY=VALUE or in a file given before
the options. Values are TOML; a bare word is a string. Settings that are not
given are chosen for the images and the machine, and printed before the first
step; RUN/run.json records all of them.
"""


def show_help(
    topic: Annotated[
        str, typer.Argument(metavar="[sources|settings|pretraining]", help="What to explain.")
    ] = "",
) -> None:
    """Explain how data and models are named, or what --set takes."""
    match topic:
        case "sources":
            from querykey.data.readers.grammar import SOURCES_HELP

            typer.echo(SOURCES_HELP)
        case "settings":
            typer.echo(f"{SETTINGS}\n{_keys('settings')}")
        case "pretraining":
            typer.echo(f"{PRETRAINING}\n{_keys('pretraining')}")
        case "":
            typer.echo("querykey help sources     how SOURCE, MODEL, FEATURES and RUN are named")
            typer.echo("querykey help settings    what --set takes in querykey adapt")
            typer.echo("querykey help pretraining what --set takes in querykey pretrain")
            typer.echo("querykey --help           the commands; querykey COMMAND --help the options of one")
        case _:
            from querykey.errors import ConfigError

            raise ConfigError(f"help {topic}: no such topic; there are sources, settings and pretraining")


def _keys(topic: str) -> str:
    """Every key and its values: a file, because the settings classes need torch and the help does not."""
    return (files("querykey.cli") / f"help_{topic}.txt").read_text(encoding="utf-8").rstrip()

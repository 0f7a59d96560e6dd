"""`querykey help TOPIC`: the grammar that all commands share."""

from typing import Annotated

import typer

__all__ = ["show_help"]

SETTINGS = """\
Settings of `querykey adapt`, by --set KEY=VALUE or in a file given with
--run-file. Values are TOML; a bare word is a string. What is left out is the
fit's own to choose, and RUN/run.json holds what it chose.
"""

PRETRAINING = """\
Settings of `querykey pretrain`, by --set KEY=VALUE or in a file given before
the options. Values are TOML; a bare word is a string. What is left out is
chosen for the images and the machine, and printed before the first step;
RUN/run.json holds all of it.
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
            from querykey.runs.adapter_settings import describe_settings

            typer.echo(SETTINGS)
            typer.echo(describe_settings())
        case "pretraining":
            from querykey.runs.pretrain_settings import describe_pretrain_settings

            typer.echo(PRETRAINING)
            typer.echo(describe_pretrain_settings())
        case "":
            typer.echo("querykey help sources     how SOURCE, MODEL, FEATURES and RUN are named")
            typer.echo("querykey help settings    what --set takes in querykey adapt")
            typer.echo("querykey help pretraining what --set takes in querykey pretrain")
            typer.echo("querykey --help           the commands; querykey COMMAND --help the options of one")
        case _:
            from querykey.errors import ConfigError

            raise ConfigError(f"help {topic}: no such topic; there are sources, settings and pretraining")

"""The `querykey` command."""

import sys

import typer

from querykey.cli.adapt import adapt_features
from querykey.cli.doctor import doctor
from querykey.cli.embed import embed_source
from querykey.cli.evaluate import evaluate_on
from querykey.cli.faults import STOPPED, Commands
from querykey.cli.help import show_help
from querykey.cli.search import search
from querykey.cli.transform import transform_features

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    # the rich help costs a third of a second, more than the command itself
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Adapt a frozen model: embed, adapt, evaluate, search, export.",
    epilog="`querykey help sources` explains SOURCE, MODEL, FEATURES and RUN.",
)


@app.callback()
def _all() -> None: ...


app.command("embed")(embed_source)
app.command("adapt")(adapt_features)
app.command("evaluate")(evaluate_on)
app.command("transform")(transform_features)
app.command("search")(search)
app.command("doctor")(doctor)
app.command("help")(show_help)


def main() -> None:
    """Run the command line; the entry point of `querykey`."""
    try:
        app(prog_name="querykey")
    except KeyboardInterrupt:
        sys.exit(STOPPED)

"""The `querykey` command."""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from querykey.cli.errors import STOPPED, Commands, repeated_interrupts
from querykey.cli.torchrun import rank_zero_output

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = {
    "embed": ("embed", "embed_source", "Turn SOURCE into features with a frozen MODEL."),
    "adapt": ("adapt", "adapt_features", "Fit an adapter to FEATURES."),
    "pretrain": ("pretrain", "pretrain_source", "Pretrain an encoder from images without labels."),
    "resume": ("pretrain", "resume_run", "Resume a pretraining run, or train a finished one for longer."),
    "evaluate": ("evaluate", "evaluate_on", "Evaluate a RUN and its baselines."),
    "compare": ("compare", "compare", "Compare RUNs: settings, final metrics and paired scores."),
    "transform": ("transform", "transform_features", "Write the adapted rows of FEATURES, or their codes."),
    "size": ("size", "size", "Show bytes, quality and search time of the sizes of RUN, and select one."),
    "search": ("search", "search", "Search FEATURES before and after adaptation."),
    "export": ("export", "export_run", "Export the model of a RUN to another format."),
    "study": ("study", "study", "Run a paper's ablation on your data; `study list` names them."),
    "report": ("report", "report", "Show runs and studies on one page."),
    "doctor": ("doctor.doctor", "doctor", "Check data and machine, and suggest commands."),
    "demo": ("demo", "demo", "Adapt a frozen model to Python's own documentation; takes minutes."),
    "help": ("help", "show_help", "Explain how data and models are named, or what --set takes."),
}  # fmt: skip
"""Command to its module, its function and its line in the help.

The module of a command is imported when the command is called: importing all of them takes longer than the
rest of the help.
"""


class _Commands(Commands):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands.update(dict.fromkeys(COMMANDS))  # type: ignore[arg-type]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, function, _ = COMMANDS[cmd_name]
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(cmd_name)(getattr(import_module(f"querykey.cli.{module}"), function))
        return get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    # the rich help takes a third of a second, more than the command itself
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Adapt a frozen model: embed, adapt, evaluate, search. Or pretrain an encoder.",
    epilog="`querykey help sources` explains SOURCE, MODEL, FEATURES and RUN.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from querykey import __version__

        typer.echo(f"querykey {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line; the entry point of `querykey`."""
    try:
        with rank_zero_output(), repeated_interrupts():
            app(prog_name="querykey")
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    finally:
        # An interrupt that passed through an exec() of source (as in every dataclass of an import) leaves a
        # flag in CPython although it was handled, and `python -m` then dies by SIGINT whatever the exit code.
        # The next exec() clears the flag.
        exec("")  # noqa: S102

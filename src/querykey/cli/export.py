"""`querykey export`: an adapter in a form that loads elsewhere."""

from typing import TYPE_CHECKING, Annotated

import typer

from querykey.cli.options import Device, Out, RunFolder, Seed, Threads, prepare

if TYPE_CHECKING:
    from querykey.build import Run
    from querykey.export import Origin

__all__ = ["export_run"]

FORMS = ("onnx", "safetensors", "sentence-transformers")


def export_run(
    run: RunFolder,
    to: Annotated[str, typer.Option(metavar=f"[{'|'.join(FORMS)}]", help="The form.")],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="st:NAME", help="For sentence-transformers: the text model, where the RUN knows none."
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Write the adapter of a RUN in a form that loads elsewhere.

    What was written is read back and must give the adapter's own rows, to 1e-5.
    """
    prepare(device, threads, seed)
    from querykey.build import load_run
    from querykey.cli.show import line
    from querykey.errors import ConfigError
    from querykey.export import export_onnx, export_safetensors, export_sentence_transformer
    from querykey.outputs import check_new

    if to not in FORMS:
        raise ConfigError(f"--to {to}: no such form; there are {', '.join(FORMS)}")
    if model is not None and to != "sentence-transformers":
        raise ConfigError(
            f"--model is for --to sentence-transformers; an export to {to} takes none, leave it out"
        )
    check_new(out)
    fitted = load_run(run)
    fc, origin = fitted.adapter.fc_, _origin(fitted, model)
    match to:
        case "onnx":
            done = export_onnx(fc, out, origin=origin)
        case "safetensors":
            done = export_safetensors(fc, out, origin=origin)
        case _:
            done = export_sentence_transformer(fc, out, origin=origin)
    line(f"{out}: {', '.join(done.files)}")
    line(f"  read back, it differs from the adapter by {done.difference:.0e} at the most")
    line(f"  {done.re_index}")


def _origin(run: "Run", model: str | None) -> "Origin":
    from querykey.export import Origin

    known = run.features.get("model", {})
    return Origin(
        side=run.adapter.settings_.side,
        model_key=run.adapter.model_key_,
        model=model or known.get("spec", ""),
        prompt=known.get("prompt"),
        dtype=known.get("dtype", "float32"),
    )

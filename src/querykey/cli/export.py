"""`querykey export`: export an adapter or a pretrained backbone to another format."""

from typing import TYPE_CHECKING, Annotated

import typer

from querykey.cli.options import Out, RunFolder, Threads, Unused, UnusedSeed, prepare, reserve_output

if TYPE_CHECKING:
    from pathlib import Path

    from querykey.export import Origin
    from querykey.runs.adapt import Run

__all__ = ["export_run"]

FORMS = ("onnx", "safetensors", "sentence-transformers")


def export_run(
    run: RunFolder,
    to: Annotated[str, typer.Option(metavar=f"[{'|'.join(FORMS)}]", help="The format.")],
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="st:NAME", help="For sentence-transformers: the text model, if RUN does not record it."
        ),
    ] = None,
    device: Unused = "cpu",
    threads: Threads = None,
    seed: UnusedSeed = 0,
) -> None:
    """Export the model of a RUN to another format.

    The model is an adapter with all its sizes and codes, or the backbone of a pretraining run. The export is
    read back and compared: rows of an adapter must agree to 1e-5 and its codes exactly; the weights of a
    backbone (safetensors) exactly, and its h (onnx) to 1e-4 of the largest value.
    """
    prepare(device, threads, seed)
    from querykey.runs.pretrain_folder import is_pretraining

    if is_pretraining(run):
        _export_encoder(run, to, out, model)
        return
    from querykey.cli.console import line
    from querykey.errors import ConfigError
    from querykey.export import export_onnx, export_safetensors, export_sentence_transformer
    from querykey.runs.adapt import load_run

    if to not in FORMS:
        raise ConfigError(f"--to {to}: no such format; there are {', '.join(FORMS)}")
    if model is not None and to != "sentence-transformers":
        raise ConfigError(
            f"--model is for --to sentence-transformers; an export to {to} takes none, leave it out"
        )
    reserve_output(out)
    fitted = load_run(run)
    fc, codes, sizes = fitted.adapter.fc_, fitted.adapter.codes_, fitted.adapter.settings_.sizes
    origin = _origin(fitted, model)
    match to:
        case "onnx":
            done = export_onnx(fc, out, origin=origin, dims=sizes, codes=codes)
        case "safetensors":
            done = export_safetensors(fc, out, origin=origin, dims=sizes)
        case _:
            done = export_sentence_transformer(fc, out, origin=origin, dims=sizes, codes=codes)
    line(f"{out}: {', '.join(done.files)}")
    line(f"  read back, it differs from the adapter by at most {done.difference:.0e}")
    line(f"  {done.re_index}")


def _export_encoder(run: "Path", to: str, out: "Path", model: str | None) -> None:
    from querykey.cli.console import line
    from querykey.errors import ConfigError
    from querykey.export import BackboneOrigin, export_backbone_onnx, export_backbone_safetensors
    from querykey.pretraining.saved_encoder import read_encoder

    if to not in ("onnx", "safetensors"):
        raise ConfigError(f"--to {to}: a pretrained backbone goes to onnx or safetensors")
    if model is not None:
        raise ConfigError("--model is for --to sentence-transformers; a backbone takes none, leave it out")
    reserve_output(out)
    saved = read_encoder(run)
    views, size = saved.views, saved.settings.image_size
    assert size is not None
    normalisation = {"mean": views.mean, "deviation": views.deviation}
    origin = BackboneOrigin(channels=saved.channels, size=size, method=saved.settings.method, **normalisation)
    write = export_backbone_onnx if to == "onnx" else export_backbone_safetensors
    done = write(saved.encoder.backbone, out, origin=origin)
    line(f"{out}: {', '.join(done.files)}")
    same = f"h differs by at most {done.difference:.0e} of its largest value"
    line(f"  read back, {same if done.difference else 'the weights are the same bits'}")


def _origin(run: "Run", model: str | None) -> "Origin":
    from querykey.export import Origin

    recorded = run.features.get("model", {})
    return Origin(
        side=run.adapter.settings_.side,
        model_key=run.adapter.model_key_,
        model=model or recorded.get("spec", ""),
        prompt=recorded.get("prompt"),
        dtype=recorded.get("dtype", "float32"),
        data_key=run.features.get("key", ""),
        report=run.adapter.report_,
    )

"""sentence-transformers: the frozen model with the layer on top, as one model."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from querykey.distributed.process_group import in_default_torch_state
from querykey.encoders.frozen.encoder import FrozenEncoder
from querykey.encoders.frozen.text import SentenceModel, load_sentence_transformer
from querykey.encoders.heads import FCLayer
from querykey.errors import ExportError, MissingExtraError, ModelMismatchError, ShapeError
from querykey.export.arrays import linear_part
from querykey.export.exported import Exported, Origin, adapted, on_cpu, require_parity, sizes_of, write_readme
from querykey.io.atomic import check_new, new_folder

__all__ = ["export_sentence_transformer"]

_TEXTS = (
    "cold water",
    "Where do the birds of the north spend the winter?",
    "A dictionary is looked up with a query: its key should be found, and the others should not.",
)

_USE = """\
A model of sentence-transformers: the frozen model, then the adapter.

```python
from sentence_transformers import SentenceTransformer

embeddings = SentenceTransformer("PATH OF THIS FOLDER").encode(texts)
```

Use `encode`, which puts before a text what the adapter was fitted with."""

_SIZES = """

Smaller sizes ({sizes}) are prefixes, scaled to length 1 again:

```python
model = SentenceTransformer("PATH OF THIS FOLDER", truncate_dim={size})
embeddings = model.encode(texts, normalize_embeddings=True)
```"""

_CODES = """

Codes ({codes}) come from the features of the frozen model, which are the output of the first {modules}
modules, through the saved adapter. They are the bits of `Adapter.quantize`. `precision="int8"` and
`precision="ubinary"` of `encode` are other codes: they have neither the ranges nor the rotation of the fit.

```python
from querykey.runtime import load

model = SentenceTransformer("PATH OF THIS FOLDER")
frozen = SentenceTransformer(
    modules=[*model][:{modules}], prompts=model.prompts, default_prompt_name=model.default_prompt_name
)
codes = load("PATH OF THE RUN").quantize(frozen.encode(texts), dim={size}, bits={bits})
```"""


@in_default_torch_state
def export_sentence_transformer(
    fc: FCLayer,
    out: str | Path,
    *,
    origin: Origin,
    dims: Sequence[int] | ArrayLike | None = None,
    codes: Collection[tuple[int, int]] = (),
) -> Exported:
    """Write a frozen text model with a layer on top, so that `SentenceTransformer(out).encode(texts)` adapts.

    A Dense without activation and a Normalize follow the frozen model's own modules, and a Normalize
    goes before where these do not end with one. The identity of a residual layer is part of the weight.
    `truncate_dim` with `normalize_embeddings=True` gives a smaller size.

    Args:
        fc: The layer, linear or residual.
        out: A new folder.
        origin: Names the frozen model ("st:NAME-OR-FOLDER") and how its features were made.
        dims: Sizes, each a prefix of the largest; None: the width of the layer alone.
        codes: (size, bits) of each code of the adapter; the README says how they are made.

    Returns:
        What was written.

    Raises:
        ExportError: If it cannot be expressed (two layers, no text model, a truncated or half-precision
            one), or the model read back gives rows that differ by more than 1e-5.
        ModelMismatchError: If the frozen model is not the one whose features the layer was fitted on.
        ShapeError: If its features are of another width.
        MissingExtraError: If sentence-transformers is not installed.
        OutputExistsError: If something is at `out`.
    """
    check_new(out)
    if fc.kind == "two_layer":
        raise ExportError(
            "an FC layer of kind two_layer cannot be written for sentence-transformers: its linear part runs "
            "beside the two layers, and a Dense knows no such path; export it to onnx or safetensors, or fit "
            "a linear or residual one"
        )
    fc = on_cpu(fc)
    base = _base(fc, origin)
    want = adapted(fc, base.forward(list(_TEXTS), dtype=torch.float32, channels_last=False))
    own = len(base.model)  # type: ignore[arg-type]
    model = _with_layer(base, fc)
    sizes = sizes_of(fc, dims)
    use = _USE + _use_of_sizes(sizes) + _use_of_codes(own, codes)
    with new_folder(out) as tmp_path:
        model.save(str(tmp_path), create_model_card=False)
        write_readme(tmp_path, "An adapted text model", use, fc, origin, library="sentence-transformers")
        written: Any = load_sentence_transformer(str(tmp_path.resolve()), device=torch.device("cpu")).model
        # as a user would: the default prompt is part of what is compared
        difference = 0.0
        for size in sizes:
            written.truncate_dim = size
            got: Any = written.encode(
                list(_TEXTS), convert_to_tensor=True, show_progress_bar=False, normalize_embeddings=True
            )
            first = torch.nn.functional.normalize(want[:, :size], dim=1)
            difference = max(difference, require_parity(got, first, what="the SentenceTransformer"))
        files = tuple(sorted(path.name for path in tmp_path.iterdir()))
    return Exported(Path(out), files, difference, origin.re_index)


def _use_of_sizes(sizes: Sequence[int]) -> str:
    smaller = sizes[1:]
    return _SIZES.format(sizes=", ".join(map(str, smaller)), size=smaller[-1]) if smaller else ""


def _use_of_codes(modules: int, codes: Collection[tuple[int, int]]) -> str:
    if not codes:
        return ""
    size, bits = min(codes)
    listed = ", ".join(f"{size} at {bits} bit{'' if bits == 1 else 's'}" for size, bits in codes)
    return _CODES.format(codes=listed, modules=modules, size=size, bits=bits)


def _base(fc: FCLayer, origin: Origin) -> SentenceModel:
    """The frozen model, if it is the one that the layer was fitted on."""
    if not origin.model.startswith("st:"):
        known = f"come from {origin.model}" if origin.model else "came without a model"
        raise ExportError(
            f"the adapter's features {known}, and sentence-transformers needs the text model that made them; "
            "name it with --model st:NAME-OR-FOLDER, or export to onnx or safetensors"
        )
    name = origin.model.removeprefix("st:")
    base = load_sentence_transformer(name, device=torch.device("cpu"), prompt=origin.prompt)
    encoder = FrozenEncoder(base, spec=origin.model, dtype=origin.dtype, prompt=base.prompt)
    if origin.model_key and encoder.key != origin.model_key:
        raise ModelMismatchError(
            f"{origin.model} is not the model whose features the adapter was fitted on ({encoder.key[:12]}, "
            f"then {origin.model_key[:12]}): other weights, tokenizer, pooling or prompt; name that one"
        )
    if encoder.dim != fc.width:
        raise ShapeError(
            f"{origin.model} gives {encoder.dim} numbers a text, and the adapter was fitted on {fc.width}; "
            "name the model that made its features"
        )
    model: Any = base.model
    if model.truncate_dim is not None:
        raise ExportError(
            f"{origin.model} cuts its rows to {model.truncate_dim} numbers, after which no Dense can follow; "
            "export to onnx or safetensors"
        )
    if (dtype := next((p.dtype for p in model.parameters()), torch.float32)) != torch.float32:
        raise ExportError(
            f"{origin.model} computes in {str(dtype).removeprefix('torch.')}, to which its Dense would be "
            "rounded; save the model in float32, or export to onnx or safetensors"
        )
    return base


def _with_layer(base: SentenceModel, fc: FCLayer) -> Any:
    """The frozen model's modules and the layer's; the frozen model itself is extended."""
    try:
        from sentence_transformers.sentence_transformer.modules import Dense, Normalize
    except ImportError as error:
        raise MissingExtraError(
            "sentence-transformers", extra="text", purpose="an export to sentence-transformers"
        ) from error
    model: Any = base.model
    last = model[-1]
    if not isinstance(last, Normalize) or last.module_output_name != "sentence_embedding":
        model.append(Normalize())
    model.append(
        Dense(
            fc.width,
            fc.dim,
            activation_function=torch.nn.Identity(),
            init_weight=linear_part(fc),
            init_bias=fc.bias.detach(),
        )
    )
    model.append(Normalize())
    model.similarity_fn_name = "cosine"
    _set_prompt(model, base.prompt)
    return model


def _set_prompt(model: Any, prompt: str | None) -> None:
    """Make `encode` put before every text what was before it when the features were made."""
    if not prompt:
        model.default_prompt_name = None
    elif model.prompts.get(model.default_prompt_name) != prompt:
        model.prompts["adapted"] = prompt
        model.default_prompt_name = "adapted"

"""Projection heads, and a backbone with its head: images to h and z = g(h)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querykey.encoders.backbones import Backbone
from querykey.errors import ConfigError, RangeError
from querykey.types import ImageRows, Rows

__all__ = ["HeadKind", "LastNorm", "ProjectionHead", "ViewEncoder"]

HeadKind = Literal["none", "linear", "mlp"]
LastNorm = Literal["scale", "plain", "none"]
Embeddings = Float[Tensor, "rows features"]


class ProjectionHead(nn.Module):
    r"""The projection head: used in training, then discarded; :math:`z = g(h)`.

    .. math:: g(h) = W_2\,\text{relu}(W_1 h) \quad\text{(two layers)}

    With `batch_norm`, every linear layer has no bias and is followed by batch norm; that of
    the last layer has a scale and no shift. Without it, every linear layer has a bias, which is
    the head of MoCo v2 (two layers). z is not scaled to length 1.

    The heads of MoCo v3 have hidden=4096, dim=256 and last_norm="plain"; its prediction head is another
    such head on z (width=256), which for a ResNet has last_norm="none".

    Args:
        width: Of h, >= 1.
        kind: "none" (z is h), "linear" (one layer) or "mlp".
        layers: Of an MLP, 2 or 3; ignored for other kinds.
        hidden: Width between an MLP's layers, >= 1; None: the same as h.
        dim: Width of z, >= 1; of "none" it is that of h.
        batch_norm: Whether layers have batch norm.
        last_norm: Batch norm of the last layer, if layers have batch norm: "scale" with a scale and no shift,
            "plain" with neither, "none" without batch norm.
        seed: Of the random weights; the state of the default generator is restored.

    Raises:
        ConfigError: If the kind or last_norm is not known.
        RangeError: If a number is outside its range.

    Example:
        >>> head = ProjectionHead(8, layers=3, dim=4, seed=0)
        >>> h = torch.eye(8)
        >>> head(h).shape, head.layer(h, 1).shape
        (torch.Size([8, 4]), torch.Size([8, 8]))

    Source:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        arXiv:2002.05709, section 2.1 and 4.2: none, linear, or two layers with ReLU between, a
        hidden layer as wide as h, 128 out. The batch norm, its missing shift at the end and three
        layers are in the authors' code only; Chen et al., Big Self-Supervised Models are Strong
        Semi-Supervised Learners, 2020, arXiv:2006.10029, section 2, has the three layers and
        fine-tunes from the first. He et al., Improved Baselines with Momentum Contrastive
        Learning, 2020, arXiv:2003.04297, has no batch norm. Chen et al., An Empirical Study of
        Training Self-Supervised Vision Transformers, 2021, arXiv:2104.02057 (MoCo v3).
    """

    def __init__(
        self,
        width: int,
        *,
        kind: HeadKind = "mlp",
        layers: int = 2,
        hidden: int | None = None,
        dim: int = 128,
        batch_norm: bool = True,
        last_norm: LastNorm = "scale",
        seed: int,
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        if kind not in ("none", "linear", "mlp"):
            raise ConfigError(f"a projection head of kind {kind!r} is not known; it is none, linear or mlp")
        if last_norm not in ("scale", "plain", "none"):
            raise ConfigError(f"last_norm of a projection head is scale, plain or none; got {last_norm!r}")
        if kind == "mlp" and layers not in (2, 3):
            raise RangeError(f"the MLP of a projection head has 2 or 3 layers, got {layers}")
        if min(width, hidden, dim) < 1:
            raise RangeError(f"widths of a projection head must be >= 1, got {width}, {hidden} and {dim}")
        count = {"none": 0, "linear": 1, "mlp": layers}[kind]
        widths = [width, *[hidden] * (count - 1), dim] if count else [width]
        self.kind, self.width, self.dim = kind, width, widths[-1]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.layers = nn.ModuleList(
                _layer(
                    *widths[place : place + 2],
                    batch_norm=batch_norm,
                    last_norm=last_norm if place == count - 1 else None,
                )
                for place in range(count)
            )

    def forward(self, h: Embeddings) -> Rows:
        """Embeddings [rows, width] to projections [rows, dim]."""
        return self.layer(h, len(self.layers))

    def layer(self, h: Embeddings, number: int) -> Rows:
        """The output of a layer, after its ReLU: 0 is h; 1 is used for fine-tuning.

        Args:
            h: Embeddings [rows, width].
            number: From 0 to the number of layers; the last output is z.

        Returns:
            [rows, width of the layer].

        Raises:
            RangeError: If the layer does not exist.
        """
        if not 0 <= number <= len(self.layers):
            raise RangeError(
                f"this projection head has {len(self.layers)} layers; got layer {number} (0 is h)"
            )
        out = h
        for layer in self.layers[:number]:
            out = layer(out)
        return out


class ViewEncoder(nn.Module):
    """A backbone f and a projection head g, which encode the views.

    Args:
        backbone: Images to h.
        head: h to z.

    Raises:
        RangeError: If the head has another input width.
    """

    def __init__(self, backbone: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        if head.width != backbone.dim:
            raise RangeError(
                f"{backbone.spec} gives h of width {backbone.dim}, the projection head takes {head.width}; "
                f"make it with ProjectionHead({backbone.dim})"
            )
        self.backbone, self.head = backbone, head

    def forward(self, images: ImageRows) -> tuple[Embeddings, Rows]:
        """Images to (h [images, backbone.dim], z [images, head.dim]); neither is scaled to length 1."""
        h = self.encode(images)
        z: Tensor = self.head(h)
        return h, z

    def encode(self, images: ImageRows) -> Embeddings:
        """Images [images, channels, height, width] to h [images, backbone.dim]."""
        h: Tensor = self.backbone(images)
        return h


def _layer(before: int, after: int, *, batch_norm: bool, last_norm: LastNorm | None) -> nn.Sequential:
    """One layer; `last_norm` is None for all but the last."""
    layer = nn.Sequential(nn.Linear(before, after, bias=not batch_norm))
    if batch_norm and last_norm != "none":
        norm = nn.BatchNorm1d(after, affine=last_norm != "plain")
        if last_norm == "scale":
            norm.register_parameter("bias", None)
        layer.append(norm)
    if last_norm is None:
        layer.append(nn.ReLU(inplace=True))
    return layer

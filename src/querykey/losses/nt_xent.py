"""NT-Xent: the loss of SimCLR."""

import torch
from torch import Tensor
from torch.nn import functional as F

from querykey.losses.info_nce import info_nce
from querykey.losses.streaming import Form
from querykey.two_views import look_up_views
from querykey.types import Ids, PerQuery, Rows

__all__ = ["nt_xent"]


def nt_xent(
    view_1: Rows,
    view_2: Rows,
    *,
    temperature: float | Tensor,
    ids: Ids | None = None,
    normalised: bool = True,
    form: Form = "auto",
) -> PerQuery:
    r"""Cross-entropy of finding an image's other view among all rows of both views.

    With :math:`z` the 2B rows of both views, scaled to length 1, and :math:`j = (i + B) \bmod 2B`,

    .. math:: \ell_i = -\log \frac{\exp(z_i \cdot z_j / \tau)}{\sum_{k \ne i} \exp(z_i \cdot z_k / \tau)}

    It is `info_nce` over `look_up_views`. The average does not change when the images are
    permuted or the views swapped; the gradient of a row is at right angles to the row, for its
    length does not count; rows that say nothing cost about :math:`\log(2B - 1)`.

    Args:
        view_1: Projections [B, dim] of one view; they need not have length 1.
        view_2: Projections [B, dim] of another view of the same images in the same order.
        temperature: :math:`\tau > 0`, dimensionless. SimCLR uses 0.1 on ImageNet with batches of
            4096, 0.5 on CIFAR-10. A tensor of one number gets a gradient.
        ids: Which item each image is, where an item may be in the batch twice: its further rows
            leave the sum. None: each image its own.
        normalised: False takes the rows as they are, so that scores are dot products: the
            ablation of SimCLR's Table 5, at temperatures of 10 and 100.
        form: "plain", "streamed" or "auto", as for `info_nce`. Streamed, each score is computed once
            for both of its rows, and none is kept.

    Returns:
        Nats per row [2B], view 1 first, not reduced. A batch of one image has no negatives and
        costs 0. Computed in float32 at least, under autocast too.

    Raises:
        RangeError: If temperature is not a positive number.
        ShapeError: If the views differ in shape, ids do not number B, or temperature is a tensor of
            more than one number.
        ConfigError: If there is no such form.

    Example:
        Four rows that cannot be told apart cost log 3 each:

        >>> nt_xent(torch.ones(2, 8), torch.ones(2, 8), temperature=0.5)
        tensor([1.0986, 1.0986, 1.0986, 1.0986])

    Source:
        Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1: the mean over the 2B rows. The
        released code adds the means of the two views, which is twice that; take the mean.
    """
    # Autocast would take the scores to 3 digits, and a temperature of 0.1 a tenth of that again.
    with torch.autocast(view_1.device.type, enabled=False):
        rows = [view.float() if view.element_size() < 4 else view for view in (view_1, view_2)]
        if normalised:
            rows = [F.normalize(view, dim=1) for view in rows]
        return info_nce(look_up_views(*rows, ids=ids), temperature=temperature, form=form)

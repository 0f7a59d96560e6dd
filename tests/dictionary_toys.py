"""A linear encoder and batches for the tests of the steps with a dictionary."""

import torch
from torch import nn


class LinearEncoder(nn.Module):
    """images [rows, 1, 1, width] -> (h, z): h the pixels, z a linear map of them."""

    def __init__(self, width=4, dim=3, *, seed=0, norm=False):
        super().__init__()
        drawn = torch.randn(dim, width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(drawn)
        self.norm = nn.BatchNorm1d(dim, affine=False) if norm else nn.Identity()

    def forward(self, images):
        h = images.flatten(1)
        return h, self.norm(h @ self.weight.T)


def images_of(sizes, *, width=4, seed=1, dtype=torch.float64):
    """Batches of these sizes."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 1, 1, width, generator=random).to(dtype) for size in sizes]


def plain(images):
    """The same as nested lists, a row an image."""
    return images.flatten(1).tolist()

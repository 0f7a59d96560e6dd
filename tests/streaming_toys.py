"""Unit rows, and what is held while losses are computed of them."""

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def rows(count, *, seed=0, dtype=torch.float64, dim=4):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, dim, generator=random, dtype=torch.float64), dim=1).to(dtype)


class Held(TorchDispatchMode):
    """The bytes of the largest tensor that any operation gave."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return out

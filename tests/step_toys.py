"""Steps with all their arguments by name, for tests that change one of them."""

from functools import partial

import torch

from querykey.losses import info_nce
from querykey.pretraining.methods.end_to_end import EndToEnd, end_to_end_step
from querykey.pretraining.methods.memory_bank import InstanceDiscrimination, bank_step, nce_over_bank
from querykey.pretraining.methods.moco import MoCo, MoCoV3, moco_step, moco_v3_step
from querykey.pretraining.methods.step import StepContext, ViewPair
from querykey.pretraining.methods.xbm import XBM, xbm_step


def context_of(loss, permutation=None, **given):
    order = None if permutation is None else lambda *_: permutation
    return StepContext(loss=loss, key_order=order, **given)


def moco(
    encoder, key_encoder, optimizer, queue, views, *, ids, loss, momentum, same_id="masked", symmetric=False,
    **context,
):  # fmt: skip
    modules = MoCo(encoder, key_encoder, queue, optimizer, same_id, symmetric)
    return moco_step(modules, ViewPair(*views, ids), context_of(loss, **context), momentum)


def moco_v3(
    encoder, key_encoder, predictor, optimizer, views, *, ids, loss, momentum, temperature, **context
):
    modules = MoCoV3(encoder, key_encoder, predictor, optimizer, temperature)
    return moco_v3_step(modules, ViewPair(*views, ids), context_of(loss, **context), momentum)


def end_to_end(query_encoder, key_encoder, optimizer, views, *, ids, loss, symmetric=False, **context):
    modules = EndToEnd(query_encoder, key_encoder, optimizer, symmetric)
    return end_to_end_step(modules, ViewPair(*views, ids), context_of(loss, **context))


def bank(
    encoder, optimizer, memory, view, *, ids, temperature, contrast="softmax", negatives=6, seed=0,
    form="auto", proximal=0.0, **context,
):  # fmt: skip
    loss = partial(info_nce, temperature=temperature, form=form)
    if contrast == "nce":
        loss = nce_over_bank(memory, lambda: temperature)
    sampled = None if contrast == "softmax" else negatives
    modules = InstanceDiscrimination(encoder, memory, optimizer, sampled, proximal)
    generator = torch.Generator().manual_seed(seed)
    return bank_step(modules, ViewPair(view, view, ids), context_of(loss, generator=generator, **context))


def xbm(encoder, optimizer, memory, view, *, ids, labels, loss, is_warm, weight=1.0, align=None, **context):
    modules = XBM(encoder, memory, optimizer, weight, align)
    return xbm_step(modules, ViewPair(view, view, ids, labels), context_of(loss, **context), is_warm)

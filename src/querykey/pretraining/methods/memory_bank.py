"""One step of instance discrimination over a memory bank."""

from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from querykey.dictionaries.bank import MemoryBank
from querykey.distributed.process_group import ProcessGroup
from querykey.errors import ConfigError, RangeError
from querykey.lookup.lookup import Lookup, PairRule, look_up
from querykey.lookup.own_key_pairs import look_up_own_key
from querykey.losses.info_nce import info_nce
from querykey.losses.nce import nce, nce_normaliser
from querykey.losses.streaming import Form
from querykey.pretraining.methods.step import (
    Computing,
    Seen,
    ViewStep,
    all_reduce_and_step,
    backward,
    mean_of_own,
    sharded_mean_loss,
    without_gradient,
)
from querykey.types import Ids, Numbers, PerQuery, Rows

__all__ = ["BankContrast", "bank_step"]

BankContrast = Literal["softmax", "info_nce", "nce"]
BANK_RULE = PairRule(positive="id", same_id="positive")


def bank_step(
    encoder: nn.Module,
    optimizer: torch.optim.Optimizer,
    bank: MemoryBank,
    view: Tensor,
    *,
    ids: Ids,
    temperature: float | Tensor,
    contrast: BankContrast = "softmax",
    negatives: int = 4096,
    generator: torch.Generator | None = None,
    form: Form = "auto",
    proximal: float = 0.0,
    computing: Computing | None = None,
    seen: Seen | None = None,
) -> ViewStep:
    r"""Encode one view, look it up in the bank, loss, backward, step; then write the own slots by id.

    What a query should find is the stored row of its own item, written when the item was last seen:
    one view a step is enough. The loss follows from the contrast:

    - "softmax": `info_nce` over the whole bank.
    - "info_nce": `info_nce` over the own row and a sample of the bank.
    - "nce": `nce` over the same. Its normaliser is taken from the first step's look-up and kept
      in the bank.

    A sample is one uniform draw that all queries of the batch share, so that scoring it is one
    product of matrices; the paper draws for each query anew. Rows of a query's own item that
    were drawn are left out.

    Args:
        encoder: images -> (h, z), in train mode.
        optimizer: Of the encoder's parameters, and of a learned temperature.
        bank: A slot for each item of the data.
        view: One view of some items [images, channels, height, width].
        ids: Which items they show [images], each at most once.
        temperature: Above 0; 0.07 on ImageNet, 0.1 on CIFAR-10. A tensor where it is learned.
        contrast: As above.
        negatives: Size of the sample, at least 1; not used by "softmax".
        generator: Of the sample; not used by "softmax".
        form: Of `info_nce`: "plain", "streamed" or "auto"; not used by "nce".
        proximal: :math:`\lambda \ge 0` of :math:`\lambda \lVert z_i - V_i \rVert^2` beside the loss:
            rows stay near what was stored of them. The paper has 30, the authors' code 0.
        computing: How the encoder is run.
        seen: Shown the look-up of the batch, before the bank changes.

    Returns:
        The loss before the step, mean over the queries; z, and the stored rows it was to find.

    Raises:
        CollapseError: If the loss is not finite; the weights and the bank's rows are left as they were.
        ConfigError: If a sample is needed and there is no generator.
        RangeError: If the bank has no slot for an item, proximal is negative, or a setting is out of range.

    Source:
        Wu et al. 2018, arXiv:1805.01978, eq. 2 (softmax), 7 (NCE) and 10 (proximal). InfoNCE over a
        sample of a bank: He et al. 2019, arXiv:1911.05722, section 4.1.
    """
    if not 0.0 <= proximal < float("inf"):
        raise RangeError(f"proximal must be >= 0 and finite, got {proximal}; 0 leaves it out")
    computing = computing or Computing()
    processes = computing.processes
    stored = bank.rows(ids)
    sample = _sample(bank, contrast, negatives, generator)
    found: dict[str, Rows] = {}

    def loss_of_z(own: Rows) -> Tensor:
        z = processes.all_gather_with_grad(own, len(ids))
        found["z"] = z.detach()
        lookup = _look_up(z, bank, ids, stored, sample)
        if seen is not None:
            seen(without_gradient(lookup))
        part = processes.local_slice(len(ids))

        def loss(asked: Lookup) -> PerQuery:
            return _cost(asked, bank, contrast, temperature, form, processes)

        is_dealt = bank.processes.world_size > 1 and sample is None
        mean = (sharded_mean_loss if is_dealt else mean_of_own)(loss, lookup, processes)
        if not proximal:
            return mean
        return mean + proximal * (own - stored[part]).square().sum() / len(ids)

    optimizer.zero_grad()
    value = backward(encoder, view, loss_of_z, computing)
    all_reduce_and_step(optimizer, [encoder], processes)
    bank.write(found["z"], ids)
    return ViewStep(value, found["z"], stored)


def _sample(
    bank: MemoryBank, contrast: BankContrast, negatives: int, generator: torch.Generator | None
) -> Numbers | None:
    if contrast == "softmax":
        return None
    if generator is None:
        raise ConfigError(f'contrast "{contrast}" draws a sample of the bank; give it a generator')
    return bank.sample(negatives, generator)


def _look_up(z: Rows, bank: MemoryBank, ids: Ids, stored: Rows, sample: Numbers | None) -> Lookup:
    held = bank.read()
    if sample is None and bank.processes.world_size == 1:
        return look_up(z, held.vectors, query_ids=ids, key_ids=held.ids, rule=BANK_RULE)
    # the own row comes first, so that it is there whoever holds it
    vectors, numbers = (held.vectors, held.ids) if sample is None else (bank.rows(sample), sample)
    return look_up_own_key(z, stored, ids=ids, held_vectors=vectors, held_ids=numbers, same_id="masked")


def _cost(
    lookup: Lookup,
    bank: MemoryBank,
    contrast: BankContrast,
    temperature: float | Tensor,
    form: Form,
    processes: ProcessGroup,
) -> PerQuery:
    match contrast:
        case "softmax" | "info_nce":
            return info_nce(lookup, temperature=temperature, form=form)
        case "nce":
            if not bank.normaliser:  # not set: this is the first step
                bank.normaliser.copy_(
                    nce_normaliser(lookup, temperature=temperature, items=len(bank), processes=processes)
                )
                if not bank.normaliser.isfinite():
                    raise RangeError(
                        f"the normaliser of nce at temperature {float(temperature):g} is beyond float32; "
                        'take at least 0.012, or contrast="info_nce", which needs no normaliser'
                    )
            return nce(lookup, temperature=temperature, normaliser=bank.normaliser, noise_items=len(bank))
        case never:
            assert_never(never)

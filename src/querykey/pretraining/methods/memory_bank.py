"""One step of instance discrimination over a memory bank."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from querykey.dictionaries.bank import MemoryBank
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.errors import RangeError
from querykey.lookup.lookup import Lookup, PairRule, look_up, look_up_own_key
from querykey.losses.by_name import ViewLoss
from querykey.losses.nce import nce, nce_normaliser
from querykey.pretraining.methods.step import StepContext, StepOutput, ViewPair
from querykey.types import Ids, Numbers, PerQuery, Rows

__all__ = ["InstanceDiscrimination", "bank_step", "nce_over_bank"]

BANK_RULE = PairRule(positive="id", same_id="positive")


@dataclass(frozen=True, eq=False)
class InstanceDiscrimination:
    r"""The modules of instance discrimination, and what does not change during a run.

    Args:
        encoder: images -> (h, z), in train mode.
        bank: A slot for each item of the data.
        optimizer: Of the encoder's parameters, and of a learned temperature.
        negatives: Rows of the bank that are sampled in each step, at least 1; None: all of the bank.
        proximal: :math:`\lambda \ge 0` of :math:`\lambda \lVert z_i - V_i \rVert^2` in addition to the loss:
            rows stay near what was stored of them. The paper has 30, the authors' code 0.

    Raises:
        RangeError: If proximal is negative or not finite.
    """

    encoder: nn.Module
    bank: MemoryBank
    optimizer: torch.optim.Optimizer
    negatives: int | None = None
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.proximal < float("inf"):
            raise RangeError(f"proximal must be >= 0 and finite, got {self.proximal}; 0 leaves it out")


def bank_step(modules: InstanceDiscrimination, batch: ViewPair, context: StepContext) -> StepOutput:
    r"""Encode one view, look it up in the bank, loss, backward, optimizer step; write the own slots by id.

    The positive of a query is the stored row of its own item, written when the item was last in a batch:
    one view a step is enough. The loss is `info_nce` over the whole bank (the paper's softmax), or, over the
    own row and a sample of the bank, `info_nce` or `nce_over_bank`.

    A sample is one uniform draw for all queries of the batch, so that scoring it is one product of matrices;
    the paper draws for each query. Rows of a query's own item in the sample are masked.

    Args:
        modules: Encoder, bank and optimizer.
        batch: The first view is used; each item at most once.
        context: Loss, precision, processes; its generator draws the sample.

    Returns:
        The loss before the step, mean over the queries; z, and the stored rows of the same items.

    Raises:
        CollapseError: If the loss is not finite; the weights and the bank's rows are unchanged.
        RangeError: If the bank has no slot for an item, or negatives is out of range.

    Source:
        Wu et al. 2018, arXiv:1805.01978, eq. 2 (softmax), 7 (NCE) and 10 (proximal). InfoNCE over a
        sample of a bank: He et al. 2019, arXiv:1911.05722, section 4.1.
    """
    bank, ids = modules.bank, batch.ids
    stored = bank.rows(ids)
    sample = None if modules.negatives is None else bank.sample(modules.negatives, context.generator)
    modules.optimizer.zero_grad()
    encoded = context.encode(modules.encoder, batch.view_1)
    z = context.gather(encoded.rows, len(ids))
    lookup = _look_up(z, bank, ids, stored, sample)
    loss = context.mean_loss(lookup, is_sharded=bank.processes.world_size > 1 and sample is None)
    if modules.proximal:
        local = stored[context.process_group.local_slice(len(ids))]
        loss = loss + modules.proximal * (encoded.rows - local).square().sum() / len(ids)
    value = context.backward(loss, encoded)
    context.optimizer_step(modules.optimizer, modules.encoder)
    bank.write(z.detach(), ids)
    return StepOutput(value, z.detach(), stored)


def nce_over_bank(
    bank: MemoryBank, temperature: Callable[[], float | Tensor], processes: ProcessGroup = SINGLE_PROCESS
) -> ViewLoss:
    """`nce` with the bank as its noise distribution.

    Args:
        bank: Stores the normaliser, which is estimated from the first lookup.
        temperature: Gives the temperature, > 0, at each call.
        processes: Over which the queries of the first lookup are sliced.

    Returns:
        `loss(lookup) -> PerQuery`.
    """

    def loss(lookup: Lookup) -> PerQuery:
        now = temperature()
        if not bank.has_normaliser():  # this is the first step
            estimate = nce_normaliser(lookup, temperature=now, items=len(bank), processes=processes)
            bank.normaliser.copy_(estimate)
            if not bank.normaliser.isfinite():
                raise RangeError(
                    f"the normaliser of nce at temperature {float(now):g} is beyond float32; "
                    'take at least 0.012, or contrast="info_nce", which needs no normaliser'
                )
        return nce(lookup, temperature=now, normaliser=bank.normaliser, noise_items=len(bank))

    return loss


def _look_up(z: Rows, bank: MemoryBank, ids: Ids, stored: Rows, sample: Numbers | None) -> Lookup:
    rows = bank.read()
    if sample is None and bank.processes.world_size == 1:
        return look_up(z, rows.vectors, query_ids=ids, key_ids=rows.ids, rule=BANK_RULE)
    # the own row comes first, so that it is a key whichever process stores it
    vectors, numbers = (rows.vectors, rows.ids) if sample is None else (bank.rows(sample), sample)
    return look_up_own_key(z, stored, ids=ids, stored_vectors=vectors, stored_ids=numbers, same_id="masked")

"""Three steps of every method and loss, to be taken by one process and by several."""

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from querykey.distributed.process_group import ProcessGroup
from querykey.errors import CollapseError
from querykey.losses.by_name import loss_names
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods.modules import make_encoder
from querykey.pretraining.methods.step import ViewPair
from querykey.pretraining.settings.methods import given_settings
from querykey.pretraining.settings.resolve import resolve_settings

STEPS, ITEMS = 3, 24
TINY = {
    "backbone": "process_cases:Tiny",
    "head": "mlp",
    "head.batch_norm": True,
    "head.dim": 6,
    "batch_size": 10,
    "batch_norm": "global",
    "optimizer.learning_rate": 0.3,
    "optimizer.warm_up": 0.0,
    "optimizer": "sgd",
    "steps": STEPS,
    "image_size": 8,
    "precision": "float32",
    "layout": "contiguous",
}


class Tiny(nn.Module):
    """Maps under one batch norm: each costs two words among the processes."""

    def __init__(self):
        super().__init__()
        self.maps, self.norm = nn.Conv2d(1, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(self.maps(images)).relu().flatten(1)


@dataclass(frozen=True)
class Case:
    """A method under its settings; `alone` is what differs where one process is to do the same."""

    method: str
    settings: dict = field(default_factory=dict)
    alone: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float64


SPLIT = {"batch_size": 8, "batch_norm": "split", "batch_norm.groups": 4}
CHUNKED, DENSE = {"loss.form": "chunked"}, {"loss.form": "dense"}
SLOW = {"optimizer.learning_rate": 0.02}  # what is rounded in one step is not yet much larger after three
DEVICE = {"batch_size": 8, "batch_norm": "device"}
CASES = {
    "simclr": Case("simclr"),
    **{
        f"simclr, {loss}": Case("simclr", {"loss": loss, "batch_norm": "layer"})
        for loss in loss_names(with_target=False)
    },
    "simclr, float32": Case("simclr", SLOW, dtype=torch.float32),
    "simclr, learned temperature": Case("simclr", {"loss.learned_temperature": True}),
    "simclr, chunks": Case("simclr", {"chunks": 3}),
    "simclr, chunks beside one": Case("simclr", {"chunks": 2}, {"chunks": 1}),
    "simclr, checkpointing": Case("simclr", {"checkpointing": True}),
    "simclr, chunked": Case("simclr", CHUNKED, DENSE),
    "simclr, own norms": Case("simclr", DEVICE, {"batch_norm": "split"}),
    "moco": Case("moco", {**SPLIT, "dictionary.capacity": 20}),
    "moco, own norms": Case("moco", {**DEVICE, "dictionary.capacity": 20}, {"batch_norm": "split"}),
    "moco, float32": Case("moco", {**SPLIT, **SLOW, "dictionary.capacity": 20}, dtype=torch.float32),
    "moco, chunked": Case("moco", {**SPLIT, **CHUNKED, "dictionary.capacity": 20}, DENSE),
    "moco, symmetric": Case(
        "moco",
        {
            **SPLIT,
            "key_encoder.symmetric": True,
            "dictionary.start": "random",
            "loss.learned_temperature": True,
            "dictionary.capacity": 30,
        },
    ),
    "moco-v2, uneven": Case("moco-v2", {"dictionary.capacity": 25, "dictionary.same_id": "negative"}),
    "moco-v2, chunks": Case(
        "moco-v2", {"dictionary.capacity": 25, "chunks": 2, "key_encoder.symmetric": True}
    ),
    "moco-v3": Case("moco-v3", {"key_encoder.predictor_hidden": 5}),
    "moco-v3, split": Case(
        "moco-v3", {**SPLIT, "key_encoder.predictor_hidden": 5, "key_encoder.shuffle": True}
    ),
    "memory-bank": Case("memory-bank"),
    "memory-bank, info_nce": Case(
        "memory-bank", {"dictionary.contrast": "info_nce", "dictionary.negatives": 7}
    ),
    "memory-bank, nce": Case(
        "memory-bank", {"dictionary.contrast": "nce", "dictionary.negatives": 7, "dictionary.proximal": 0.3}
    ),
    "memory-bank, chunked": Case("memory-bank", CHUNKED, DENSE),
    "memory-bank, chunks": Case("memory-bank", {"chunks": 2, "loss.learned_temperature": True}),
    "end-to-end": Case("end-to-end", {"key_encoder.symmetric": False}),
    "end-to-end, shared": Case("end-to-end", {"key_encoder.separate": False, "key_encoder.symmetric": True}),
    "end-to-end, shuffled": Case("end-to-end", {**SPLIT, "key_encoder.shuffle": True}),
    "end-to-end, checkpointing": Case("end-to-end", {"checkpointing": True, "key_encoder.separate": False}),
    "moco, sharded": Case(
        "moco",
        {
            **SPLIT,
            "dictionary.capacity": 21,
            "dictionary.sharded": True,
            "key_encoder.symmetric": True,
            "dictionary.start": "random",
            "loss.learned_temperature": True,
        },
    ),
    "moco-v2, sharded": Case(
        "moco-v2",
        {**CHUNKED, "dictionary.capacity": 25, "dictionary.same_id": "negative", "dictionary.sharded": True},
        DENSE,
    ),
    "memory-bank, sharded": Case("memory-bank", {"dictionary.proximal": 0.3, "dictionary.sharded": True}),
    "memory-bank, sharded nce": Case(
        "memory-bank", {"dictionary.contrast": "nce", "dictionary.negatives": 7, "dictionary.sharded": True}
    ),
    "xbm": Case("xbm", {"dictionary.capacity": 17, "dictionary.warm_up": 0.4, "dictionary.align": "kalman"}),
    "xbm, sharded": Case(
        "xbm",
        {
            "dictionary.capacity": 17,
            "dictionary.warm_up": 0.4,
            "dictionary.align": "kalman",
            "dictionary.sharded": True,
        },
    ),
    "xbm, sharded euclidean": Case(
        "xbm",
        {
            "dictionary.capacity": 21,
            "dictionary.sharded": True,
            "loss.distance": "euclidean",
            "loss.positive_margin": 0.1,
            "loss.negative_margin": 1.2,
        },
    ),
    "xbm, chunks": Case("xbm", {"dictionary.capacity": 17, "chunks": 2, "loss": "multi_similarity"}),
}


def settings_of(case, count, *, alone):
    """Of a case: as so many processes take it, or as one takes it in their place."""
    given = TINY | case.settings
    if alone and case.alone:
        given |= case.alone | ({"batch_norm.groups": count} if "batch_norm" in case.alone else {})
    return resolve_settings(given_settings(case.method, **given), images=ITEMS, channels=1, side=8)


def taken(name, processes, *, count, dtype=None):
    """What the steps of a case leave, by name; of one process or of its part in `count`."""
    case = CASES[name]
    dtype = dtype or case.dtype
    settings = settings_of(case, count, alone=processes.world_size == 1)
    encoder = make_encoder(settings, channels=1, processes=processes).to(dtype)
    learner = Learner(encoder, settings, torch.device("cpu"), items=ITEMS, processes=processes)
    learner.parts.to(dtype)
    if case.method == "simclr" and settings.batch_norm.kind == "split":
        _in_groups(encoder, settings.batch_size, count)
    found, shown = {}, []
    for step in range(STEPS):
        pair = _pair(step, settings.batch_size, dtype)
        part = processes.local_slice(len(pair.ids))
        own = pair._replace(view_1=pair.view_1[part], view_2=pair.view_2[part])
        left = learner.training_step(step, own, shown.append)
        if step == 0:
            found |= {
                f"gradient {key}": weight.grad
                for key, weight in learner.parts.named_parameters()
                if weight.grad is not None
            }
            found |= {"z 1": left.view_1, "z 2": left.view_2}
            found = copy.deepcopy(found)
        found[f"loss {step}"] = torch.tensor(left.loss, dtype=torch.float64)
    found |= {f"state {key}": value for key, value in learner.tensors().items()}
    return found | {"shown": shown[-1].scores}


def _in_groups(encoder, images, count):
    """Encode two views of a batch so that a group has both views of its images, as a process has."""
    parts = [range(images)[ProcessGroup(rank, count).local_slice(images)] for rank in range(count)]
    order = torch.tensor([first + row for part in parts for first in (0, images) for row in part])
    encoder.register_forward_pre_hook(lambda _, given: (given[0][order],))
    encoder.register_forward_hook(lambda *given: tuple(rows[order.argsort()] for rows in given[2]))


def _pair(step, images, dtype):
    """Two views of a batch; in the last one an item is there twice."""
    draw = torch.Generator().manual_seed(step)
    content = torch.randn(images, 1, 8, 8, generator=draw, dtype=torch.float64)
    views = [content + torch.randn(content.shape, generator=draw, dtype=torch.float64) for _ in range(2)]
    ids = torch.randperm(ITEMS, generator=draw)[:images]
    if step == STEPS - 1:
        ids[1] = ids[0]
    return ViewPair(*(view.to(dtype) for view in views), ids, ids % 4, 0.0)


def collapsed(processes):
    """What a step says if the last process alone has a query that is not a number, and what it changed."""
    settings = settings_of(Case("moco", {"batch_norm": "layer", "dictionary.capacity": 20}), 1, alone=False)
    encoder = make_encoder(settings, channels=1, processes=processes)
    learner = Learner(encoder, settings, torch.device("cpu"), items=ITEMS, processes=processes)
    before = copy.deepcopy(learner.encoder.state_dict())
    pair = _pair(0, settings.batch_size, torch.float32)
    pair.view_1[-1] = torch.nan
    part = processes.local_slice(len(pair.ids))
    try:
        learner.training_step(0, pair._replace(view_1=pair.view_1[part], view_2=pair.view_2[part]))
    except CollapseError as error:
        after = learner.encoder.state_dict()
        is_as_before = all(torch.equal(after[name], value) for name, value in before.items())
        return "the loss is nan" in str(error) and is_as_before and len(learner.dictionary) == 0
    return False


def every_case(processes: ProcessGroup):
    """All of them, for the processes that a test starts."""
    found = {
        f"{name}: {key}": value
        for name in CASES
        for key, value in taken(name, processes, count=processes.world_size).items()
    }
    return found | {"collapsed": torch.tensor(collapsed(processes))}

"""Measured before the first step: precision, memory layout, and the number of steps for a time limit."""

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from querykey.data.pixels.pixels import Pixels
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.io.measured import CLEARLY_FASTER, is_clearly_faster, processor, recall, remember
from querykey.pretraining.checkpoint import SAVE_SECONDS
from querykey.pretraining.images import DataSplit
from querykey.pretraining.methods.step import OnLookup, StepOutput, ViewPair
from querykey.pretraining.run import Calibration, TrainingRun, build_run, use_layout
from querykey.pretraining.settings.settings import PretrainSettings
from querykey.pretraining.time_budget import (
    Costs,
    prefill_seconds,
    saving_seconds,
    steady_limit,
)

__all__ = ["Autotuned", "accelerator_precision", "autotune", "calibrate", "estimate_run"]

Layout = Literal["contiguous", "channels_last"]
TRIALS = 3
CHOICE_IMAGES = 128
"""Images per step when precision and layout are chosen, so that the choice takes seconds. On 64 the casts of
weights and the optimizer, which cost the same for each batch, hide what bfloat16 gains (ADR 0019)."""
STEADY_TRIALS = 1000
"""Steps that are measured at most for the length of a run."""
ESTIMATE_LIMIT = 100.0
"""Seconds of a run whose share of measured steps an estimate takes: 3 s of steps."""
TRIAL_STEPS = 1000
"""Length of the run in the middle of which the measured steps are taken."""


@dataclass(frozen=True)
class Autotuned:
    """The result of `autotune`.

    Args:
        settings: Complete.
        calibration: What was measured.
        start: Metrics of the untrained encoder.
    """

    settings: PretrainSettings
    calibration: Calibration
    start: dict[str, float]


def autotune(
    settings: PretrainSettings,
    pixels: Pixels,
    split_data: DataSplit,
    *,
    device: torch.device,
    started_at: float,
    scratch: Path | None = None,
    save_every: float = SAVE_SECONDS,
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Autotuned:
    """Measure whole steps of a run that is thrown away, and choose what resolved settings leave open.

    A time limit becomes a number of steps: what is left of it by then, less what the run costs besides its
    steps (`Costs`).

    Args:
        settings: Resolved; precision, layout and the number of steps may be open.
        pixels: All images.
        split_data: Which of them are trained on and which are evaluated.
        device: On which the run trains.
        started_at: `time.monotonic()` at the start of the command: minutes count from then.
        scratch: A folder of the main process for files of the trial, on the disk of the run; None: the run
            writes nothing.
        save_every: Seconds between two checkpoints of the run.
        processes: Over which each batch is sliced; the choice of the main process holds for all.

    Returns:
        Complete settings, with what was measured.

    Raises:
        RangeError: If there are fewer images than a batch has, or a process would have fewer than 2 of one.
        DataError: If the processes have not found the same images.
    """
    trial, build_seconds = _built(settings, pixels, split_data, device, processes)
    start = trial.run.evaluate_rows(_untrained_output(trial.run))
    trial.run.learner.fill_()
    calibration = _choose(trial)
    steps, per_epoch = settings.steps, trial.run.images.steps_per_epoch
    if steps is None and settings.epochs is not None:
        steps = max(1, round(settings.epochs * per_epoch))
    elif steps is None:
        assert settings.minutes is not None
        costs = _costs(trial, calibration, scratch, build_seconds, limit=60 * settings.minutes)
        left = 60 * settings.minutes - (time.monotonic() - started_at)
        steps = costs.steps_in(left, evaluations=settings.num_evals, save_every=save_every)
        steps = processes.broadcast_object(steps)
        calibration = replace(calibration, seconds=costs.step, evaluation_seconds=costs.evaluation)
    trial.close()
    measured = {"precision": calibration.precision, "layout": calibration.layout}
    complete = settings.changed({"steps": steps, "epochs": steps / per_epoch, **measured})
    return Autotuned(complete, calibration, start)


def estimate_run(
    settings: PretrainSettings,
    pixels: Pixels,
    split_data: DataSplit,
    *,
    device: torch.device,
    scratch: Path | None = None,
) -> tuple[Costs, int]:
    """What a run costs by the trial of `autotune`, for `querykey doctor`.

    Args:
        settings: Resolved.
        pixels: All images.
        split_data: Which of them are trained on and which are evaluated.
        device: On which the run would train.
        scratch: An existing folder on the disk of the run; None: checkpoints cost nothing.

    Returns:
        (costs, steps of an epoch). `Costs.once` is all that a run does besides its steps, evaluations and
        later checkpoints, after it has read its images.
    """
    trial, build_seconds = _built(settings, pixels, split_data, device, SINGLE_PROCESS)
    trial.run.learner.fill_()
    calibration = _choose(trial)  # kept in the cache: the run itself finds it there
    costs = _costs(trial, calibration, scratch, build_seconds, limit=ESTIMATE_LIMIT)
    trial.close()
    # a run builds itself twice, evaluates the untrained encoder, and times its step
    once = costs.once + build_seconds + costs.evaluation + 2 * TRIALS * costs.step
    return replace(costs, once=once), trial.run.images.steps_per_epoch


def _built(
    settings: PretrainSettings,
    pixels: Pixels,
    split_data: DataSplit,
    device: torch.device,
    processes: ProcessGroup,
) -> tuple["_Trial", float]:
    """A run that is thrown away, and the seconds of building it."""
    before = time.perf_counter()
    trial = _Trial(build_run(settings, pixels, split_data, device=device, processes=processes))
    return trial, time.perf_counter() - before


class _Trial:
    """Steps in the middle of a run that is thrown away; its learning rate is 0.

    They cost the same as those of the run, and too high a rate breaks the run, not the trial.

    Args:
        run: With a number of steps that may be open.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.device, self.processes = run, run.learner.device, run.learner.processes
        self.step = TRIAL_STEPS // 2
        self._runs = dict[str, TrainingRun]()
        self._few = dict[Layout, ViewPair]()
        self._batches = run.images.walk(self.step, sys.maxsize)

    def run_in(self, precision: torch.dtype) -> TrainingRun:
        """The run in a precision, with a length."""
        name = "bfloat16" if precision == torch.bfloat16 else "float32"
        if name not in self._runs:
            changed = self.run.settings.changed(
                {"precision": name, "optimizer.learning_rate": 0.0, "steps": TRIAL_STEPS}
            )
            self._runs[name] = replace(self.run, learner=self.run.learner.with_settings(changed))
        return self._runs[name]

    def take(self, precision: torch.dtype, layout: Layout, on_lookup: OnLookup | None = None) -> StepOutput:
        """The next step."""
        use_layout(self.run, layout)
        if self._few:
            # rows of few images are of no step, and metrics of the dictionary make the views of steps again
            self._few.clear()
            self.run.learner.fill_()
        output = self.run_in(precision).learner.training_step(self.step, next(self._batches), on_lookup)
        self.step += 1
        return output

    @property
    def can_take_few(self) -> bool:
        """Whether `CHOICE_IMAGES` of a batch are a batch of this method."""
        settings = self.run.settings
        groups = settings.batch_norm.groups if settings.batch_norm.kind == "split" else 1
        return (
            self.processes.world_size == 1
            and settings.chunks == 1
            and settings.batch_size > CHOICE_IMAGES
            and CHOICE_IMAGES % (2 * groups) == 0  # split batch norm needs two rows a group
        )

    def take_few(self, precision: torch.dtype, layout: Layout) -> None:
        """A step on `CHOICE_IMAGES`, all of a layout on one batch; it does not count as one."""
        use_layout(self.run, layout)
        if layout not in self._few:
            (batch,) = self.run.images.walk(self.step, self.step + 1)
            labels = None if batch.labels is None else batch.labels[:CHOICE_IMAGES]
            views = batch.view_1[:CHOICE_IMAGES], batch.view_2[:CHOICE_IMAGES]
            self._few[layout] = ViewPair(*views, batch.ids[:CHOICE_IMAGES], labels)
        self.run_in(precision).learner.training_step(self.step, self._few[layout])

    def evaluate(self, precision: torch.dtype, layout: Layout) -> None:
        """The next step, with an evaluation as a run has it."""
        run, lookups = self.run_in(precision), list[Mapping[str, float]]()
        output = self.take(precision, layout, lambda lookup: lookups.append(run.lookup_metrics(lookup)))
        run.evaluate(output, step=self.step, lookups=lookups)

    def close(self) -> None:
        """End the workers that decode."""
        self._batches.close()


def _costs(
    trial: _Trial, chosen: Calibration, scratch: Path | None, build_seconds: float, *, limit: float
) -> Costs:
    """What a run costs in the chosen precision and layout; steps come last, when the machine is warm."""
    precision, device, processes = _DTYPES[chosen.precision], trial.device, trial.processes
    run, timed = trial.run_in(precision), partial(_seconds_of, device=device)
    checkpoint, encoder = saving_seconds(run, scratch, timed)
    evaluated = 0.0
    if run.settings.num_evals:
        # the first one is cold: a run has many
        evaluated = min(timed(lambda: trial.evaluate(precision, chosen.layout)) for _ in range(2))
    once = build_seconds + prefill_seconds(run, timed) + 2 * (checkpoint + encoder)
    step = _steady(lambda: trial.take(precision, chosen.layout), device, processes, limit=limit)
    return Costs(step=step, evaluation=max(0.0, evaluated - step), checkpoint=checkpoint, once=once)


def _untrained_output(trial: TrainingRun) -> StepOutput:
    """Both views of the first batch as the untrained encoder sees them in train mode."""
    settings, processes = trial.settings, trial.learner.processes
    device = trial.learner.device
    (batch,) = trial.images.walk(0, 1, views=2)
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)  # dropout
        encoder = copy.deepcopy(trial.learner.encoder).train()
        # with several processes each has as many forward passes: global batch norm waits for all of them
        chunks = settings.chunks if processes.world_size == 1 else 1
        z = torch.cat([encoder(part)[1] for part in torch.cat([batch.view_1, batch.view_2]).chunk(chunks)])
    views = z.float().chunk(2)
    view_1, view_2 = (processes.all_gather_with_grad(view, len(batch.ids)) for view in views)
    return StepOutput(0.0, view_1, view_2)


def _choose(trial: _Trial) -> Calibration:
    """The fastest precision and layout, with a full dictionary."""
    settings = trial.run.settings
    is_open = "auto" in (settings.precision, settings.layout)
    return calibrate(
        trial.take,
        precision=settings.precision,
        layout=settings.layout,
        device=trial.device,
        processes=trial.processes,
        conditions=_conditions(trial.run, trial.device) if is_open else None,
        choice_step=trial.take_few if trial.can_take_few else None,
    )


def _conditions(trial: TrainingRun, device: torch.device) -> dict[str, Any]:
    """All that the fastest precision and layout depend on."""
    settings = trial.settings
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "choice": "precision and layout of pretraining",
        "device": f"{device.type}: {name}",
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": trial.learner.processes.world_size,
        "method": settings.method,
        "backbone": asdict(settings.backbone),
        "head": asdict(settings.head),
        "batch": [settings.batch_size, settings.chunks],
        "images_of_a_trial": CHOICE_IMAGES,
        "images": [trial.images.pixels.channels, settings.image_size],
        "asked": [settings.precision, settings.layout],
    }


def calibrate(
    step: Callable[[torch.dtype, Layout], object],
    *,
    precision: Literal["auto", "float32", "bfloat16"],
    layout: Literal["auto", "contiguous", "channels_last"],
    device: torch.device,
    processes: ProcessGroup = SINGLE_PROCESS,
    conditions: Mapping[str, Any] | None = None,
    choice_step: Callable[[torch.dtype, Layout], object] | None = None,
) -> Calibration:
    """Measure steps, and choose the fastest precision and layout.

    A choice changes bits. It is measured once a machine: the next run with the same conditions takes it from
    the cache (`querykey.io.measured`), whatever the load.

    Args:
        step: Takes one step with this precision and layout, of a run that is thrown away.
        precision: "auto" tries bfloat16 if the processor multiplies it faster than float32; an accelerator
            has bfloat16 if it can.
        layout: "auto" tries both.
        device: On which steps run.
        processes: That take each step together; the times and the cache of the main process hold for all.
        conditions: What the choice depends on; None: it is measured anew.
        choice_step: Takes a step on fewer images, by which the choice is made; None: `step`.

    Returns:
        The choice: float32 and contiguous, or what takes 15% less time a step.
    """
    is_choice = "auto" in (precision, layout)
    is_open = conditions is not None and is_choice
    on_few = choice_step if is_choice else None
    known = processes.broadcast_object(
        _recalled(conditions) if is_open and processes.is_main_process else None
    )
    if known is not None:
        chosen, order, tried = known
    else:
        chosen, order, tried = _fastest(on_few or step, precision, layout, device, processes)
        if is_open and processes.is_main_process:
            remember(conditions or {}, [chosen, order, tried])
    if known is None and on_few is None:
        steady = tried[f"{chosen} {order}"]
    else:
        (steady,) = _shortest_in_turns([partial(step, _DTYPES[chosen], order)], device, processes)
    return Calibration(chosen, order, steady, tried)


Choice = tuple[Literal["float32", "bfloat16"], Layout, dict[str, float]]


def _recalled(conditions: Mapping[str, Any] | None) -> Choice | None:
    """The choice that was measured before; None where there is none of this form."""
    match recall(conditions or {}):
        case ["float32" | "bfloat16" as precision, "contiguous" | "channels_last" as layout, dict(tried)]:
            return precision, layout, tried
    return None


def _fastest(
    step: Callable[[torch.dtype, Layout], object],
    precision: Literal["auto", "float32", "bfloat16"],
    layout: Literal["auto", "contiguous", "channels_last"],
    device: torch.device,
    processes: ProcessGroup,
) -> Choice:
    """The fastest of the choices if it clearly beats the first, else the first; and the seconds of each."""
    precisions: list[Literal["float32", "bfloat16"]] = [precision] if precision != "auto" else ["float32"]
    if precision == "auto" and device.type != "cpu":
        precisions = [accelerator_precision(device)]
    elif precision == "auto" and processes.broadcast_object(_has_fast_bfloat16(device)):
        precisions.append("bfloat16")
    layouts: list[Layout] = ["contiguous", "channels_last"] if layout == "auto" else [layout]
    choices = list(product(precisions, layouts))
    calls = [partial(step, _DTYPES[kind], order) for kind, order in choices]
    seconds = _shortest_in_turns(calls, device, processes)
    fastest = min(range(len(choices)), key=seconds.__getitem__)
    chosen = fastest if seconds[fastest] < CLEARLY_FASTER * seconds[0] else 0
    tried = {f"{kind} {order}": taken for (kind, order), taken in zip(choices, seconds, strict=True)}
    return *choices[chosen], tried


def accelerator_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """The precision of an encoder on an accelerator: bfloat16, where the device computes in it.

    Scores and losses are float32 in either, without TF32: its rounding would reach the loss.

    Args:
        device: Other than the CPU.

    Returns:
        "bfloat16", or "float32" on devices before Ampere.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    try:
        square = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return "bfloat16" if bool((square @ square == 2).all()) else "float32"
    except (RuntimeError, TypeError, NotImplementedError):  # as MPS before macOS 14
        return "float32"


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _shortest_in_turns(
    steps: Sequence[Callable[[], object]], device: torch.device, processes: ProcessGroup
) -> list[float]:
    """The shortest time of each step: other work on the machine comes and goes, and may meet one step alone.

    Before each timing the step is taken once, because the first one in another layout converts weights.
    """
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(TRIALS):
        for seconds, step in zip(taken, steps, strict=True):
            step()
            seconds.append(processes.broadcast_object(_seconds_of(step, device)))
    return [min(seconds) for seconds in taken]


def _steady(
    step: Callable[[], object], device: torch.device, processes: ProcessGroup, *, limit: float
) -> float:
    """The mean over a share of the time limit: every pause in it, of the machine or of decoding, recurs."""
    times: list[float] = []
    while not times or (sum(times) < steady_limit(limit) and len(times) < STEADY_TRIALS):
        times.append(processes.broadcast_object(_seconds_of(step, device)))
    return sum(times) / len(times)


def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a product of matrices is faster in bfloat16: without the hardware it is 100 times slower."""
    square = torch.ones(256, 256, device=device)
    rounded = square.bfloat16()
    return is_clearly_faster(
        lambda: _seconds_of(lambda: rounded @ rounded, device),  # waits for the device
        lambda: _seconds_of(lambda: square @ square, device),
        fraction=1.0,
    )


def _seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call, until the device has finished it."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)

"""Measured before the first step: precision, memory layout, and the number of steps for a time limit."""

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from querykey.data.pixels.pixels import Pixels
from querykey.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from querykey.io.measured import CLEARLY_FASTER, processor, recall, remember
from querykey.pretraining.images import DataSplit
from querykey.pretraining.learner import Learner
from querykey.pretraining.methods.step import StepOutput
from querykey.pretraining.run import Calibration, TrainingRun, build_run, use_layout
from querykey.pretraining.settings.settings import PretrainSettings

__all__ = ["Autotuned", "autotune", "calibrate", "steps_in"]

Layout = Literal["contiguous", "channels_last"]
TRIALS, WARM_UP = 3, 1
STEADY_SECONDS, STEADY_TRIALS = 4.0, 40
BUSY = 0.98
"""Share of the time limit that is planned: the rest is for writing and for other load on the machine."""
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
    processes: ProcessGroup = SINGLE_PROCESS,
) -> Autotuned:
    """Measure whole steps of a run that is thrown away, and choose what resolved settings leave open.

    Args:
        settings: Resolved; precision, layout and the number of steps may be open.
        pixels: All images.
        split_data: Which of them are trained on and which are evaluated.
        device: On which the run trains.
        started_at: `time.monotonic()` at the start of the command: minutes count from then.
        processes: Over which each batch is sliced; the choice of the main process holds for all.

    Returns:
        Complete settings, with what was measured.

    Raises:
        RangeError: If there are fewer images than a batch has, or a process would have fewer than 2 of one.
        DataError: If the processes have not found the same images.
    """
    trial = build_run(settings, pixels, split_data, device=device, processes=processes)
    output = _untrained_output(trial)
    before = time.perf_counter()
    start = trial.evaluate_rows(output)
    evaluation_seconds = time.perf_counter() - before
    calibration = _measure(trial, device)
    steps, per_epoch = settings.steps, trial.images.steps_per_epoch
    if steps is None and settings.epochs is not None:
        steps = max(1, round(settings.epochs * per_epoch))
    elif steps is None:
        assert settings.minutes is not None
        left = 60 * settings.minutes - (time.monotonic() - started_at)
        steps = steps_in(
            left, step=calibration.seconds, evaluation=evaluation_seconds, evaluations=settings.num_evals
        )
        steps = processes.broadcast_object(steps)
    measured = {"precision": calibration.precision, "layout": calibration.layout}
    complete = settings.changed({"steps": steps, "epochs": steps / per_epoch, **measured})
    return Autotuned(complete, calibration, start)


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


def _measure(trial: TrainingRun, device: torch.device) -> Calibration:
    """Seconds of steps in the middle of a run, with a full dictionary."""
    settings, learners = trial.settings, dict[str, Learner]()
    trial.learner.fill_()
    batches, step = trial.images.walk(0, sys.maxsize), TRIAL_STEPS // 2

    def take(precision: torch.dtype, layout: Layout) -> None:
        nonlocal step
        name: Literal["float32", "bfloat16"] = "bfloat16" if precision == torch.bfloat16 else "float32"
        if name not in learners:
            # learning rate 0: the step costs the same, and too high a rate breaks the run, not the trial
            changed = settings.changed(
                {"precision": name, "optimizer.learning_rate": 0.0, "steps": TRIAL_STEPS}
            )
            learners[name] = trial.learner.with_settings(changed)
        use_layout(trial, layout)
        learners[name].training_step(step, next(batches))
        step += 1

    found = calibrate(
        take,
        precision=settings.precision,
        layout=settings.layout,
        device=device,
        is_length_open=settings.steps is None and settings.epochs is None,
        processes=trial.learner.processes,
        question=_question(trial, device),
    )
    batches.close()
    return found


def _question(trial: TrainingRun, device: torch.device) -> dict[str, Any]:
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
        "images": [trial.images.pixels.channels, settings.image_size],
        "asked": [settings.precision, settings.layout],
    }


def calibrate(
    step: Callable[[torch.dtype, Layout], None],
    *,
    precision: Literal["auto", "float32", "bfloat16"],
    layout: Literal["auto", "contiguous", "channels_last"],
    device: torch.device,
    is_length_open: bool = True,
    processes: ProcessGroup = SINGLE_PROCESS,
    question: Mapping[str, Any] | None = None,
) -> Calibration:
    """Measure whole steps, and choose the fastest precision and layout.

    A choice changes bits. It is measured once a machine: the next run with the same question takes it from
    the cache (`querykey.io.measured`), whatever the load.

    Args:
        step: Takes one step with this precision and layout, of a run that is thrown away.
        precision: "auto" tries bfloat16 if the device multiplies it faster than float32.
        layout: "auto" tries both.
        device: On which steps run.
        is_length_open: Whether the number of steps follows from the measured time; then more steps are
            measured.
        processes: That take each step together; the times and the cache of the main process hold for all.
        question: What the choice depends on; None: it is measured anew.

    Returns:
        The choice: float32 and contiguous, or what takes 15% less time a step.
    """
    is_open = question is not None and "auto" in (precision, layout)
    known = processes.broadcast_object(_recalled(question) if is_open and processes.is_main_process else None)
    if known is not None:
        chosen, order, tried = known
        steady = _seconds(lambda: step(_DTYPES[chosen], order), device, processes)
    else:
        chosen, order, tried = _fastest(step, precision, layout, device, processes)
        steady = tried[f"{chosen} {order}"]
        if is_open and processes.is_main_process:
            remember(question or {}, [chosen, order, tried])
    if is_length_open:
        steady = _steady(lambda: step(_DTYPES[chosen], order), device, processes)
    return Calibration(chosen, order, steady, tried)


Choice = tuple[Literal["float32", "bfloat16"], Layout, dict[str, float]]


def _recalled(question: Mapping[str, Any] | None) -> Choice | None:
    """The choice that was measured before; None where there is none of this form."""
    match recall(question or {}):
        case ["float32" | "bfloat16" as precision, "contiguous" | "channels_last" as layout, dict(tried)]:
            return precision, layout, tried
    return None


def _fastest(
    step: Callable[[torch.dtype, Layout], None],
    precision: Literal["auto", "float32", "bfloat16"],
    layout: Literal["auto", "contiguous", "channels_last"],
    device: torch.device,
    processes: ProcessGroup,
) -> Choice:
    """The first of the choices that a later one does not clearly beat, with the seconds of each."""
    precisions: list[Literal["float32", "bfloat16"]] = [precision] if precision != "auto" else ["float32"]
    if precision == "auto" and processes.broadcast_object(_has_fast_bfloat16(device)):
        precisions.append("bfloat16")
    layouts: list[Layout] = ["contiguous", "channels_last"] if layout == "auto" else [layout]
    tried: dict[str, float] = {}
    best: tuple[float, Literal["float32", "bfloat16"], Layout] | None = None
    for kind in precisions:
        for order in layouts:
            seconds = _seconds(lambda k=kind, o=order: step(_DTYPES[k], o), device, processes)  # type: ignore[misc]
            tried[f"{kind} {order}"] = seconds
            if best is None or seconds < CLEARLY_FASTER * best[0]:
                best = (seconds, kind, order)
    assert best is not None
    return best[1], best[2], tried


def steps_in(seconds: float, *, step: float, evaluation: float, evaluations: int) -> int:
    """The number of steps that fit into a time limit, at least 1.

    Args:
        seconds: The time limit.
        step: Seconds of a step.
        evaluation: Seconds of an evaluation.
        evaluations: Number of evaluations.

    Returns:
        Steps.
    """
    return max(1, int((BUSY * seconds - evaluation * evaluations) / step))


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _seconds(step: Callable[[], None], device: torch.device, processes: ProcessGroup) -> float:
    for _ in range(WARM_UP):
        step()
    return statistics.median(processes.broadcast_object(_time(step, device)) for _ in range(TRIALS))


def _steady(step: Callable[[], None], device: torch.device, processes: ProcessGroup) -> float:
    """The mean of as many steps as it takes to average out noise."""
    times: list[float] = []
    while sum(times) < STEADY_SECONDS and len(times) < STEADY_TRIALS:
        times.append(processes.broadcast_object(_time(step, device)))
    return statistics.mean(sorted(times)[: max(1, round(0.9 * len(times)))])


def _time(step: Callable[[], None], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a product of matrices is faster in bfloat16: without the hardware it is 100 times slower."""
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(256, 256, dtype=dtype, device=device)
        products[dtype] = min(_time(lambda s=square: s @ s, device) for _ in range(3))  # type: ignore[misc]
    return products[torch.bfloat16] < products[torch.float32]

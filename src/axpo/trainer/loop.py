"""The loop. Supervised fine-tuning, GRPO and AXPO are this function with other rows."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from axpo.diagnostics.health import Alarm, HealthMonitor
from axpo.diagnostics.recorder import RunRecorder
from axpo.errors import AlarmError, StorageError, WeightSyncError
from axpo.trainer.checkpoint import TrainerState, save_checkpoint
from axpo.trainer.config import Config
from axpo.trainer.interrupts import Interrupts
from axpo.trainer.policy import Policy
from axpo.trainer.sources import Lines, RowSource
from axpo.trainer.step import Metrics, train_step
from axpo.trainer.weight_sync import WeightSync

BEST_METRIC = "eval/pass@1"
"""The checkpoint with the highest value is `best`."""

Evaluate = Callable[[int], tuple[Metrics, Lines]]


class Observer(Protocol):
    """Watches a run, for people or trackers; has no say in it."""

    def on_start(self, step: int) -> None:
        """Before anything of step `step`."""
        ...

    def on_step(self, step: int, metrics: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
        """After step `step` was recorded."""
        ...

    def on_eval(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After the evaluation behind step `step` was recorded."""
        ...

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint is complete."""
        ...


class Observers:
    """Several observers as one, told in the order given."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def on_start(self, step: int) -> None:
        """Before anything of step `step`."""
        for observer in self._observers:
            observer.on_start(step)

    def on_step(self, step: int, metrics: Mapping[str, Any], alarms: Sequence[Alarm]) -> None:
        """After step `step` was recorded."""
        for observer in self._observers:
            observer.on_step(step, metrics, alarms)

    def on_eval(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After the evaluation behind step `step` was recorded."""
        for observer in self._observers:
            observer.on_eval(step, metrics)

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint is complete."""
        for observer in self._observers:
            observer.on_checkpoint(step, path)


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything `train` needs, wired by the command line or by hand."""

    config: Config
    policy: Policy
    optimizer: Optimizer
    source: RowSource[Any]
    sync: WeightSync | None
    """None: nothing samples (supervised fine-tuning without evaluation)."""
    evaluate: Evaluate | None
    """Metrics and records of an evaluation behind step n; None without held-out questions."""
    recorder: RunRecorder
    observer: Observer
    checkpoints: Path
    state: TrainerState = field(default_factory=TrainerState)
    interrupts: Interrupts = field(default_factory=Interrupts)
    """Signals that end the run; the command line listens to them, a library user decides."""
    health: HealthMonitor = field(default_factory=HealthMonitor)
    """What raises alarms; it has been given the metrics of the steps before."""


def train(run: Run) -> TrainerState:
    """Train from `run.state` to the last step. Every step is a function of the weights, the seed and its number.

    Whatever ends it early leaves a checkpoint of the last finished step, unless the weights are already beyond it. A
    signal that `run.interrupts` hears does not cut an update, a record or a checkpoint short.

    Raises `AlarmError`, after a checkpoint, when an alarm of `train.stop_on` stands; `WeightSyncError`, after the step
    was recorded, when the engine does not run the weights it was given; `StorageError` when a file cannot be written.
    """
    config, state = run.config, run.state
    saved, has_weights_of_state = state, True
    try:
        if run.sync is not None and (run.source.needs_engine or state.is_eval_pending):
            run.sync.push(state.step)
        if state.is_eval_pending:
            state = _evaluate(run, state)
            saved = _save(run, state)
        for step in range(state.step + 1, config.train.steps + 1):
            run.observer.on_start(step)
            metrics: Metrics = {}
            fault: WeightSyncError | None = None
            started_s = time.perf_counter()
            data = run.source.collect(step)  # (1) sample siblings, (2) plan, (3) sample continuations
            with run.interrupts.hold():
                has_weights_of_state = False
                rows = run.source.assign_credit(data)  # (4) advantages, (5) credit per token
                with timed(metrics, "seconds/train"):  # (6) batches, (7) losses, (8) update
                    metrics |= train_step(
                        run.policy,
                        run.optimizer,
                        rows,
                        config=config,
                        step=step,
                        num_questions=run.source.items_per_step,
                    )
                if run.sync is not None and (run.source.needs_engine or _is_eval_due(run, step)):
                    with timed(metrics, "seconds/sync"):
                        fault = _push(run.sync, step, metrics)
                metrics["seconds/step"] = time.perf_counter() - started_s
                collected, lines = run.source.describe(data, rows)
                metrics |= {**collected, "memory/peak_bytes": peak_memory_bytes()}
                alarms = run.health.observe({"step": step, **metrics})  # (9)
                metrics |= run.health.metrics()
                run.recorder.record_step(step, metrics, lines)
                run.observer.on_step(step, metrics, alarms)
                fatal = [alarm for alarm in alarms if alarm.name in config.train.stop_on]
                if fault is not None and not fatal:
                    raise fault
                is_eval_pending = fault is None and _is_eval_due(run, step)
                state = dataclasses.replace(state, step=step, is_eval_pending=is_eval_pending)
                has_weights_of_state = True
            if state.is_eval_pending:
                state = _evaluate(run, state)
            is_last = step == config.train.steps
            if fatal or is_last or step % config.train.save_every == 0 or state.best_step == step:
                saved = _save(run, state)
            if fatal:
                raise AlarmError(_describe(fatal)) from fault
    except StorageError:  # nothing more can be written
        raise
    except (KeyboardInterrupt, Exception):
        if has_weights_of_state and state != saved:
            _save(run, state)
        raise
    return state


def _save(run: Run, state: TrainerState) -> TrainerState:
    """Save a checkpoint of `state`, which is returned."""
    with run.interrupts.hold():
        path = save_checkpoint(run.checkpoints, policy=run.policy, optimizer=run.optimizer, state=state)
        run.observer.on_checkpoint(state.step, path)
    return state


@contextlib.contextmanager
def timed(metrics: Metrics, name: str) -> Generator[None]:
    """Put the wall-clock seconds of the block into `metrics[name]`."""
    started_s = time.perf_counter()
    yield
    metrics[name] = time.perf_counter() - started_s


def peak_memory_bytes() -> int:
    """Most memory this process has held so far: the GPU's when one was used, else resident memory."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _is_eval_due(run: Run, step: int) -> bool:
    every = run.config.train.eval_every
    is_last = step == run.config.train.steps
    return run.evaluate is not None and (is_last or (every > 0 and step % every == 0))


def _evaluate(run: Run, state: TrainerState) -> TrainerState:
    """Evaluate behind `state.step` and remember the best score."""
    assert run.evaluate is not None
    metrics: Metrics = {}
    with timed(metrics, "seconds/eval"):
        found, lines = run.evaluate(state.step)
    metrics |= found
    state = dataclasses.replace(state, is_eval_pending=False)
    score = metrics.get(BEST_METRIC)
    if score is not None and (state.best_score is None or score > state.best_score):
        state = dataclasses.replace(state, best_step=state.step, best_score=float(score))
    run.recorder.record_eval(state.step, metrics, lines)
    run.observer.on_eval(state.step, metrics)
    return state


def _push(sync: WeightSync, step: int, metrics: Metrics) -> WeightSyncError | None:
    """Hand over the weights; a fault waits until the step, which it says something about, is recorded."""
    fault: WeightSyncError | None = None
    try:
        metrics["sync/canary_gap"] = sync.push(step)
    except WeightSyncError as error:
        fault, metrics["sync/canary_gap"] = error, error.gap
    metrics["sync/failed"] = int(fault is not None)
    return fault


def _describe(fatal: Sequence[Alarm]) -> str:
    lines = [f"alarm {alarm.name} at step {alarm.step}: {alarm.text} {alarm.advice}" for alarm in fatal]
    names = ", ".join(alarm.name for alarm in fatal)
    return "\n".join(
        [
            *lines,
            f"The run stopped with a checkpoint: train.stop_on names {names}. Resumed, it stops again while that "
            "stands, unless train.stop_on is another (--train.stop_on '' for none).",
        ]
    )

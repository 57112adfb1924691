"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    num_steps: int,
    peak: float,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
    warmup_steps: int = 0,
) -> float:
    """Learning rate of `step`, counted from 1.

    Warm-up rises linearly to `peak`, which step `warmup_steps` reaches; `linear` and `cosine` then fall towards the
    zero that step `num_steps + 1` would have, so that no step is wasted on a rate of zero.

    >>> [learning_rate(step, num_steps=4, peak=8.0, schedule="linear", warmup_steps=2) for step in (1, 2, 3, 4)]
    [4.0, 8.0, 8.0, 4.0]
    """
    if step < 1:
        raise ValueError(f"learning_rate: steps count from 1, got {step}")
    if step <= warmup_steps:
        return peak * (step / warmup_steps)
    done = (step - warmup_steps - 1) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - done)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return peak

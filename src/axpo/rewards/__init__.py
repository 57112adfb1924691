"""Binary rewards: 1.0 right, 0.0 wrong. A reward is any callable that fits `axpo.protocols.RewardFn`.

The rewards here never raise on what a model wrote, and take bounded time on it.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any, cast

from axpo.errors import ConfigError
from axpo.protocols import RewardFn
from axpo.rewards.choice import choice_reward
from axpo.rewards.math import math_reward
from axpo.rewards.text import text_reward
from axpo.types import Problem

REWARDS: dict[str, RewardFn] = {"text": text_reward, "choice": choice_reward, "math": math_reward}
"""By `Problem.answer_kind`."""


def checked(function: Callable[..., Any], name: str) -> RewardFn:
    """A user's reward function with its result validated: 0 or 1, as bool, int, float or a scalar of an array library.

    Raises `ConfigError`, here when the function cannot be called with `(final_text, problem)`, and at a call when it
    raises or returns anything else.
    """
    try:
        inspect.signature(function).bind("final text", cast("Problem", None))
    except TypeError as error:
        raise ConfigError(
            f"reward {name}: must be callable as f(final_text, problem), but {error}. Change its parameters."
        ) from error

    def reward(final_text: str, problem: Problem) -> float:
        try:
            result = function(final_text, problem)
        except Exception as error:
            raise ConfigError(
                f"reward {name}: raised {type(error).__name__} on problem {problem.id}: {error}. "
                "A reward has to give 0 for every text it cannot judge."
            ) from error
        value = _to_scalar(result)
        if not isinstance(value, numbers.Real) or value not in (0, 1):
            raise ConfigError(
                f"reward {name}: must return 0 or 1 (or a bool), got {result!r:.80} of type {type(result).__name__} "
                f"on problem {problem.id}. AXPO decides on right or wrong: apply a threshold."
            )
        return float(value)

    reward.__name__ = name
    return reward


def _to_scalar(value: Any) -> Any:
    """The Python number in a scalar of numpy or torch; anything else as it is."""
    if getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    return value.item()


__all__ = ["REWARDS", "checked", "choice_reward", "math_reward", "text_reward"]

"""What is named in a configuration: a literal table for what ships, `module:attribute` for what is the user's own."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from axpo.errors import ConfigError, DataError
from axpo.protocols import RewardFn, Tool
from axpo.rewards import REWARDS, checked
from axpo.types import Problem


def build_reward(name: str | None) -> Callable[[Problem], RewardFn]:
    """Which reward judges a question: the user's own for all, else the one of its `answer_kind`."""
    if name is not None:
        own = checked(import_object(name, option="data.reward"), name)
        return lambda problem: own

    def reward_for(problem: Problem) -> RewardFn:
        if problem.answer_kind not in REWARDS:
            raise DataError(
                f"question {problem.id}: answer_kind {problem.answer_kind!r} has no reward; there are "
                f"{', '.join(REWARDS)}. Change it, or set data.reward to your own function."
            )
        return REWARDS[problem.answer_kind]

    return reward_for


def import_object(name: str, *, option: str) -> Any:
    """What `module:attribute` names, looked for in the current directory first. Raises `ConfigError`."""
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ConfigError(f"{option}: {name!r} is not of the form module:attribute.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"{option}: {name}: importing {module_name} failed: {error}.") from error
        raise ConfigError(
            f"{option}: {name}: there is no module {error.name}, neither in {Path.cwd()} nor among installed packages."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{option}: {name}: importing {module_name} failed: {type(error).__name__}: {error}."
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{option}: {name}: {module_name} has no {attribute!r}{_nearest(part, dir(found))}.")
        found = getattr(found, part)
    if not callable(found) and not isinstance(found, Tool):
        raise ConfigError(f"{option}: {name} is of type {type(found).__name__}; expected something that can be called.")
    return found


def _nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""

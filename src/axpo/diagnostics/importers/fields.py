"""What every importer shares: names of fields, and values read with suspicion (a dump is somebody else's JSON)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from axpo.diagnostics.importers.dialogue import (
    Heard,
    as_message,
    prompt_key,
    read_messages,
    read_text,
    split_prompt,
)
from axpo.diagnostics.importers.problems import plain
from axpo.diagnostics.importers.seen import SeenRollout

Row = Mapping[str, Any]
Names = Mapping[str, tuple[str, ...]]
"""Our name of a field -> names it may have in a row, the first present one counts; a dot goes into an object."""
Verdicts = Mapping[tuple[str, int], float]
"""Reward by question and sample, where a format keeps it in another file."""

MAX_COUNT = 2**53
"""Lengths and counts above are nonsense."""
MAX_REWARD = 1e9
"""Rewards above, whatever their sign, are nonsense; sums of squares must stay finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a file tells about all its rows."""

    step: int | None = None
    """From its name; a step in the row comes first."""
    verdicts: Verdicts = field(default_factory=dict[tuple[str, int], float])
    counts_tokens: bool = False
    """Its rows say how many tokens a response has; one that does not has no length."""


Read = Callable[[Row, Names, Origin], Iterable[SeenRollout]]
Matches = Callable[[Row, Names], bool]
Resolve = Callable[[Sequence[Row], Names], tuple[Names, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How rows of one trainer or harness become rollouts."""

    name: str
    title: str
    names: Names
    """Its fields that `--map` can rename."""
    matches: Matches
    read: Read
    """Raises `ValueError` or `TypeError` on a row that is none."""
    length_unit: Literal["tokens", "characters"] = "characters"
    """Where the rows of a dump have a field with the length, that is in tokens."""
    records_continuations: bool = False
    """Resampled continuations would be there if there were any."""
    resolve: Resolve | None = None
    """Settles what only several rows tell, such as which columns are rewards; a sentence says what was chosen."""


def pick(row: Row, names: Names, name: str) -> Any:
    """The first value under any of the names that is not None."""
    for key in names.get(name, ()):
        value = row.get(key)
        if value is None and "." in key:
            value = _descend(row, key)
        if value is not None:
            return value
    return None


def has(row: Row, names: Names, *required: str) -> bool:
    """Whether each of the fields has a value."""
    return all(pick(row, names, name) is not None for name in required)


def read_reward(value: Any) -> float | None:
    """A number; None or NaN say "not scored". Raises `TypeError` or `ValueError` on what is no reward."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        scored = cast("Mapping[str, Any]", value)
        if "score" not in scored:
            raise TypeError(
                f"the reward is an object with {sorted(map(str, scored))[:5]}: name one with --map reward=reward.KEY"
            )
        return read_reward(scored["score"])
    if isinstance(value, str):
        value = float(value)
    if not isinstance(value, (int, float)):
        raise TypeError(f"the reward is {type(value).__name__}, expected a number")
    number = float(value)
    if math.isinf(number) or abs(number) > MAX_REWARD:
        raise ValueError(f"the reward {number:g} is beyond {MAX_REWARD:g}")
    return None if math.isnan(number) else number


def sum_rewards(value: Any) -> float | None:
    """The sum of a list of rewards (one per token or turn), or the reward itself; see `read_reward`."""
    if not isinstance(value, list):
        return read_reward(value)
    parts = [read_reward(part) for part in cast("list[Any]", value)]
    known = [part for part in parts if part is not None]
    return read_reward(sum(known)) if known else None


def read_count(value: Any) -> int | None:
    """A whole number of at least zero, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_COUNT:
        return None
    return int(value)


def read_flag(value: Any) -> bool | None:
    """A boolean, else None."""
    return value if isinstance(value, bool) else None


def read_share(value: Any) -> float | None:
    """A number in 0..1, else None."""
    is_share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if is_share else None


def question_key(row: Row, names: Names, prompt: Any) -> str:
    """What tells questions apart: an id, else the prompt together with the reference answer.

    Two questions may have one wording and different pictures; the answer keeps most of those apart.
    """
    given = pick(row, names, "question")
    key = key_text(given) if given is not None else key_text(prompt) if prompt is not None else ""
    if not key:
        raise ValueError("nothing tells which question it is about: no id and no prompt")
    return f"{key}\x00{key_text(pick(row, names, 'answer'))}"


def key_text(value: Any) -> str:
    """A text for an id, a prompt, or a list of messages."""
    if isinstance(value, str):
        return value
    return prompt_key(cast("list[Any]", value)) if isinstance(value, list) else "" if value is None else repr(value)


def read_dialogue_row(row: Row, names: Names, origin: Origin) -> tuple[SeenRollout]:
    """A rollout from a row with a response as text or as messages, and the usual fields beside it."""
    prompt, heard = _hear(row, names)
    length = read_count(pick(row, names, "length"))
    turns = read_count(pick(row, names, "turns"))
    step = read_count(pick(row, names, "step"))
    return (
        SeenRollout(
            question=question_key(row, names, prompt),
            step=origin.step if step is None else step,
            reward=read_reward(pick(row, names, "reward")),
            uses_tool=bool(heard.calls),
            calls=tuple(heard.calls),
            num_calls_in_thinking=heard.num_in_thinking,
            is_truncated=read_flag(pick(row, names, "truncated")),
            length=heard.num_chars if length is None and not origin.counts_tokens else length,
            num_turns=heard.num_turns if turns is None else turns,
            confidence=read_share(pick(row, names, "confidence")),
        ),
    )


def _hear(row: Row, names: Names) -> tuple[Any, Heard]:
    """Prompt and dialogue. A response may itself be a list of messages."""
    prompt, response = pick(row, names, "prompt"), pick(row, names, "text")
    if response is None:
        messages = pick(row, names, "messages")
        if not isinstance(messages, list):
            raise TypeError(f"no response: expected one of {', '.join((*names['text'], *names['messages']))}")
        before, after = split_prompt(cast("list[Any]", messages))
        return (list(before) if prompt is None else prompt), _hear_messages(messages, after)
    if isinstance(response, list):
        return prompt, _hear_messages(response, cast("list[Any]", response))
    if not isinstance(response, str):
        raise TypeError(f"the response is {type(response).__name__}, expected text or a list of messages")
    is_open = isinstance(prompt, str) and prompt.rstrip().endswith("<think>")
    return prompt, read_text(response, is_thinking=True if is_open else None)


def _hear_messages(all_messages: list[Any], response: Sequence[Any]) -> Heard:
    """The calls in a response. Raises `ValueError` where no message is the model's: such a rollout says nothing."""
    heard = read_messages(response)
    if all_messages and not heard.num_turns:
        found = (as_message(message).get("role", type(message).__name__) for message in all_messages)
        roles = sorted({plain(str(role), 20) for role in found})
        raise ValueError(
            f"no message has the role assistant; there are {', '.join(roles[:5])}. Rename the roles to system, user, "
            "assistant and tool, or give the response as one text"
        )
    return heard


def _descend(row: Row, path: str) -> Any:
    """The value at a dotted path; a number goes into a list: `resps.0.0`."""
    value: Any = row
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = cast("Mapping[str, Any]", value).get(key)
        elif isinstance(value, list) and key.isdecimal() and len(key) < 10 and int(key) < len(cast("list[Any]", value)):
            value = cast("list[Any]", value)[int(key)]
        else:
            return None
    return value

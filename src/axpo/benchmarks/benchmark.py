"""What a benchmark is: where its rows come from, how a final text is judged, what is reported of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from axpo.dialogue import Verdict
from axpo.types import Message, Problem

Area = Literal["Reasoning", "Perception", "Search", "Own"]
"""`Own`: files of the user's own."""
Preset = Literal["axpo", "full"]
"""`axpo`: the reduced sets of the paper (`docs/benchmarks.md`); `full`: everything published."""

Load = Callable[..., tuple[Problem, ...]]
"""`load(folder, *, preset, store, limit, is_official=False)`: the questions of the published files in `folder`.

`is_official`: ask for the format that the authors read, see `Official`. `limit` keeps that many rows, evenly spaced
over the preset's. Images of kept rows go to `store`, and from there to its folder one by one.
Raises `DataError`.

Each `Problem` carries in its metadata: `benchmark` (name); `cluster` (questions with one label are no independent
evidence); `categories` (one value for each of `Benchmark.breakdowns`); `choices` (texts of the options, where there are
some); `aliases` (further right answers); and what its scorer needs.
"""
Score = Callable[[Problem, str], Verdict]
"""`score(problem, final_text)`: pure, never raises on what a model wrote, bounded time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgePrompt:
    """How a language model is asked to judge an answer."""

    id: str
    """Changes with the wording: it is part of every cached verdict."""
    build: Callable[[Problem, str], tuple[Message, ...]]
    """`build(problem, answer)`: the messages."""
    parse: Callable[[Problem, str], Verdict | None]
    """`parse(problem, reply)`: None when the reply does not keep to the format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """How a benchmark's authors read and judge a reply; `Load` with `is_official` asks for the format they read."""

    score: Score
    leaves_out: str
    """Parts of the authors' evaluation that `--official` does not repeat: "A, B and C", as a sentence ends."""
    needs_judge: bool = False
    """Without a judge the score is a lower bound."""
    reads_all_turns: bool = False
    """`score` is given the thinking and text of every turn instead of the final text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One of the tables' columns."""

    name: str
    title: str
    area: Area
    hub_id: str
    """Of the data set on the Hugging Face hub; empty when it has none."""
    licence: str
    load: Load
    score: Score
    official: Official | None = None
    """The rules that `--official` sets; None for questions that have no authors' rules."""
    judge: JudgePrompt | None = None
    """For answers that no rule decides; None where rules decide all."""
    needs_judge: bool = False
    """Without a judge the score is a lower bound."""
    needs_tool: str | None = None
    """A tool without which the benchmark cannot be answered: `search`."""
    sizes: Mapping[Preset, int] = field(default_factory=lambda: dict[Preset, int]())
    """Questions of each preset as published; a warning tells when the files hold another number."""
    breakdowns: tuple[str, ...] = ()
    """Keys of `categories` that get tables of their own."""


def even_slice(num_rows: int, limit: int | None) -> tuple[int, ...]:
    """Positions of `limit` rows, evenly spaced: files are sorted by topic, so that their first rows are no sample.

    >>> even_slice(10, 4), even_slice(3, None), even_slice(2, 5)
    ((0, 2, 5, 7), (0, 1, 2), (0, 1))
    """
    if limit is None or limit >= num_rows:
        return tuple(range(num_rows))
    return tuple(index * num_rows // limit for index in range(limit))


def folder_of(data: Path, name: str) -> Path:
    """Where a benchmark lies in a folder that holds several: `data/NAME`, else `data` itself."""
    return data / name if (data / name).is_dir() else data

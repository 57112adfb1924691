"""The records of a benchmark's numbers: what `axpo.evaluation.summary` writes and reports read. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from axpo.errors import DataError
from axpo.measures.intervals import UNKNOWN, Interval
from axpo.measures.rates import GroupCounts

Area = Literal["Reasoning", "Perception", "Search", "Own"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkInfo:
    """What the numbers must know of a benchmark."""

    name: str
    title: str
    area: Area
    breakdowns: tuple[str, ...] = ()
    """Keys of `metadata["categories"]` that get tables of their own."""
    needs_judge: bool = False
    """Without a judge the score is a lower bound."""
    needs_tool: str | None = None
    """A tool without which it cannot be answered: part of the name of one that must be offered."""
    preset: str = "axpo"
    expected_size: int | None = None
    """Questions of the preset as published."""
    is_official: bool = False
    """True when the authors' own rules asked for the format and judged."""
    leaves_out: str = ""
    """Parts of the authors' evaluation that it does not repeat."""
    judge: str = ""
    """Model that judged last; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number with its 95% interval."""

    name: str
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How often something happened."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakdownRow:
    """The questions of one category."""

    value: str
    num_questions: int
    measures: tuple[Measure, ...]

    def number(self, name: str) -> Interval:
        """By name; unknown where it was not measured."""
        return _find(self.measures, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """A table over the values of one category key."""

    key: str
    rows: tuple[BreakdownRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """Average and worst case over groups of questions that share a cluster, such as the variants of a DynaMath seed."""

    num_groups: int
    min_size: int
    max_size: int
    """Questions of the smallest and of the largest group: the worst case of groups of different sizes mixes them."""
    average_case: Interval
    """Mean over questions."""
    worst_case: Interval
    """Share of groups all of whose questions are right in one and the same sample, averaged over samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSplit:
    """One tool in a benchmark."""

    name: str
    num_calls: int
    """As the policy wrote them, answered or not."""
    failures: tuple[Count, ...]
    """Answered calls without a result, by kind."""
    share: Interval
    """Rollouts that call it, of all."""
    accuracy: Interval
    """Right rollouts among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelCheck:
    """How much of the pictures reached the model."""

    num_known: int
    """Questions with pictures of which it is known."""
    median_ratio: float
    """Effective pixels over the picture's."""
    scaled_share: Interval
    """Questions of which less than half of the pixels reached the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterCount:
    """One option letter in the multiple-choice questions. Its numbers count independent questions: a cluster is one."""

    letter: str
    num_gold: float
    """Questions in which it is right."""
    num_gold_expected: float
    """The same if every option were right equally often."""
    num_answered: float
    """Questions that the model answers with it; of several samples, the share that does."""
    num_answered_expected: float
    """Questions answered with any letter in which this one is right: how often a perfect model answers with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterTable:
    """How often each option letter is right, and how often the model answers with it."""

    num_questions: int
    """Independent multiple-choice questions."""
    num_answered: int
    """Those with a sample that names an option."""
    letters: tuple[LetterCount, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a benchmark cost in all."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """Of all rollouts added up, as if one ran after the other."""
    cost_usd: float | None
    """None when no price is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkAlarm:
    """Something that makes a number mean less than it seems."""

    name: str
    text: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionResult:
    """Counts over the samples of one question: all that means and comparisons need."""

    problem_id: str
    cluster: str
    num_samples: int
    """Samples asked for; lost ones stay in it, as wrong."""
    num_ended: int
    num_correct: int
    num_tool: int
    """Samples that call a tool."""
    num_tool_correct: int
    pixel_ratio: float | None = None
    """Effective pixels over the picture's; None where unknown."""

    @property
    def counts(self) -> GroupCounts:
        """Counters for the rates of tool use in `axpo.measures.rates`."""
        return GroupCounts(n=self.num_ended, tool=self.num_tool)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSummary:
    """The numbers of one benchmark. The names of `measures` are explained in `axpo.evaluation.summary`."""

    info: BenchmarkInfo
    tools: tuple[str, ...]
    """Offered."""
    judge: str
    """Empty: none."""
    num_questions: int
    num_samples: int
    """n, for each question."""
    num_lost: int
    """Samples without a dialogue; they are wrong and stay in n."""
    num_missing: int
    """Of them, those without a record: the evaluation was not run to its end."""
    measures: tuple[Measure, ...]
    totals: Totals
    rules: tuple[Count, ...]
    """Verdicts by the rule that decided, the most frequent first."""
    num_undecided: int
    """Verdicts that only a judge could have given."""
    num_judge_failed: int
    tool_splits: tuple[ToolSplit, ...]
    breakdowns: tuple[Breakdown, ...]
    rotations: tuple[BreakdownRow, ...]
    """HR-Bench: a row for each rotation of the options, and their mean; empty elsewhere."""
    variants: Variants | None
    """None where every question stands alone."""
    pixels: PixelCheck | None
    """None when nothing is known."""
    letters: LetterTable | None
    """None where no question is multiple choice."""
    alarms: tuple[BenchmarkAlarm, ...]
    questions: tuple[QuestionResult, ...]

    def number(self, name: str) -> Interval:
        """By name; unknown where it was not measured."""
        return _find(self.measures, name)


def check_unique(summaries: tuple[BenchmarkSummary, ...], *, owner: str) -> None:
    """Raise `DataError` when two summaries of `owner` are of one benchmark."""
    names = [summary.info.name for summary in summaries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{owner}: benchmark {twice[0]!r} is there twice. Give each benchmark once.")


def _find(measures: tuple[Measure, ...], name: str) -> Interval:
    return next((measure.interval for measure in measures if measure.name == name), UNKNOWN)

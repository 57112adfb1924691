"""`diagnose`: dumps of anybody's rollouts -> a `Diagnosis`, the record that terminal, JSON and report show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from axpo.diagnostics.gap_sums import DumpSums, StepSums, quantile
from axpo.diagnostics.importers import DumpFile, OpenDump, Problems, SeenRollout, find_dumps, open_dump
from axpo.diagnostics.importers.fields import Format
from axpo.diagnostics.importers.problems import plain
from axpo.diagnostics.recovery import Recovery, forecast
from axpo.errors import ConfigError, DataError
from axpo.measures.rates import RATES
from axpo.measures.sums import Rate, RatioSums, difference

VERSION = 1
"""Of the layout of the JSON."""

MAX_FILES_LISTED = 1000
_PROGRESS_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Of response lengths. Quantiles are read off bins a quarter octave wide, so they are right to 9 %."""

    unit: str
    mean: float | None
    p10: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNumbers:
    """One tool. Intervals are clustered by group, as everywhere."""

    calls: int
    """Answered, failures included."""
    rollouts: int
    """That called it at least once."""
    failures: Mapping[str, int]
    """By `axpo.types.FailureKind`."""
    failure_rate: Rate
    accuracy: Rate
    """Right answers among the rollouts that called it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Numbers of one step, or of all steps together. `rates` are those of `axpo.measures.rates.RATES`."""

    counts: Mapping[str, int]
    rates: Mapping[str, Rate]
    gap: Rate
    """`all_wrong_tool` minus `all_wrong_no_tool`."""
    failures: Mapping[str, int]
    """Answered calls that failed, by kind; calls of unknown tools and unreadable ones included."""
    tools: Mapping[str, ToolNumbers]
    group_sizes: Mapping[str, int]
    """Rollouts in a group -> groups."""
    tool_counts: Mapping[str, int]
    """Tool-using rollouts in a group -> groups (the paper's Fig. 3a)."""
    lengths: Distribution
    turns: Mapping[str, int]
    """Turns -> rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNumbers:
    """One training step."""

    step: int | None
    numbers: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A number of the paper that this dump does not give, and what would."""

    name: str
    why: str
    needed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSummary:
    """A file that was read."""

    path: str
    step: int | None
    num_rollouts: int
    """Continuations included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDiagnosis:
    """One dump: a file, or the files of a directory that differ only in a number."""

    name: str
    format: str
    title: str
    files: tuple[FileSummary, ...]
    """The first `MAX_FILES_LISTED`."""
    num_files: int
    total: Numbers
    steps: tuple[StepNumbers, ...]
    """Ascending; empty when the dump has no steps."""
    tool_use_change: Rate
    """D7: tool-use rate of the last fifth of the steps minus that of the first fifth."""
    recovery: Recovery
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a rate means."""

    title: str
    paper: str
    """D1 to D10 of the paper's section 2 and 5, as `docs/diagnose.md` numbers them; empty when it is none of them."""
    logged_as: str
    """The key of the same number in a run's `metrics.jsonl`; empty when it is not logged."""
    is_share: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All dumps, and what could not be read."""

    version: int
    correct_at: float
    """Rewards from here on count as right."""
    definitions: Mapping[str, Definition]
    """Of `Numbers.rates`, by name."""
    parts: tuple[PartDiagnosis, ...]
    num_malformed: int
    malformed: tuple[str, ...]
    """The first few: place and reason."""
    num_skipped: int
    skipped: tuple[str, ...]
    """The first few files that were not read, with the reason."""


def diagnose(
    paths: Sequence[Path],
    *,
    format: str | None = None,
    mapping: Mapping[str, str] | None = None,
    correct_at: float = 1.0,
    budget_frac: float = 0.25,
    num_continuations: int = 4,
    progress: Callable[[int], None] = lambda count: None,
) -> Diagnosis:
    """Read every dump once.

    Args:
        paths: Files, or directories to search.
        format: A key of `axpo.diagnostics.importers.FORMATS`; None: detected for each file.
        mapping: Our names of fields -> the names in the files.
        correct_at: A rollout is right when its reward reaches this.
        budget_frac: r of the forecast.
        num_continuations: K of the forecast.
        progress: Called now and then with the number of rollouts so far.

    Raises:
        ConfigError: An option is unknown or out of range.
        DataError: A path cannot be read, or no file of all holds rollouts.
    """
    if not 0 <= budget_frac <= 1 or num_continuations < 1:
        raise ConfigError(
            f"diagnose: need a budget of 0..1 and at least one continuation, got {budget_frac}, {num_continuations}"
        )
    problems = Problems()
    parts: dict[tuple[str, str], _Part] = {}
    counter = _Counter(progress)
    for path in paths:
        for file in find_dumps(path, problems):
            dump = _open(file, problems, is_named=path == file.path, format=format, mapping=mapping)
            if dump is not None:
                name = file.dump if path == file.path else f"{path}/{file.dump}"
                key = (name if path != file.path else str(path), dump.format.name)
                part = parts.setdefault(key, _Part(key[0], dump.format, correct_at))
                _read(part, dump, problems, counter, is_named=path == file.path)
    read = [part for part in parts.values() if part.num_rollouts]
    if not read:
        raise DataError(_nothing_found(paths, problems))
    return Diagnosis(
        version=VERSION,
        correct_at=correct_at,
        definitions={
            name: Definition(title=rule.title, paper=rule.paper, logged_as=rule.logged_as, is_share=rule.is_share)
            for name, rule in RATES.items()
        },
        parts=tuple(part.close(budget_frac, num_continuations) for part in read),
        num_malformed=problems.num_malformed,
        malformed=tuple(problems.malformed),
        num_skipped=problems.num_skipped,
        skipped=tuple(problems.skipped),
    )


# -- reading ----------------------------------------------------------------------------------------------------------


class _Counter:
    """Tells of progress every thousand rollouts."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._count = 0

    def __call__(self) -> None:
        self._count += 1
        if self._count % _PROGRESS_ROWS == 0:
            self._tell(self._count)


class _Part:
    """A dump while it is read."""

    def __init__(self, name: str, format: Format, correct_at: float) -> None:
        self.name = name
        self.format = format
        self.sums = DumpSums(correct_at=correct_at)
        self.num_rollouts = 0
        self._correct_at = correct_at
        self._highest_reward: float | None = None
        self._num_files = 0
        self._files: list[FileSummary] = []
        self._notes: list[str] = []

    def add(self, seen: SeenRollout) -> None:
        self.sums.add(seen)
        if seen.reward is not None:
            highest = self._highest_reward
            self._highest_reward = seen.reward if highest is None else max(highest, seen.reward)

    def add_file(self, file: DumpFile, num_rollouts: int, note: str) -> None:
        self.sums.end_file()
        self.num_rollouts += num_rollouts
        self._num_files += 1
        if len(self._files) < MAX_FILES_LISTED:
            summary = FileSummary(path=plain(str(file.path)), step=file.step, num_rollouts=num_rollouts)
            self._files.append(summary)
        if note and note not in self._notes and len(self._notes) < 5:
            self._notes.append(plain(note, 400))

    def close(self, budget_frac: float, num_continuations: int) -> PartDiagnosis:
        sums = self.sums
        total = sums.total()
        unit = self.format.length_unit
        by_step = dict(sorted((step, s) for step, s in sums.steps.items() if step is not None))
        has_steps = bool(by_step)
        planned = {**sums.steps, **({-1: sums.later} if sums.later.counts else {})}
        recovery = forecast(
            {step: s.need for step, s in planned.items()},
            {step: s.counts["rollouts"] for step, s in planned.items()},
            budget_frac=budget_frac,
            num_continuations=num_continuations,
            tool_use_rate=total.rates["tool_use_rate"].estimate,
            successes=total.successes,
        )
        numbers = summarize(total, unit, post=self.format.records_continuations)
        return PartDiagnosis(
            name=plain(self.name),
            format=self.format.name,
            title=self.format.title,
            files=tuple(self._files),
            num_files=self._num_files,
            total=numbers,
            steps=tuple(
                StepNumbers(step=step, numbers=summarize(s, unit, post=self.format.records_continuations))
                for step, s in by_step.items()
            ),
            tool_use_change=_change([s.rates["tool_use_rate"] for s in by_step.values()]),
            recovery=recovery,
            missing=tuple(_missing(numbers, self.format, num_steps=len(by_step))),
            notes=(*self._notes, *self._note_on_rewards(), *_notes(sums, total, has_steps=has_steps)),
        )

    def _note_on_rewards(self) -> Iterable[str]:
        """A warning where no rollout at all is right: more often a threshold or a field than a policy."""
        if self._highest_reward is not None and self._highest_reward < self._correct_at:
            yield (
                f"No reward reaches {self._correct_at:g}, so every rollout counts as wrong; the highest is "
                f"{self._highest_reward:g}. Set --correct-at to the reward of a right answer, or name the field that "
                "says what is right with --map reward=FIELD."
            )


def _open(
    file: DumpFile, problems: Problems, *, is_named: bool, format: str | None, mapping: Mapping[str, str] | None
) -> OpenDump | None:
    """A file of a directory that is no dump is passed over; one that was named has to be one."""
    try:
        return open_dump(file, problems, format=format, mapping=mapping)
    except DataError as error:
        if is_named:
            raise
        problems.add_skipped(file.path, str(error).removeprefix(f"{file.path}: "))
        return None


def _read(part: _Part, dump: OpenDump, problems: Problems, counter: _Counter, *, is_named: bool) -> None:
    num_rollouts = 0
    try:
        for seen in dump.rollouts:
            part.add(seen)
            num_rollouts += 1
            counter()
    except DataError as error:  # the file broke off; what came before counts
        if is_named and not num_rollouts:
            raise
        problems.add_skipped(dump.file.path, str(error).removeprefix(f"{dump.file.path}: "))
    part.add_file(dump.file, num_rollouts, dump.note)


def _nothing_found(paths: Sequence[Path], problems: Problems) -> str:
    where = ", ".join(str(path) for path in paths)
    examples = "; ".join([*problems.malformed[:2], *problems.skipped[:2]])
    found = f" Malformed: {problems.num_malformed}, files passed over: {problems.num_skipped}."
    return (
        f"{where}: no rollouts were found.{found}{f' {examples}' if examples else ''} docs/diagnose.md has the formats."
    )


# -- numbers ----------------------------------------------------------------------------------------------------------


def summarize(sums: StepSums, unit: str, *, post: bool) -> Numbers:
    """Sums as numbers. `post`: the dump records continuations, so rates after resampling mean something."""
    after = {"all_wrong_tool_post", "restore_rate", "restore_rate_all", "reward_resampled"}
    rates = {
        name: (sums.rates[name] if post or name not in after else RatioSums()).rate(is_share=rule.is_share)
        for name, rule in RATES.items()
    }
    bins = sums.length_bins
    return Numbers(
        counts={name: sums.counts[name] for name in _COUNTS},
        rates=rates,
        gap=sums.gap.difference(),
        failures={kind.value: count for kind, count in sorted(sums.failures.items())},
        tools={
            name: ToolNumbers(
                calls=tool.calls,
                rollouts=tool.rollouts,
                failures={kind.value: count for kind, count in sorted(tool.failures.items())},
                failure_rate=tool.failure_rate.rate(is_share=True),
                accuracy=tool.accuracy.rate(is_share=True),
            )
            for name, tool in sorted(sums.tools.items(), key=lambda item: (-item[1].calls, item[0]))
        },
        group_sizes=_histogram(sums.group_sizes),
        tool_counts=_histogram(sums.tool_counts),
        lengths=Distribution(
            unit=unit,
            mean=rates["response_length"].estimate,
            p10=quantile(bins, 0.1, longest=sums.max_length),
            p50=quantile(bins, 0.5, longest=sums.max_length),
            p90=quantile(bins, 0.9, longest=sums.max_length),
            p99=quantile(bins, 0.99, longest=sums.max_length),
            max=sums.max_length,
        ),
        turns=_histogram(sums.turn_counts),
    )


_COUNTS = (
    "rollouts",
    "scored",
    "groups",
    "continuations",
    "orphaned_continuations",
    "triggered",
    "candidates",
    "no_signal_one_sample",
    "no_signal_all_right",
    "no_signal_all_wrong",
)


def _histogram(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(value): counts[value] for value in sorted(counts)}


def _change(by_step: Sequence[RatioSums]) -> Rate:
    """Last fifth minus first fifth; nothing to compare below two steps."""
    size = max(1, len(by_step) // 5)
    first, last = RatioSums(), RatioSums()
    if len(by_step) >= 2:
        for sums in by_step[:size]:
            first.merge(sums)
        for sums in by_step[-size:]:
            last.merge(sums)
    return difference(last, first)


def _missing(numbers: Numbers, format: Format, *, num_steps: int) -> Iterable[Missing]:
    counts, rates = numbers.counts, numbers.rates
    if not counts["scored"]:
        yield Missing(name="D2", why="no rollout has a reward", needed="a reward per rollout, or --map reward=FIELD")
    elif rates["all_wrong_tool"].estimate is None:
        yield Missing(name="D2", why="no scored rollout calls a tool", needed="rollouts of a policy that calls tools")
    yield Missing(
        name="D3",
        why="one continuation per prefix says nothing about how much calls differ",
        needed="the checkpoint: 16 continuations of a failed prefix; same_first_call is the nearest a dump has",
    )
    yield Missing(
        name="D4",
        why="a failed prefix has to be continued to know whether it recovers",
        needed="the checkpoint; `recovery` estimates it from the siblings",
    )
    if not counts["continuations"]:
        why = "nothing was resampled" if format.records_continuations else "the format has no resampled continuations"
        yield Missing(name="D5, D6", why=why, needed="an AXPO run of this package")
    if num_steps < 2:
        yield Missing(name="D7", why="fewer than two steps", needed="rollouts of several training steps")
    if rates["tool_use_rate"].estimate == 0:
        yield Missing(
            name="D9", why="no question was tried with a tool", needed="rollouts of a policy that calls tools"
        )
    yield Missing(
        name="D10",
        why="it compares two policies on the questions that both answer with the same tool",
        needed="two dumps of the same questions; per dump, `tools` has the accuracy of each tool",
    )


def _notes(sums: DumpSums, total: StepSums, *, has_steps: bool) -> Iterable[str]:
    counts = total.counts
    if counts["scored"] < counts["rollouts"]:
        yield (
            f"Rollouts without a reward: {counts['rollouts'] - counts['scored']:,}; they count for tool use, not for "
            "right and wrong."
        )
    if counts["groups"] and total.group_sizes[1] == counts["groups"]:
        yield (
            "Every question has one rollout: nothing can be said within groups. Is the dump deduplicated, or does "
            "--map question=FIELD have to name the question?"
        )
    if counts["orphaned_continuations"]:
        yield f"{counts['orphaned_continuations']:,} continuations stand without their siblings and were left out."
    if sums.num_closed_early:
        yield (
            f"{sums.num_closed_early:,} groups were closed before the end of their file: rollouts of one question that "
            "lie further apart than the groups kept open count as two groups. Order the dump by step."
        )
    if sums.later.counts:
        yield f"Only the first {len(sums.steps):,} steps have numbers of their own."
    if not has_steps:
        yield "The dump has no steps: the forecast takes it as one step."

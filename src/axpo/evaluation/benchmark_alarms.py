"""What makes a benchmark's number mean less than it seems: from its summary to sentences. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from axpo.evaluation.letters import binomial_tail
from axpo.evaluation.scorecard import BenchmarkAlarm, BenchmarkSummary

MAX_SCALED = 0.05
MAX_LOST = 0.02
MAX_TRUNCATED = 0.10
MAX_JUDGE_FAILED = 0.01
MAX_UNDECIDED = 0.05
MIN_LETTER_QUESTIONS = 6
MIN_LETTER_EXCESS = 0.15
"""A letter dominates when its share is that far above the expected one and a binomial test confirms it."""
MAX_LETTER_CHANCE = 0.001
"""Largest p-value of that test: the probability of at least as many questions if the expected share were true."""


def with_alarms(summary: BenchmarkSummary) -> BenchmarkSummary:
    """The summary with the alarms that follow from its numbers."""
    return replace(summary, alarms=tuple(alarm for rule in _RULES if (alarm := rule(summary)) is not None))


def _check_judge(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    if not summary.info.needs_judge or summary.judge:
        return None
    return BenchmarkAlarm(
        name="no_judge",
        text=f"Rules alone cannot decide all answers here and no judge was asked: {summary.num_undecided} verdicts are "
        "open and count as wrong. The score is a lower bound.",
        advice="Name a judge; the dialogues are kept, only the verdicts are made again.",
    )


def _check_needed_tool(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    needed = summary.info.needs_tool
    if needed is None or any(needed in name for name in summary.tools):
        return None
    offered = ", ".join(summary.tools) or "none"
    return BenchmarkAlarm(
        name="missing_tool",
        text=f"The questions need a {needed} tool; offered: {offered}. The score is what the model knows by heart.",
        advice=f"Offer a {needed} tool, or do not compare the score with others.",
    )


def _check_size(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    expected = summary.info.expected_size
    if expected is None or expected == summary.num_questions:
        return None
    return BenchmarkAlarm(
        name="other_size",
        text=f"{summary.num_questions} questions, while the preset {summary.info.preset} has {expected} as published.",
        advice="Compare only with scores on the same questions, or take off the limit and check the data's files.",
    )


def _check_pixels(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    pixels = summary.pixels
    if pixels is None or (pixels.scaled_share.estimate or 0.0) <= MAX_SCALED:
        return None
    return BenchmarkAlarm(
        name="scaled_pictures",
        text=f"Less than half of the pixels reached the model in {_percent(pixels.scaled_share.estimate)} of the "
        f"questions with pictures (median: {_percent(pixels.median_ratio)}). Small things cannot be seen then.",
        advice="Raise the pixel limit of the model or of its server (max_pixels), or say so next to the score. Where "
        "that is intended, as in the mini task, there is nothing to do.",
    )


def _check_lost(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    share = summary.num_lost / (summary.num_questions * summary.num_samples)
    if share <= MAX_LOST:
        return None
    missing = f", {summary.num_missing} of them were never sampled" if summary.num_missing else ""
    return BenchmarkAlarm(
        name="lost_rollouts",
        text=f"{_percent(share)} of the rollouts were lost{missing}. They count as wrong: the score is too low.",
        advice=f"Read `fault` in rollouts/{summary.info.name}.jsonl, then run the same command with --retry-lost.",
    )


def _check_truncated(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    share = summary.number("truncated").estimate or 0.0
    if share <= MAX_TRUNCATED:
        return None
    reasons = {
        measure.name.removeprefix("stop/").replace("_", " "): measure.interval.estimate
        for measure in summary.measures
        if measure.name.startswith("stop/") and measure.name != "stop/answered" and measure.interval.estimate
    }
    parts = ", ".join(f"{name} {_percent(value)}" for name, value in reasons.items())
    return BenchmarkAlarm(
        name="truncated",
        text=f"A limit ended {_percent(share)} of the rollouts ({parts}).",
        advice="Raise that limit, unless the comparison asks for it.",
    )


def _check_unused(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    needed = summary.info.needs_tool
    calls = {split.name: split.num_calls for split in summary.tool_splits}
    if not summary.tools:
        return None
    if not any(calls.values()):
        unused = ", ".join(summary.tools)
    elif needed is not None and not any(count for name, count in calls.items() if needed in name):
        unused = ", ".join(name for name in summary.tools if needed in name)
    else:
        unused = ""
    if not unused:
        return None
    return BenchmarkAlarm(
        name="unused_tool",
        text=f"Offered and never called: {unused}.",
        advice="Read a dialogue: does the prompt describe the tools, does the server's tool parser fit the model?",
    )


def _check_judge_failures(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    return _check_verdicts(
        summary,
        summary.num_judge_failed,
        MAX_JUDGE_FAILED,
        name="judge_failures",
        text="The judge failed on {} of the rollouts. They count as wrong: the score is too low.",
        advice=f"Read the notes in verdicts/{summary.info.name}.jsonl, fix the judge, and run the same command again.",
    )


def _check_undecided(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    if summary.info.needs_judge and not summary.judge:
        return None  # said by `no_judge`
    return _check_verdicts(
        summary,
        summary.num_undecided,
        MAX_UNDECIDED,
        name="undecided",
        text="No rule could decide {} of the rollouts. They count as wrong: the score is a lower bound.",
        advice="Name a judge, or read these answers: the prompt may not ask for the format that the rules read.",
    )


def _check_official(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    if not summary.info.leaves_out:
        return None
    return BenchmarkAlarm(
        name="not_all_official",
        text=f"Prompt format, parsing and judging follow the authors. Not repeated: {summary.info.leaves_out}.",
        advice="Name these differences next to the score.",
    )


def _check_gold_letter(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    table = summary.letters
    if table is None:
        return None
    counts = [(count.letter, count.num_gold, count.num_gold_expected) for count in table.letters]
    found = _find_dominant(counts, table.num_questions)
    if found is None:
        return None
    letter, share, expected = found
    return BenchmarkAlarm(
        name="one_gold_letter",
        text=f"{letter} is the right option in {_percent(share)} of {table.num_questions} multiple-choice questions "
        "(rotations count once); "
        f"with shuffled options it would be in {_percent(expected)}. A model that always answers {letter} scores that.",
        advice="Use data whose options are shuffled, or compare with the score of that constant answer.",
    )


def _check_answer_letter(summary: BenchmarkSummary) -> BenchmarkAlarm | None:
    table = summary.letters
    if table is None:
        return None
    total = table.num_answered + len(table.letters)  # one extra question per letter: no expected share is 0 or 1
    counts = [
        (count.letter, count.num_answered, table.num_answered * (count.num_answered_expected + 1) / total)
        for count in table.letters
    ]
    found = _find_dominant(counts, table.num_answered)
    if found is None:
        return None
    letter, share, _ = found
    right = next(count.num_answered_expected for count in table.letters if count.letter == letter)
    return BenchmarkAlarm(
        name="one_answer_letter",
        text=f"The model answers {letter} in {_percent(share)} of {table.num_answered} multiple-choice questions "
        "(rotations count once); "
        f"it is right in {_percent(right / table.num_answered)} of them.",
        advice="Read a few rollouts: a model that sees no image, or misreads the format, often repeats one letter.",
    )


def _find_dominant(counts: Sequence[tuple[str, float, float]], num_questions: int) -> tuple[str, float, float] | None:
    """The letter whose count exceeds the expected one most, its share and the expected share.

    None where no count is surprising by the binomial test, or none by `MIN_LETTER_EXCESS`.
    """
    if num_questions < MIN_LETTER_QUESTIONS:
        return None
    letter, count, expected = max(counts, key=lambda entry: entry[1] - entry[2])
    share, expected_share = count / num_questions, expected / num_questions
    if share - expected_share < MIN_LETTER_EXCESS:
        return None
    if binomial_tail(count, num_questions, expected_share) > MAX_LETTER_CHANCE:
        return None
    return letter, share, expected_share


def _check_verdicts(
    summary: BenchmarkSummary, count: int, limit: float, *, name: str, text: str, advice: str
) -> BenchmarkAlarm | None:
    share = count / (summary.num_questions * summary.num_samples)
    return BenchmarkAlarm(name=name, text=text.format(_percent(share)), advice=advice) if share > limit else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


_RULES: tuple[Callable[[BenchmarkSummary], BenchmarkAlarm | None], ...] = (
    _check_judge,
    _check_needed_tool,
    _check_size,
    _check_pixels,
    _check_lost,
    _check_truncated,
    _check_unused,
    _check_judge_failures,
    _check_undecided,
    _check_official,
    _check_gold_letter,
    _check_answer_letter,
)

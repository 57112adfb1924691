"""Tables over the categories of a benchmark, its groups of variants, and the rotations of its options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from axpo.evaluation.scorecard import Breakdown, BreakdownRow, Measure, Variants
from axpo.evaluation.tallies import AddendsOf, QuestionTallies, headline
from axpo.measures.estimates import Estimate, Questions, average
from axpo.measures.rates import Addends

ALL = "all"
MEAN = "mean"
NOTHING: Addends = (0.0, 0.0)


def break_down(questions: Sequence[QuestionTallies], key: str) -> Breakdown:
    """Pass@1, Pass@n and tool use of each value of a category, values in their natural order."""
    values = sorted({question.category(key) for question in questions}, key=natural_order)
    named = headline(questions[0].num_samples)
    rows: list[BreakdownRow] = []
    for value in values:
        members = [question for question in questions if question.category(key) == value]
        asked = Questions([question.cluster for question in members])
        estimates = {name: asked.ratio(list(map(addends, members))) for name, addends in named.items()}
        rows.append(BreakdownRow(value=value, num_questions=len(members), measures=_measures(estimates)))
    return Breakdown(key=key, rows=tuple(rows))


def find_variants(questions: Sequence[QuestionTallies]) -> Variants | None:
    """Average and worst case over questions that share a cluster; None when none does.

    DynaMath (arXiv:2411.00836): the average case is the mean over all variants of all seeds, the worst case the share
    of seeds all of whose variants are right. Deviation: with n samples a seed is right in sample s when all its
    variants are right in their sample s, and the share is averaged over s; with n = 1 that is the published number.
    """
    groups: dict[str, list[QuestionTallies]] = {}
    for question in questions:
        groups.setdefault(question.cluster, []).append(question)
    sizes = [len(group) for group in groups.values()]
    if max(sizes) == 1:
        return None
    pass_at_1 = headline(questions[0].num_samples)["pass@1"]
    asked = Questions([question.cluster for question in questions])
    return Variants(
        num_groups=len(groups),
        min_size=min(sizes),
        max_size=max(sizes),
        average_case=asked.ratio(list(map(pass_at_1, questions))).interval,
        worst_case=Questions(list(groups)).ratio(list(map(_worst_case, groups.values()))).interval,
    )


def rotate(questions: Sequence[QuestionTallies]) -> tuple[BreakdownRow, ...]:
    """HR-Bench's table: Pass@1 of each category and of all, for each rotation of the options, and the unweighted mean.

    Empty unless the questions have the categories `rotation` and `category` and there is more than one rotation.
    """
    rotations = sorted({question.category("rotation") for question in questions} - {"–"}, key=natural_order)
    categories = sorted({question.category("category") for question in questions} - {"–"}, key=natural_order)
    if len(rotations) < 2 or not categories:
        return ()
    pass_at_1 = headline(questions[0].num_samples)["pass@1"]
    asked = Questions([question.cluster for question in questions])
    estimates = {
        (rotation, category): asked.ratio([_cell(question, rotation, category, pass_at_1) for question in questions])
        for rotation in rotations
        for category in (*categories, ALL)
    }
    rows = [
        BreakdownRow(
            value=rotation,
            num_questions=sum(question.category("rotation") == rotation for question in questions),
            measures=_measures({name: estimates[rotation, name] for name in (*categories, ALL)}),
        )
        for rotation in rotations
    ]
    means = {name: average([estimates[rotation, name] for rotation in rotations]) for name in (*categories, ALL)}
    mean_row = BreakdownRow(value=MEAN, num_questions=sum(row.num_questions for row in rows), measures=_measures(means))
    return (*rows, mean_row)


def natural_order(value: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key: numbers by their size, other text by its letters.

    >>> sorted(["level 10", "level 9", "algebra"], key=natural_order)
    ['algebra', 'level 9', 'level 10']
    """
    parts = re.split(r"([0-9]{1,9})", value)
    return tuple((0, int(part), "") if index % 2 else (1, 0, part) for index, part in enumerate(parts) if part)


def _cell(question: QuestionTallies, rotation: str, category: str, addends: AddendsOf) -> Addends:
    is_inside = question.category("rotation") == rotation and category in (ALL, question.category("category"))
    return addends(question) if is_inside else NOTHING


def _worst_case(group: Sequence[QuestionTallies]) -> Addends:
    """Samples in which every question of the group is right, of n."""
    right = [{tally.sample for tally in question.tallies if tally.is_correct} for question in group]
    return float(len(set.intersection(*right))), float(group[0].num_samples)


def _measures(estimates: Mapping[str, Estimate]) -> tuple[Measure, ...]:
    return tuple(Measure(name=name, interval=estimate.interval) for name, estimate in estimates.items())

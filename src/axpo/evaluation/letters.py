"""How often each option letter is right and how often the model answers with it, over multiple-choice questions.

A loader that keeps the right option in one place, or a model that always answers with one letter, gives a score that
says nothing about seeing; `axpo.evaluation.benchmark_alarms` tests these counts.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from fractions import Fraction

from axpo.evaluation.scorecard import LetterCount, LetterTable
from axpo.evaluation.tallies import QuestionTallies


def count_letters(questions: Sequence[QuestionTallies]) -> LetterTable | None:
    """The counts; None where no question is multiple choice.

    Questions that share a cluster are no independent evidence: together they count as one question, each letter with
    its mean over them.
    """
    clusters: dict[str, list[QuestionTallies]] = {}
    for question in questions:
        if _gold_letter(question):
            clusters.setdefault(question.cluster, []).append(question)
    answered = [named for group in clusters.values() if (named := [q for q in group if _named(q)])]
    letters = sorted({letter for group in clusters.values() for q in group for letter in _option_letters(q)})
    if not letters:
        return None
    return LetterTable(
        num_questions=len(clusters),
        num_answered=len(answered),
        letters=tuple(
            LetterCount(
                letter=letter,
                num_gold=_total([[_gold_share(q, letter) for q in group] for group in clusters.values()]),
                num_gold_expected=_total([[_chance(q, letter) for q in group] for group in clusters.values()]),
                num_answered=_total([[_answered_share(q, letter) for q in group] for group in answered]),
                num_answered_expected=_total([[_gold_share(q, letter) for q in group] for group in answered]),
            )
            for letter in letters
        ),
    )


def binomial_tail(num_successes: float, num_trials: int, chance: float) -> float:
    """Probability of at least that many successes, rounded down, in independent trials.

    An upper bound as well for trials whose chances differ around that mean, and for trials that succeed in part
    (Hoeffding 1956, 1963), so that a test with it errs on the quiet side.

    >>> binomial_tail(2, 2, 0.25), binomial_tail(0, 9, 0.1), binomial_tail(1, 1, 1.0)
    (0.0625, 1.0, 1.0)
    """
    if num_successes < 1 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    least = math.floor(num_successes + 1e-9)  # it may be a whole number that was rounded down
    logs = (
        math.lgamma(num_trials + 1)
        - math.lgamma(count + 1)
        - math.lgamma(num_trials - count + 1)
        + count * math.log(chance)
        + (num_trials - count) * math.log1p(-chance)
        for count in range(least, num_trials + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def _choices(question: QuestionTallies) -> tuple[str, ...]:
    return tuple(str(choice) for choice in question.problem.metadata.get("choices") or ())


def _option_letters(question: QuestionTallies) -> str:
    return string.ascii_uppercase[: len(_choices(question))]


def _gold_letter(question: QuestionTallies) -> str | None:
    """The right option of a multiple-choice question, which its answer names by letter or by text; None elsewhere."""
    gold, letters, choices = question.problem.answer.strip(), _option_letters(question), _choices(question)
    if choices.count(gold) == 1:
        return letters[choices.index(gold) :][:1] or None
    letter = gold.strip("().").upper()
    return letter if len(letter) == 1 and letter in letters else None


def _named(question: QuestionTallies) -> list[str]:
    """The options that the samples name."""
    return [judged.verdict.letter for judged in question.rollouts if judged.verdict.letter is not None]


def _gold_share(question: QuestionTallies, letter: str) -> Fraction:
    return Fraction(_gold_letter(question) == letter)


def _chance(question: QuestionTallies, letter: str) -> Fraction:
    letters = _option_letters(question)
    return Fraction(letter in letters, len(letters))


def _answered_share(question: QuestionTallies, letter: str) -> Fraction:
    named = _named(question)
    return Fraction(named.count(letter), len(named))


def _total(shares_by_cluster: Sequence[Sequence[Fraction]]) -> float:
    """The sum over clusters of the mean share in each; exact, so that no order of questions changes it."""
    return float(sum((sum(shares, Fraction()) / len(shares) for shares in shares_by_cluster), Fraction()))

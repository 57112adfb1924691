"""VisualProbe and HR-MMSearch: a short free answer that is the same after normalisation, else a judge's matter."""

from __future__ import annotations

import re
import string

from axpo.benchmarks.scorers.reading import (
    block_or_all,
    no_answer,
    same_answer_rule,
    undecided,
)
from axpo.dialogue import Verdict
from axpo.rewards.answers import extract_answer, gold_answers
from axpo.types import Problem

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def score(problem: Problem, final_text: str) -> Verdict:
    """The same as one of the right answers after normalisation.

    Rules: `exact`, `number`, `no_answer`; else `undecided`.
    """
    answer, extraction = extract_answer(final_text)
    if answer is None:
        return no_answer(extraction)
    for gold in gold_answers(problem):
        rule = same_answer_rule(gold, answer)
        if rule is not None:
            return Verdict(is_correct=True, rule=rule, answer=answer, extraction=extraction)
    return undecided(answer, extraction)


def score_visualprobe_official(problem: Problem, text: str) -> Verdict:
    """The first complete answer block of the thinking and text of all turns, which a judge decides on.

    Wrong without a block (`no_answer_tag`) and with an empty one (`no_answer`).
    """
    _, _, rest = text.partition("<answer>")
    block, closing, _ = rest.partition("</answer>")
    if not closing:
        return Verdict(is_correct=False, rule="no_answer_tag")
    return undecided(block.strip(), "first_answer_tag") if block.strip() else no_answer("first_answer_tag")


def score_hrmmsearch_official(problem: Problem, final_text: str) -> Verdict:
    """The last answer block, else all that follows the thinking, equal to a right answer in SQuAD's normal form.

    Rules: `exact`, `no_answer`; else `undecided`.
    """
    answer, extraction = block_or_all(final_text)
    if answer is None:
        return no_answer(extraction)
    wanted = squad_form(answer)
    if any(squad_form(gold) == wanted for gold in gold_answers(problem)):
        return Verdict(is_correct=True, rule="exact", answer=answer, extraction=extraction)
    return undecided(answer, extraction)


def squad_form(text: str) -> str:
    """SQuAD's normal form (arXiv:1606.05250): lower case, no ASCII punctuation, no articles, single spaces.

    Punctuation inside numbers goes too: 3.5 and 35 have one form.

    >>> squad_form("The  Queen's Gambit, a series")
    'queens gambit series'
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())

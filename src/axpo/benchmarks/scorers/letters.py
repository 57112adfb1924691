"""V* and HR-Bench: the letter of an option, or its text."""

from __future__ import annotations

import re

from axpo.benchmarks.scorers.reading import MAX_ANSWER_CHARS, no_answer, undecided
from axpo.dialogue import Verdict
from axpo.rewards.choice import extract_choice, read_letter
from axpo.types import Problem

_STATEMENT = re.compile(r"\b(?:answer|option|choice)\s?(?:is\b|:)[\s:*]{0,4}", re.IGNORECASE)


def score(problem: Problem, final_text: str) -> Verdict:
    """A letter among the item's own options, or the text of exactly one of them.

    Rules: `letter`, `option_text`, `no_such_option` (a letter beyond the options), `no_answer`; else `undecided`.
    """
    choices = option_texts(problem)
    answer, extraction = extract_choice(final_text, choices)
    if answer is None:
        return no_answer(extraction)
    letter = _letter(answer, choices)
    if letter is not None:
        return _decided(problem, letter, _rule(answer, letter), answer, extraction)
    stranger = _letter(answer, ())
    if stranger is not None and stranger not in _letters(choices):
        return Verdict(is_correct=False, rule="no_such_option", answer=answer, extraction=extraction)
    return undecided(answer, extraction)


def score_vstar_official(problem: Problem, final_text: str) -> Verdict:
    """The letter alone, whatever the number of options; anything else is wrong. Rules: `letter`, `no_letter`."""
    answer, extraction = extract_choice(final_text)
    if answer is None:
        return no_answer(extraction)
    letter = _letter(answer, ())
    if letter is None:
        return Verdict(is_correct=False, rule="no_letter", answer=answer, extraction=extraction)
    return _decided(problem, letter, "letter", answer, extraction)


def score_hrbench_official(problem: Problem, final_text: str) -> Verdict:
    """A letter, else the one option whose text occurs in the answer; else a model matches answer and options.

    Rules: `letter`, `option_text`, `no_answer`; else `undecided`.
    """
    choices = option_texts(problem)
    answer, extraction = extract_choice(final_text, choices)
    if answer is None:
        return no_answer(extraction)
    letter = _letter(answer, choices) or _contained_option(answer, choices)
    if letter is None:
        return undecided(answer, extraction)
    return _decided(problem, letter, _rule(answer, letter), answer, extraction)


def option_texts(problem: Problem) -> tuple[str, ...]:
    """The texts of the options, A first."""
    return tuple(str(choice) for choice in problem.metadata.get("choices") or ())


def gold_letter(problem: Problem) -> str:
    """The letter of the right option."""
    return problem.answer.strip().strip("().").upper()


def _decided(problem: Problem, letter: str, rule: str, answer: str, extraction: str) -> Verdict:
    is_correct = letter == gold_letter(problem)
    return Verdict(is_correct=is_correct, rule=rule, answer=answer, extraction=extraction, letter=letter)


def _letter(answer: str, choices: tuple[str, ...]) -> str | None:
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    letter = read_letter(answer, choices) or _literal_option(answer, choices)
    if letter is not None:
        return letter
    ends = [statement.end() for statement in _STATEMENT.finditer(answer)]
    return read_letter(answer[ends[-1] :], choices) if ends else None


def _letters(choices: tuple[str, ...]) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices) or 26]


def _rule(answer: str, letter: str) -> str:
    return "letter" if _letter(answer, ()) == letter else "option_text"


def _literal_option(answer: str, choices: tuple[str, ...]) -> str | None:
    """The one option that the answer repeats sign for sign: a formula, or a letter that is no option's letter."""
    found = [index for index, choice in enumerate(choices) if _signs(choice) == _signs(answer)]
    return _letters(choices)[found[0]] if len(found) == 1 else None


def _signs(text: str) -> str:
    return "".join(text.casefold().split()).strip("$.*")


def _contained_option(answer: str, choices: tuple[str, ...]) -> str | None:
    found = [index for index, choice in enumerate(choices) if choice and choice.casefold() in answer.casefold()]
    return _letters(choices)[found[0]] if len(found) == 1 else None

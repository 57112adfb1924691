r"""Math-VR: every part that the question asks for must be right, in the question's order.

Parts are read from one answer ("(1) 5; (2) x = 3"), from as many boxes as there are parts, or from lines that begin
with a part's label. Each is compared with its right answer as mathematics (`axpo.rewards.math`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from axpo.benchmarks.scorers.reading import MAX_ANSWER_CHARS, no_answer, undecided
from axpo.dialogue import Verdict
from axpo.rewards.answers import extract_answer, last_box, visible_text
from axpo.rewards.choice import read_letter
from axpo.rewards.math import MAX_ANSWER_CHARS as MAX_PART_CHARS
from axpo.rewards.math import is_equal_math
from axpo.types import Problem

MAX_PARTS = 20
MAX_ALTERNATIVES = 4

_CIRCLED = "①②③④⑤⑥⑦⑧⑨"
_NUMBER = "[1-9]|1[0-9]|20|[a-h]"
_LABEL = re.compile(
    rf"(?:(?:part|question|q)\s?(?:(?P<named>{_NUMBER})(?![\w.])|[(\[](?P<in_name>{_NUMBER})[)\]])"
    rf"|[(\[（](?P<round>{_NUMBER})[)\]）]"
    rf"|(?P<bare>{_NUMBER})[).](?=\s)"  # no colon: 2: 3 is a ratio
    rf"|(?P<circled>[{_CIRCLED}]))\s?[:：.)]?\s?",
    re.IGNORECASE,
)
_LINE_DECORATION = " \t*#->•"
_TOKEN = re.compile(r"\\boxed\s{0,8}\{|\\[{}]|[{}]")
_OR = re.compile(r"\s(?:or|OR)\s|\\text\s?\{\s?or\s?\}|或")
_JOINED_BY_OR = re.compile(r"[\s$.,;*]{0,8}(?:or|OR|或)[\s$.,;*]{0,8}")
_LETTER_GOLD = re.compile(r"[A-H]")
_OPENING, _CLOSING = "([{", ")]}"


def score(problem: Problem, final_text: str) -> Verdict:
    """Right when all parts are. `scores["process_score"]`: 1.0 then, 0.0 until a judge has awarded points.

    Rules: `all_parts`; `hedged` (one answer was asked for, several were given: wrong); `no_answer`; else `undecided`.
    """
    answer, extraction = extract_answer(final_text)
    if answer is None:
        return no_answer(extraction, scores={"process_score": 0.0})
    golds, text = gold_parts(problem), visible_text(final_text)
    boxes = _boxes(text)
    if _is_hedged(golds, answer, text, boxes):
        scores = {"process_score": 0.0}
        return Verdict(is_correct=False, rule="hedged", answer=answer, extraction=extraction, scores=scores)
    if len(golds) == 1:  # of different boxes none may be wrong: a correction is no matter of rules
        answers = {answer} | ({content for _, _, content in boxes} if extraction == "boxed" else set())
        is_correct = len(answers) <= MAX_ALTERNATIVES and all(_is_equal(golds[0], _unlabelled(one)) for one in answers)
    else:
        is_correct = any(_are_equal(golds, parts) for parts in _readings(text, answer, boxes, len(golds)))
    if is_correct:
        scores = {"process_score": 1.0}
        return Verdict(is_correct=True, rule="all_parts", answer=answer, extraction=extraction, scores=scores)
    return undecided(answer, extraction, scores={"process_score": 0.0})


def score_official(problem: Problem, final_text: str) -> Verdict:
    """Every solution is a judge's matter. Rules: `no_answer`; else `undecided`."""
    answer, extraction = extract_answer(final_text)
    scores = {"process_score": 0.0}
    return no_answer(extraction, scores=scores) if answer is None else undecided(answer, extraction, scores=scores)


def gold_parts(problem: Problem) -> tuple[str, ...]:
    """The right answer of each part, without the parts' labels."""
    answers = problem.metadata.get("answers") or (problem.answer,)
    parts = (answers,) if isinstance(answers, str) else tuple(str(part) for part in answers)
    number = problem.metadata.get("number_of_answers")
    if len(parts) == 1 and isinstance(number, int) and 1 < number <= MAX_PARTS:  # all parts in one text
        return next(_split(parts[0], number), parts)
    return tuple(_unlabelled(part, index) for index, part in enumerate(parts, start=1))


# -- where the parts stand --------------------------------------------------------------------------------------------


def _readings(text: str, answer: str, boxes: Sequence[tuple[int, int, str]], number: int) -> Iterator[tuple[str, ...]]:
    """The ways to take a final text apart into so many parts."""
    if number > MAX_PARTS:
        return
    yield from _split(answer, number)
    if len(boxes) == number:
        yield tuple(_unlabelled(content, index) for index, (_, _, content) in enumerate(boxes, start=1))
    labelled = _labelled_lines(text)
    if all(index in labelled for index in range(1, number + 1)):
        yield tuple(labelled[index] for index in range(1, number + 1))


def _split(answer: str, number: int) -> Iterator[tuple[str, ...]]:
    """One text as so many parts: by their labels, else by semicolons, line ends, or commas and "and"."""
    if len(answer) > MAX_ANSWER_CHARS:
        return
    labels = _labels_in_order(answer)
    if labels and not answer[: labels[0].start()].strip(" $"):
        if len(labels) == number:
            ends = [label.start() for label in labels[1:]] + [len(answer)]
            yield tuple(answer[label.end() : end].strip(" \t\r\n,;.") for label, end in zip(labels, ends, strict=True))
        return
    for separators in (";；", "\n", ",，、"):
        text = re.sub(r",?\s(?:and|和)\s", ", ", answer) if "," in separators else answer
        parts = [part.strip(" \t\r\n.$") for part in _split_outside_brackets(text, separators)]
        parts = [part for part in parts if part]
        if len(parts) == number:
            yield tuple(parts)


def _labels_in_order(text: str) -> list[re.Match[str]]:
    """The labels 1, 2, 3, ... (or a, b, c, ...) in this order; other brackets in between are no labels."""
    labels: list[re.Match[str]] = []
    for label in _LABEL.finditer(text):
        before = text[label.start() - 1 : label.start()]
        if _index(label) == len(labels) + 1 and not before.isalnum() and before not in ("\\", "_", "^"):
            labels.append(label)
    return labels


def _labelled_lines(text: str) -> dict[int, str]:
    """What follows the label of each line that begins with one, a box opened; of equal labels the last counts."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        label = _LABEL.match(line := line.strip(_LINE_DECORATION))
        if label and len(line) <= MAX_ANSWER_CHARS:
            rest = line[label.end() :].strip(_LINE_DECORATION)
            box = last_box(rest)
            found[_index(label)] = rest if box is None else box
    return found


def _index(label: re.Match[str]) -> int:
    if label["circled"]:
        return _CIRCLED.index(label["circled"]) + 1
    name = next(filter(None, (label[group] for group in ("named", "in_name", "round", "bare")))).lower()
    return int(name) if name.isdecimal() else ord(name) - ord("a") + 1


def _unlabelled(part: str, index: int = 1) -> str:
    """The part without its own label; the label of another part stays, and makes it wrong."""
    label = _LABEL.match(part := part.strip())
    return part[label.end() :].strip() or part if label and _index(label) == index else part


def _split_outside_brackets(text: str, separators: str) -> list[str]:
    parts, depth, start = list[str](), 0, 0
    for index, character in enumerate(text):
        if character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        elif character in separators and not depth:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, stop and content of every balanced outermost `\boxed{...}`."""
    boxes: list[tuple[int, int, str]] = []
    open_braces: list[tuple[int, int] | None] = []  # of a box: where it and its content start
    for token in _TOKEN.finditer(text):
        if token[0].startswith("\\boxed"):
            open_braces.append((token.start(), token.end()))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces:
            box = open_braces.pop()
            if box is not None:
                while boxes and boxes[-1][0] > box[0]:  # those inside it
                    boxes.pop()
                boxes.append((box[0], token.end(), text[box[1] : token.start()].strip()))
    return boxes


# -- whether they are right -------------------------------------------------------------------------------------------


def _are_equal(golds: Sequence[str], parts: Sequence[str]) -> bool:
    return len(golds) == len(parts) and all(map(_is_equal, golds, parts))


def _is_equal(gold: str, part: str) -> bool:
    if max(len(gold), len(part)) > MAX_PART_CHARS:
        return False
    if _LETTER_GOLD.fullmatch(gold):
        return read_letter(part) == gold
    wanted, given = _alternatives(gold), _alternatives(part)
    if not 1 < len(wanted) == len(given) <= MAX_ALTERNATIVES:
        return len(wanted) == len(given) and is_equal_math(gold, part)
    return any(all(map(is_equal_math, wanted, order)) for order in itertools.permutations(given))


def _alternatives(part: str) -> list[str]:
    return [text.strip(" $,") for text in _OR.split(part)]


def _is_hedged(golds: Sequence[str], answer: str, text: str, boxes: Sequence[tuple[int, int, str]]) -> bool:
    """True when one part is asked for and its last two different answers are offered side by side."""
    if len(golds) != 1 or len(_alternatives(golds[0])) > 1 or len(answer) > MAX_PART_CHARS:
        return False
    if len(boxes) > 1 and boxes[-1][2] != boxes[-2][2] and boxes[-1][2] == answer:
        return _JOINED_BY_OR.fullmatch(text[boxes[-2][1] : boxes[-1][0]]) is not None
    return len(_alternatives(answer)) > 1 and not _is_sentence(answer)


def _is_sentence(answer: str) -> bool:
    """Words, not formulas: an "or" in them need not separate two answers."""
    return len(re.findall(r"[^\W\d_]{3,}", re.sub(r"\\[a-z]+", "", answer))) > 2

"""Where the final answer stands in what a model wrote. Linear in the length of the text, whatever it is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Literal

from axpo.types import Problem

AnswerRule = Literal["answer_tag", "boxed", "phrase", "last_line", "none"]

_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX_TOKEN = re.compile(r"\\boxed\s{0,8}\{|\\[{}]|[{}]")
_STATEMENT = re.compile(
    r"""["'](?:(?:final|short|correct)[ _])?answer["']\s{0,8}:\s{0,8}"""  # {"answer": "A"}
    r"""(?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"',{}\[\]]+))"""
    r"|\banswer\b[\s*_]{0,8}(?:is\b|:|=)[\s:*_]{0,8}"
    r"|答案\s?(?:是|为|选|：|:)[\s：:*_]{0,8}",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"(?:not|correct|incorrect|consistent|confirmed|verified|reasonable|helpful|unique|because|based on)\b",
    re.IGNORECASE,
)
_HYPOTHESIS = re.compile(r"\b(?:if|suppose|assume|unless|whether)\s(?:\w{1,12}\s){0,3}$", re.IGNORECASE)
_HYPOTHESIS_CHARS = 60
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])|[。！？]")
_NUM_STATEMENT_LINES = 3
_MAX_STATEMENTS = 16  # per line; a line with more is not reasoning


def extract_answer(text: str) -> tuple[str | None, AnswerRule]:
    r"""The final answer and the rule that found it; `(None, ...)` when there is none.

    Read is what follows the last `</think>` (nothing, when thinking was opened and never closed). In this order: the
    last complete `<answer>...</answer>` (a box inside it is opened), the last balanced `\boxed{...}`, what follows the
    last "answer is", "answer:", "答案是" or `"answer":` of the last three lines (the line below when nothing does), the
    last line that is not empty. A remark ("the answer is correct", "is not A") or a hypothesis ("if the answer is A")
    is not taken for the answer when another statement precedes it.

    >>> extract_answer("<think>maybe 3</think>So <answer>\\boxed{4}</answer>")
    ('4', 'answer_tag')
    >>> extract_answer("Therefore the answer is (B). Done.")
    ('(B)', 'phrase')
    >>> extract_answer("The answer is C. Wait, the answer is A. I am sure that this answer is correct.")
    ('A', 'phrase')
    """
    visible = visible_text(text)
    tagged = _last_answer_tag(visible)
    if tagged is not None:
        boxed = last_box(tagged)
        return (tagged if boxed is None else boxed).strip() or None, "answer_tag"
    boxed = last_box(visible)
    if boxed is not None:
        return boxed.strip() or None, "boxed"
    lines = [line.strip() for line in visible.splitlines() if line.strip()]
    stated = _stated_answers(lines[-_NUM_STATEMENT_LINES:])
    if stated:
        return next((answer for answer, is_final in stated if is_final), stated[0][0]), "phrase"
    return (lines[-1], "last_line") if lines else (None, "none")


def _stated_answers(lines: Sequence[str]) -> list[tuple[str | None, bool]]:
    """Answers that the lines state, the last first, and whether each reads like one: no remark, no hypothesis."""
    stated: list[tuple[str | None, bool]] = []
    below: str | None = None
    for line in reversed(lines):
        matches = list(_STATEMENT.finditer(line))[-_MAX_STATEMENTS:]
        ends = [*(match.start() for match in matches[1:]), len(line)]
        newest_first = reversed(list(zip(matches, ends, strict=False)))
        for match, end in sorted(newest_first, key=lambda pair: pair[0].lastgroup is None):  # a JSON key before prose
            answer = _stated_value(match, line[match.end() : end]) or below
            lead = line[max(0, match.start() - _HYPOTHESIS_CHARS) : match.start()]
            is_final = answer is not None and not _REMARK.match(answer) and not _HYPOTHESIS.search(lead)
            stated.append((answer, is_final))
        below = line
    return stated


def _stated_value(match: re.Match[str], rest: str) -> str | None:
    """The value of a JSON key, or what follows a statement up to the end of its sentence; None when nothing does."""
    if match["double"] is not None:
        try:
            return str(json.loads(f'"{match["double"]}"', strict=False)).strip() or None
        except ValueError:  # LaTeX with single backslashes
            return match["double"].strip() or None
    value = match["single"] or match["bare"] or ""
    return value.strip() or _first_sentence(rest) or None


def gold_answers(problem: Problem) -> tuple[str, ...]:
    """Every answer that counts as right: `answer` and the `aliases` of the metadata."""
    return (problem.answer, *problem.metadata.get("aliases", ()))


def visible_text(text: str) -> str:
    """What follows the last `</think>`; nothing, when thinking was opened and never closed."""
    before, closing, after = text.rpartition("</think>")
    if not closing and after.lstrip().startswith("<think>"):
        return ""
    return after if closing else before + after


def _last_answer_tag(text: str) -> str | None:
    start, content = None, None
    for tag in _ANSWER_TAG.finditer(text):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            content, start = text[start : tag.start()], None
    return content


def last_box(text: str) -> str | None:
    r"""What stands in the last balanced `\boxed{...}`; of nested boxes the inner one."""
    span = _last_box_span(text)
    return None if span is None else text[span[0] : span[1]]


def text_after_box(text: str) -> str:
    """The visible text after the last balanced box, empty without one."""
    visible = visible_text(text)
    span = _last_box_span(visible)
    return "" if span is None else visible[span[1] + 1 :]


def _last_box_span(text: str) -> tuple[int, int] | None:
    open_boxes: list[int | None] = []  # where a box's content starts; None for a plain brace
    last: tuple[int, int] | None = None
    for token in _BOX_TOKEN.finditer(text):
        if token[0].startswith("\\boxed"):
            open_boxes.append(token.end())
        elif token[0] == "{":
            open_boxes.append(None)
        elif token[0] == "}" and open_boxes:
            start = open_boxes.pop()
            if start is not None and (last is None or start > last[0]):
                last = (start, token.start())
    return last


def _first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".!。！*_ \t")

"""Where the final answer stands in what a model wrote. Linear in the length of the text, whatever it is."""

from __future__ import annotations

import re
from typing import Literal

from axpo.types import Problem

AnswerRule = Literal["answer_tag", "boxed", "phrase", "last_line", "none"]

_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BOX_TOKEN = re.compile(r"\\boxed\s{0,8}\{|\\[{}]|[{}]")
_PHRASE = re.compile(r"\banswer\b[\s*_]{0,8}(?:is\b|:|=)[\s:*_]{0,8}([^\s:*_].*)", re.IGNORECASE)
_BARE_PHRASE = re.compile(r"\banswer\b[\s*_]{0,8}(?:is\b|:|=)[\s:*_]{0,8}$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]\s+(?=[A-Z])")
_NUM_PHRASE_LINES = 3


def extract_answer(text: str) -> tuple[str | None, AnswerRule]:
    r"""The final answer and the rule that found it; `(None, ...)` when there is none.

    Read is what follows the last `</think>` (nothing, when thinking was opened and never closed). In this order: the
    last complete `<answer>...</answer>` (a box inside it is opened), the last balanced `\boxed{...}`, what follows
    "answer is" or "answer:" on the last three lines (the line below when nothing does), the last line that is not
    empty.

    >>> extract_answer("<think>maybe 3</think>So <answer>\\boxed{4}</answer>")
    ('4', 'answer_tag')
    >>> extract_answer("Therefore the answer is (B). Done.")
    ('(B)', 'phrase')
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
    below: str | None = None
    for line in reversed(lines[-_NUM_PHRASE_LINES:]):
        phrase = _PHRASE.search(line)
        if phrase:
            return _first_sentence(phrase[1]), "phrase"
        if _BARE_PHRASE.search(line):
            return below, "phrase"
        below = line
    return (lines[-1], "last_line") if lines else (None, "none")


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
    return None if last is None else text[last[0] : last[1]]


def _first_sentence(text: str) -> str:
    return _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".!*_ \t")

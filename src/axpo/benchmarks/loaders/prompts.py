"""How a published question is put to a model: pictures where it refers to them, options, how to answer."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from axpo.types import Content, ImageRef, Message

ANSWER_LETTER = "Give the letter of the right option, and nothing else, inside \\boxed{}."
ANSWER_BOXED = "Give the final answer, and nothing else, inside \\boxed{}."
ANSWER_DECIMAL = "Give the final answer as a decimal number with at least three decimals inside \\boxed{}."
ANSWER_PARTS = "Give the final answer to every part of the question, in order, inside one \\boxed{}."
ANSWER_SHORT = "Give the final answer, as short as possible, between <answer> and </answer>."

OFFICIAL_BOXED = (
    "Solve the problem step by step and put the answer in one \\boxed{}, of several options only the letter."
)
OFFICIAL_JSON = (
    "Reply with one JSON object that has two keys and with nothing else:\n"
    '{"solution": "<the steps of the solution>", "short answer": "<the answer alone>"}\n'
)
OFFICIAL_CHOICE = "Select the right answer from the options above."
OFFICIAL_LETTER = "Answer with the option's letter from the given choices directly."
"""The sentence that ends each question in the published file of V*."""
OFFICIAL_TAG = "When you are sure of the final answer, put it between <answer> and </answer>."
OFFICIAL_WORDS = "Answer with a few words and with nothing else."
NO_INSTRUCTION = ""

_PLACEHOLDER = re.compile(r"<image ?(\d{0,2})>")
_OPTION_LINE = re.compile(r"\(?([A-Z])[).:][ \t]+(\S.*)")
_MARK = re.compile(r"\(([A-H])\)")


def user_message(blocks: Sequence[Content], *, options: Sequence[str] = (), instruction: str) -> Message:
    """The question's blocks, then its options as lines `(A) ...`, then how to answer, unless that is empty."""
    lines = [f"({letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    ending = "\n".join([*lines, instruction] if instruction else lines)
    if not ending:
        return Message(role="user", content=tuple(blocks))
    if blocks and blocks[-1].text is not None:
        return Message(role="user", content=(*blocks[:-1], Content(text=f"{blocks[-1].text}\n{ending}")))
    gap = "\n" if any(block.text is not None for block in blocks) else ""
    return Message(role="user", content=(*blocks, Content(text=gap + ending)))


def picture_first(text: str, picture: ImageRef | None) -> tuple[Content, ...]:
    """One picture before the text, whose placeholders are removed."""
    return _blocks(picture, strip_placeholders(text).strip())


def one_picture(text: str, picture: ImageRef) -> tuple[Content, ...]:
    """A text with numbered placeholders for the parts of one picture.

    The picture takes the place of the first that ends a line, or comes first; inside a sentence a placeholder becomes
    `(picture 2)`, since what it stands for is a part of the sentence.
    """
    lines = text.split("\n")
    position = next((index for index, line in enumerate(lines) if _ends_with_placeholder(line)), None)
    shown = [_read_line(line) for line in lines]
    if position is None:
        return _blocks(picture, "\n".join(shown).strip())
    before, after = "\n".join(shown[: position + 1]).strip(), "\n".join(shown[position + 1 :]).strip()
    return _blocks(before + "\n", picture, "\n" + after if before else after)


def numbered_pictures(text: str, pictures: Mapping[int, ImageRef]) -> tuple[Content, ...]:
    """Each picture at its first placeholder; a later mention becomes `(picture 2)`.

    Raises `KeyError` with the number of a placeholder that has no picture. Pictures that the text does not mention are
    left out, as the benchmarks do.
    """
    blocks: list[str | ImageRef] = []
    shown: set[int] = set()
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        number = int(match[1] or 1)
        blocks.append(text[end : match.start()])
        blocks.append(f"(picture {number})" if number in shown else pictures[number])
        shown.add(number)
        end = match.end()
    return _blocks(*_joined([*blocks, text[end:]]))


def mentioned_pictures(text: str) -> tuple[int, ...]:
    """Numbers of a text's placeholders, each once, ascending."""
    return tuple(sorted({int(number or 1) for number in _PLACEHOLDER.findall(text)}))


def strip_placeholders(text: str) -> str:
    """The text without its placeholders."""
    return _PLACEHOLDER.sub("", text)


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """A text that ends with lines `(A) ...`, `B. ...`: what stands before them, and the options in letter order.

    What follows the last option is left out: it says how to answer.

    >>> split_options("Which?\\n(A) red (dark)\\n(B) blue\\nAnswer with the letter.")
    ('Which?', ('red (dark)', 'blue'))
    """
    question: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        match = _OPTION_LINE.match(line.strip())
        if match and match[1] == string.ascii_uppercase[len(options)]:
            options.append(match[2].strip())
        elif not options:
            question.append(line)
    return "\n".join(question).strip(), tuple(options)


def inline_options(text: str) -> tuple[str, ...]:
    """Options that are written into a question, `... (A) yes (B) no` or one a line; empty when there are none.

    >>> inline_options("Is it? choice: (A) f(x)=1 (B) f(x)=2 "), inline_options("Which?\\nA: [1]\\nB: []")
    (('f(x)=1', 'f(x)=2'), ('[1]', '[]'))
    """
    run: list[re.Match[str]] = []
    for mark in _MARK.finditer(text):
        if mark[1] == "A":
            run = [mark]
        elif mark[1] == string.ascii_uppercase[len(run)]:
            run.append(mark)
    ends = [mark.start() for mark in run[1:]] + [len(text)]
    options = tuple(text[mark.end() : end].strip() for mark, end in zip(run, ends, strict=False))
    return options if len(options) > 1 else split_options(text)[1]


def _ends_with_placeholder(line: str) -> bool:
    return line.rstrip().endswith(">") and _read_line(line) != _mentions(line)


def _read_line(line: str) -> str:
    """A line without the placeholders at its end; those inside are mentions."""
    line = line.rstrip()
    while line.endswith(">") and (start := line.rfind("<")) >= 0 and _PLACEHOLDER.fullmatch(line, start):
        line = line[:start].rstrip()
    return _mentions(line)


def _mentions(line: str) -> str:
    return _PLACEHOLDER.sub(lambda match: f"(picture {match[1] or 1})", line)


def _joined(blocks: Sequence[str | ImageRef]) -> list[str | ImageRef]:
    """Neighbouring texts as one."""
    joined: list[str | ImageRef] = []
    for block in blocks:
        if isinstance(block, str) and joined and isinstance(joined[-1], str):
            joined[-1] += block
        else:
            joined.append(block)
    return joined


def _blocks(*parts: str | ImageRef | None) -> tuple[Content, ...]:
    """Content blocks; empty texts and absent pictures are left out."""
    return tuple(
        Content(text=part) if isinstance(part, str) else Content(image=part)
        for part in parts
        if part is not None and not (isinstance(part, str) and not part.strip())
    )

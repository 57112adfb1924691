"""The schema of a data row. `docs/data.md` describes it."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from typing import Any, cast

from axpo.dialogue import Conversation
from axpo.tasks.fields import ImageSource, Place, Row, check_text, known_fields
from axpo.tasks.messages import place_images, read_messages, read_question
from axpo.types import Content, JsonValue, Message, Problem

PROBLEM_FIELDS = (
    "id",
    "question",
    "messages",
    "image",
    "images",
    "answer",
    "answer_kind",
    "choices",
    "tools",
    "metadata",
)
CONVERSATION_FIELDS = ("id", "messages", "image", "images", "tools", "metadata")
ANSWER_KINDS = ("text", "choice", "math")
"""The keys of `axpo.rewards.REWARDS`."""
RESERVED_METADATA = ("aliases", "choices")


def build_problem(row: Row, *, place: Place, images: ImageSource, system_prompt: str | None = None) -> Problem:
    """The question of a row. Raises `DataError` naming the first field that breaks the schema."""
    fields = known_fields(row, PROBLEM_FIELDS, place)
    messages = place_images(read_question(fields, place, images), fields, place, images)
    if messages[-1].role != "user":
        raise place.at("messages").error(
            "a question must end with the user", got=messages[-1].role, fix="Cut the answer off: it goes into `answer`."
        )
    if system_prompt is not None and messages[0].role != "system":
        messages = (Message(role="system", content=(Content(text=system_prompt),)), *messages)
    metadata = _read_metadata(fields, place)
    answers = _read_answers(fields, place)
    kind = _read_answer_kind(fields, place)
    choices = _read_texts(fields, "choices", place) or ()
    if len(choices) > len(string.ascii_uppercase):
        raise place.at("choices").error("more than 26 options", got=fields["choices"], fix="There are only 26 letters.")
    if choices:
        metadata["choices"] = list(choices)
    if kind == "choice":
        answers = [_read_letter(answer, choices, place.at("answer")) for answer in answers]
    if answers[1:]:
        metadata["aliases"] = answers[1:]
    return Problem(
        id=_read_id(fields, place),
        messages=messages,
        answer=answers[0],
        answer_kind=kind,
        tools=_read_tools(fields, place),
        metadata=metadata,
    )


def build_conversation(row: Row, *, place: Place, images: ImageSource) -> Conversation:
    """The demonstration of a row. Raises `DataError` naming the first field that breaks the schema."""
    fields = known_fields(row, CONVERSATION_FIELDS, place)
    if "messages" not in fields:
        raise place.missing("messages", fix='Write a list of {"role": ..., "content": ...}.')
    messages = place_images(read_messages(fields["messages"], place, images), fields, place, images)
    if messages[-1].role != "assistant":
        raise place.at("messages").error(
            "a demonstration must end with the assistant", got=messages[-1].role, fix="Add the last answer."
        )
    return Conversation(
        id=_read_id(fields, place),
        messages=messages,
        tools=_read_tools(fields, place),
        metadata=_read_metadata(fields, place),
    )


def _read_id(fields: Row, place: Place) -> str:
    value = fields.get("id", place.default_id)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise place.at("id").error("expected text or an integer", got=value, fix="Leave it out to number the rows.")
    return str(value)


def _read_metadata(fields: Row, place: Place) -> Row:
    value = fields.get("metadata", {})
    if not isinstance(value, dict):
        raise place.at("metadata").error("expected an object", got=value, fix='Write {"name": value}.')
    metadata = dict(cast("Row", value))
    for name in RESERVED_METADATA:
        if name in metadata:
            fix = "Write a list of right answers into `answer`." if name == "aliases" else "Write the field `choices`."
            raise place.at("metadata").at(name).error("a reserved name", got=metadata[name], fix=fix)
    return metadata


def _read_tools(fields: Row, place: Place) -> tuple[str, ...] | None:
    value = fields.get("tools")
    if isinstance(value, list):
        # TRL writes whole schemas here; what the model sees is the run's own schema of the tool of that name
        value = [_schema_name(item) for item in cast("list[Any]", value)]
    return _read_texts({"tools": value} if value is not None else {}, "tools", place)


def _schema_name(item: Any) -> Any:
    function = item.get("function", item) if isinstance(item, dict) else item
    return cast("Row", function).get("name", item) if isinstance(function, dict) else item


def _read_texts(fields: Row, name: str, place: Place) -> tuple[str, ...] | None:
    value = fields.get(name)
    if value is None:
        return None
    items = cast("list[Any]", value) if isinstance(value, list) else []
    texts = tuple(item for item in items if isinstance(item, str) and item)
    if not isinstance(value, list) or len(texts) != len(items):
        raise place.at(name).error("expected a list of texts", got=value, fix='Write ["...", "..."].')
    return texts


# -- answers ----------------------------------------------------------------------------------------------------------


def _read_answers(fields: Row, place: Place) -> list[str]:
    """The right answer and its aliases."""
    value = fields.get("answer")
    if value is None:
        raise place.missing("answer", fix="Write the right answer, or a list of all that count as right.")
    if not isinstance(value, list):
        return [_answer_text(value, place.at("answer"))]
    items = cast("list[Any]", value)
    if not items:
        raise place.at("answer").error("no answer in the list", got=value, fix="Write at least one.")
    return [_answer_text(item, place.at("answer").at(index)) for index, item in enumerate(items)]


def _answer_text(value: JsonValue, place: Place) -> str:
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not (is_number or (isinstance(value, str) and value.strip())):
        raise place.error("expected text or a number", got=value, fix="Write the right answer.")
    return check_text(str(value), place)


def _read_answer_kind(fields: Row, place: Place) -> str:
    value = fields.get("answer_kind", "text")
    if value not in ANSWER_KINDS:
        raise place.at("answer_kind").error(
            "unknown kind",
            got=value,
            fix=f"Known are {', '.join(ANSWER_KINDS)}; for a rule of your own, leave it out and set data.reward.",
        )
    return value


def _read_letter(answer: str, choices: Sequence[str], place: Place) -> str:
    """The letter of the right option, given as letter or as the option's text."""
    matches = [index for index, choice in enumerate(choices) if choice.strip() == answer.strip()]
    if len(matches) == 1:
        return string.ascii_uppercase[matches[0]]
    letters = string.ascii_uppercase[: len(choices) or 26]
    letter = answer.strip().strip("().").upper()
    if len(letter) != 1 or letter not in letters:
        raise place.error(
            f"expected a letter {letters[0]} to {letters[-1]} or the text of one option",
            got=answer,
            fix="See `choices`.",
        )
    return letter

"""Rows against the model: each is rendered once, so that a run does not end hours later at one it cannot use."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from axpo.dialogue import Conversation
from axpo.errors import DataError
from axpo.protocols import Renderer
from axpo.types import Problem, ToolSpec


def check_questions(
    problems: Iterable[Problem], *, renderer: Renderer, tools: Mapping[str, ToolSpec], max_tokens: int
) -> None:
    """Raise `DataError` for a question that the template refuses or that leaves no room to answer.

    `max_tokens`: what the model takes in all. About 1 ms a question.
    """
    for problem in problems:
        with _naming(f"question {problem.id}"):
            names = tools if problem.tools is None else problem.tools
            prompt = renderer.render_prompt(problem.messages, [tools[name] for name in names])
            _check_length(len(prompt.token_ids), max_tokens - 1)


def check_conversations(
    conversations: Iterable[Conversation], *, renderer: Renderer, tools: Mapping[str, ToolSpec], max_tokens: int
) -> None:
    """Raise `DataError` for a demonstration that the template refuses or that is longer than `max_tokens`."""
    for conversation in conversations:
        with _naming(f"conversation {conversation.id}"):
            names = tools if conversation.tools is None else conversation.tools
            rendered = renderer.render_conversation(conversation.messages, [tools[name] for name in names])
            _check_length(len(rendered.token_ids), max_tokens)


def context_length(model_path: Path | str) -> int:
    """Tokens that a checkpoint takes in all, by its configuration."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(str(model_path))
    return config.get_text_config().max_position_embeddings


def _check_length(num_tokens: int, max_tokens: int) -> None:
    if num_tokens > max_tokens:
        raise DataError(
            f"has {num_tokens} tokens with its tools, at most {max_tokens} fit the model. Shorten it, or make its "
            "images smaller with model.max_image_px."
        )


@contextlib.contextmanager
def _naming(owner: str) -> Generator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{owner}: {error}") from error

"""Rendering a checkpoint's chat template: work for a process of its own, see `axpo.workers`.

A template is a program that came with a checkpoint. Only that process imports this module.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from axpo.errors import DataError


def render(
    template: str,
    messages: list[dict[str, Any]],
    tools: Any,
    is_prompt: bool,
    special_tokens: dict[str, Any],
) -> str:
    """The dialogue's text, as `apply_chat_template` of the tokenizer renders it. Raises `DataError`."""
    try:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            add_generation_prompt=is_prompt,
            **special_tokens,
        )
    except (TemplateError, TypeError) as error:  # TypeError: a text-only template adds a string to an image block
        raise DataError(str(error)) from error
    return rendered[0]

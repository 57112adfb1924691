"""Tools for tests and examples: one that always works and one that never does."""

from __future__ import annotations

from axpo.errors import ToolError, ToolFault
from axpo.protocols import ToolContext
from axpo.types import Content, FailureKind, ToolCall, ToolSpec

_TEXT_PARAMETERS = {
    "type": "object",
    "properties": {"text": {"type": "string", "description": "Any text."}},
    "required": ["text"],
}


class EchoTool:
    """Answers with its `text` argument."""

    def __init__(self, *, name: str = "echo") -> None:
        self.spec = ToolSpec(name=name, description="Repeats a text.", parameters=_TEXT_PARAMETERS)

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """The text that came."""
        text = call.arguments.get("text")
        if not isinstance(text, str):
            raise ToolError(FailureKind.BAD_ARGUMENTS, f"{self.spec.name}: text must be a string.")
        return (Content(text=text),)


class FailingTool:
    """Fails at every call: with a `FailureKind`, or by raising the given exception.

    `FailureKind.TOOL_FAULT` is raised as `axpo.errors.ToolFault`, every other kind as `axpo.errors.ToolError`.
    """

    def __init__(self, failure: FailureKind | Exception, *, name: str = "failing") -> None:
        self.spec = ToolSpec(name=name, description="Fails.", parameters=_TEXT_PARAMETERS)
        self._failure = failure

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """Never returns."""
        if isinstance(self._failure, Exception):
            raise self._failure
        message = f"{self.spec.name}: fails on purpose ({self._failure})."
        if self._failure is FailureKind.TOOL_FAULT:
            raise ToolFault(message)
        raise ToolError(self._failure, message)

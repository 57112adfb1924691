"""Drives `PythonTool` the way a rollout does, one event loop per call."""

from __future__ import annotations

import asyncio

from axpo.errors import ToolError
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.python_exec import PythonTool
from axpo.types import Content, FailureKind, ToolCall


class PythonRollout:
    """One rollout: a dialogue with pictures, and its calls of the tool."""

    def __init__(self, tool: PythonTool, store: ContentImageStore | None = None) -> None:
        self.tool = tool
        self.context = ToolContext(rollout_id="r", images=[], store=store or ContentImageStore())

    def call(self, code: str, timeout: int = 20) -> tuple[Content, ...]:
        """The content of one call; its pictures join the dialogue, as the loop does it."""
        return asyncio.run(self.call_async(code, timeout))

    async def call_async(self, code: str, timeout: int = 20) -> tuple[Content, ...]:
        call = ToolCall(id="c", name="python", arguments={"code": code, "timeout": timeout})
        content = await self.tool.run(call, self.context)
        self.context.images.extend(block.image for block in content if block.image is not None)
        return content

    def text(self, code: str, timeout: int = 20) -> str:
        """The text of a call that shows no picture."""
        (block,) = self.call(code, timeout)
        assert block.text is not None
        return block.text

    def failure(self, code: str, timeout: int = 20) -> tuple[FailureKind, str]:
        """Kind and message of a call that fails through the model's fault."""
        try:
            content = self.call(code, timeout)
        except ToolError as error:
            return FailureKind(error.kind), error.message
        raise AssertionError(f"no failure but {content}")

    def outcome(self, code: str, timeout: int = 20) -> str:
        """Text of the answer or of the failure: what the model reads. A fault of ours passes through."""
        try:
            return "".join(block.text or "[image]" for block in self.call(code, timeout))
        except ToolError as error:
            return error.message

    def close(self) -> None:
        asyncio.run(self.tool.close_rollout(self.context))

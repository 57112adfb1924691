"""Drives `PythonTool` the way a rollout does, one event loop per call."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ordinary_user
from axpo.errors import ToolError
from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.python_exec import PythonTool
from axpo.tools.sandbox import SandboxServer
from axpo.types import Content, FailureKind, ToolCall

_AS_ORDINARY_USER = [sys.executable, str(Path(ordinary_user.__file__))]


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


def start_as_ordinary_user(patch: pytest.MonkeyPatch) -> None:
    """Let the sandboxes of this test start as an ordinary user, as in a trainer of that user; skip where none can."""
    if os.geteuid() != 0:
        return
    needed = "from axpo.tools.sandbox import kernel as k; k.unshare(k.CLONE_NEWUSER | k.CLONE_NEWNS)"
    tried = subprocess.run([*_AS_ORDINARY_USER, sys.executable, "-c", needed], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"an ordinary user cannot start the sandbox here: {tried.stderr.strip().splitlines()[-1]}")
    as_root = SandboxServer._command
    patch.setattr(SandboxServer, "_command", lambda *arguments: [*_AS_ORDINARY_USER, *as_root(*arguments)])


@contextmanager
def owned_library(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of packages that belongs to the ordinary user, with the module `owned_library` in it."""
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder) / "site-packages"
        packages.mkdir()
        module = packages / "owned_library.py"
        module.write_text("answer = 42\n")
        Path(folder).chmod(0o755)
        if os.geteuid() == 0:
            for path in (packages, module):
                os.chown(path, ordinary_user.UID, ordinary_user.UID)
        patch.setattr(sys, "path", [*sys.path, str(packages)])
        yield

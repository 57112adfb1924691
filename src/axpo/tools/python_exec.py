"""`python`: run code in an interpreter of the rollout's own, which keeps its state between calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from axpo.errors import ConfigError, ToolError, ToolFault
from axpo.protocols import ToolContext
from axpo.threads import run_in_daemon_thread
from axpo.tools.function import cut_middle
from axpo.tools.sandbox import CellResult, Interpreter, InterpreterLost, InterpreterTimeout, Limits, SandboxServer
from axpo.tools.sandbox.wire import CellStatus
from axpo.types import Content, FailureKind, ImageRef, JsonValue, ToolCall, ToolSpec

DEFAULT_TIMEOUT_S = 12
MAX_CODE_CHARS = 200_000
MIN_MEMORY_MB = 64
MAX_TIMEOUT_S = 540
"""What a run grants a tool that bounds its own time is little more."""
_MAX_MARK_CHARS = 100
"""What the interpreter adds to text that it has cut: not to be cut in its turn."""
NO_OUTPUT = "(no output)"
_RESTART = "All variables are lost; the next call starts a fresh interpreter."


@dataclass(slots=True)
class _Session:
    """A rollout's interpreter, and how many of the dialogue's pictures it knows."""

    interpreter: Interpreter | None = None
    num_known_images: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class PythonTool:
    """A notebook-like Python tool: last expression echoed, figures and PIL images returned as pictures.

    Code runs isolated (no network, no files of the machine, bounded memory, time, output; see `docs/security.md`), in
    one process per rollout that is forked from a warm parent in milliseconds. Where the machine cannot isolate, the
    first call raises `ConfigError`, unless `allow_unsafe` is set; `check` says so before a run begins.

    `memory_mb` counts on top of the preloaded libraries, `tmp_mb` is the size of the working folder. A longer timeout
    than `max_timeout_s` is cut to it; a call takes at most a second more. Pictures of more than `max_image_px` pixels
    are scaled down. `prestart` starts the warm parent, which takes some two seconds, now instead of at the first call.
    """

    bounds_its_time: Literal[True] = True

    def __init__(
        self,
        *,
        memory_mb: int = 1024,
        tmp_mb: int = 64,
        max_timeout_s: int = 30,
        max_output_chars: int = 20_000,
        max_images: int = 8,
        max_image_px: int = 1280 * 32 * 32,
        max_threads: int = 16,
        allow_unsafe: bool = False,
        prestart: bool = False,
    ) -> None:
        numbers = {
            "memory_mb": memory_mb,
            "tmp_mb": tmp_mb,
            "max_output_chars": max_output_chars,
            "max_images": max_images,
            "max_image_px": max_image_px,
            "max_threads": max_threads,
        }
        _check_options(
            {**numbers, "max_timeout_s": max_timeout_s}, {"allow_unsafe": allow_unsafe, "prestart": prestart}
        )
        self._limits = Limits(**numbers)
        self._max_timeout_s = max_timeout_s
        self.spec = _make_spec(self._limits, max_timeout_s)
        self._server = SandboxServer(is_isolated=not allow_unsafe)
        if prestart:
            self._server.start()

    def check(self) -> None:
        """Start the warm parent and one interpreter: some two seconds, in which a running event loop stands still.

        Raises `ConfigError` when this machine cannot isolate or a library is missing, `ToolFault` when the sandbox
        failed. The parent stays warm.
        """
        with ThreadPoolExecutor(1) as thread:  # the caller may have an event loop of its own
            thread.submit(asyncio.run, self._server.spawn(self._limits)).result().kill()

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """What the code printed, then its pictures.

        Raises `ToolError` when the code raised an exception, took too long or ended its interpreter, `ToolFault` when
        the sandbox failed.
        """
        code, timeout_s = self._read_arguments(call.arguments)
        session = context.state.setdefault(self.spec.name, _Session())
        async with session.lock:
            result = await self._execute(session, code, timeout_s, context)
        whole = result.text.strip("\n")
        text = cut_middle(whole, self._limits.max_output_chars + _MAX_MARK_CHARS)
        context.is_cut = context.is_cut or result.is_cut or text != whole
        if result.status is CellStatus.TIMED_OUT:
            message = f"the code was stopped after {timeout_s:g} s. Variables are kept."
            raise ToolError(FailureKind.TIMEOUT, f"{text.rstrip()}\nTimeout: {message}".lstrip())
        if result.status is CellStatus.RAISED:
            raise ToolError(FailureKind.EXECUTION_ERROR, text)
        images = await run_in_daemon_thread(_store_images, result, context) if result.images else ()
        content = [Content(text=text)] if text else []
        for number, ref in enumerate(images, len(context.images)):
            content += [Content(text=f"img_idx {number}:"), Content(image=ref)]
        return tuple(content) or (Content(text=NO_OUTPUT),)

    async def close_rollout(self, context: ToolContext) -> None:
        """End the rollout's interpreter."""
        session = context.state.pop(self.spec.name, None)
        if session is not None and session.interpreter is not None:
            session.interpreter.kill()

    def close(self) -> None:
        """End the fork server and with it all interpreters."""
        self._server.close()

    async def _execute(self, session: _Session, code: str, timeout_s: float, context: ToolContext) -> CellResult:
        if session.interpreter is None or session.interpreter.is_dead:
            session.interpreter = await self._spawn(context)
            session.num_known_images = 0
        new_images = context.images[session.num_known_images :]
        try:
            result = await session.interpreter.execute(
                code, timeout_s, [context.store.encoded(ref) for ref in new_images]
            )
        except (InterpreterTimeout, InterpreterLost) as error:
            if self._server.has_lost(session.interpreter):
                has_lost_state = session.interpreter.num_cells > 0
                raise ToolFault("tool python: its fork server died", can_retry=not has_lost_state) from error
            if isinstance(error, InterpreterTimeout):
                message = f"Timeout: the code did not stop after {timeout_s:g} s and its interpreter was killed."
                raise ToolError(FailureKind.TIMEOUT, f"{message} {_RESTART}") from error
            message = f"The code ended its interpreter ({error}): a crash, os._exit, or too much memory."
            raise ToolError(FailureKind.EXECUTION_ERROR, f"{message} {_RESTART}") from error
        session.num_known_images += len(new_images)
        return result

    async def _spawn(self, context: ToolContext) -> Interpreter:
        started_s = time.monotonic()
        try:
            return await self._server.spawn(self._limits)
        finally:
            context.waited_s += time.monotonic() - started_s  # seconds where the fork server has to start

    def _read_arguments(self, arguments: Mapping[str, JsonValue]) -> tuple[str, float]:
        known = self.spec.parameters["properties"]
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise _bad_arguments(f"there is no argument {unknown[0][:60]!r}; the arguments are {', '.join(known)}.")
        code, timeout = arguments.get("code"), arguments.get("timeout", DEFAULT_TIMEOUT_S)
        if not isinstance(code, str):
            raise _bad_arguments("code must be a string of Python code.")
        if len(code) > MAX_CODE_CHARS:
            raise _bad_arguments(f"code has {len(code)} characters; at most {MAX_CODE_CHARS} are run.")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise _bad_arguments(f"timeout must be a number of seconds from 1 to {self._max_timeout_s}.")
        return code, float(min(timeout, self._max_timeout_s))


def _check_options(numbers: Mapping[str, Any], switches: Mapping[str, Any]) -> None:
    for name, value in numbers.items():
        least = MIN_MEMORY_MB if name == "memory_mb" else 1
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"tool python: {name} must be a whole number, got {value!r}. Write it without quotes.")
        if value < least:
            raise ConfigError(f"tool python: {name} must be at least {least}, got {value}. Correct it.")
    if numbers["max_timeout_s"] > MAX_TIMEOUT_S:
        got = numbers["max_timeout_s"]
        raise ConfigError(f"tool python: max_timeout_s must be at most {MAX_TIMEOUT_S}, got {got}. Lower it.")
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"tool python: {name} must be true or false, got {value!r}. Write it without quotes.")


def _store_images(result: CellResult, context: ToolContext) -> tuple[ImageRef, ...]:
    from PIL import Image

    return tuple(
        context.store.add_image(Image.frombytes("RGB", (width_px, height_px), pixels))
        for width_px, height_px, pixels in result.images
    )


def _bad_arguments(message: str) -> ToolError:
    return ToolError(FailureKind.BAD_ARGUMENTS, f"python: {message}")


def _make_spec(limits: Limits, max_timeout_s: int) -> ToolSpec:
    description = (
        "Run Python code in a notebook-like interpreter that keeps its variables between calls. Printed text and the "
        "value of the last expression come back; so do matplotlib figures (plt.show()) and PIL images (as the last "
        "expression, or display(image)), as new images of the dialogue. numpy, scipy, sympy, pandas, matplotlib and "
        "PIL are installed. `_pil_images` is the list of all images of the dialogue as PIL images, in the order of "
        "img_idx, and `_images` the list of their file paths; both are renewed at every call. There is no network, no "
        f"subprocess and no file outside the working directory. Limits: {limits.memory_mb} MB of memory, "
        f"{limits.tmp_mb} MB of files, {limits.max_output_chars} characters of output, {limits.max_images} images."
    )
    default_s = min(DEFAULT_TIMEOUT_S, max_timeout_s)
    return ToolSpec(
        name="python",
        description=description,
        parameters={
            "type": "object",
            "properties": {
                "code": {"type": "string", "description": "The code to run."},
                "timeout": {
                    "type": "integer",
                    "default": default_s,
                    "description": f"Seconds after which the code is stopped, at most {max_timeout_s}.",
                },
            },
            "required": ["code"],
        },
    )

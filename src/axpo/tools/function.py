"""A tool made of a plain typed Python function."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from axpo.errors import ConfigError, DataError, QuotaError, RolloutFault, ToolError
from axpo.protocols import ToolContext
from axpo.threads import ToolThreads
from axpo.types import Content, FailureKind, ImageRef, JsonValue, ToolCall, ToolSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydantic import TypeAdapter

MAX_ERROR_CHARS = 500
MAX_IMAGE_PX = 2**26
MAX_ASPECT_RATIO = 200
"""Qwen's image preprocessing takes no picture that is longer than so many times its width."""
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?):\s*$", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\s+)(\w+)\s*(?:\([^)]*\))?:[ \t]*(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameter:
    adapter: TypeAdapter[Any]
    description: str
    is_required: bool
    default: Any


class FunctionTool:
    """An `axpo.protocols.Tool` around a function; made by `from_function`.

    Arguments are checked strictly against the function's types ("3" is no int) before it is called. What it returns
    becomes content: text as it is, a PIL image as a new picture of the dialogue, a list with pictures block by block,
    everything else as JSON. Text beyond `max_result_chars` loses its middle.

    A plain function runs in a daemon thread: when the loop's timeout passes, the thread is abandoned and cannot keep
    the program from ending; too many of them are a fault of ours (`axpo.threads.ToolThreads`). An `async` function runs
    in the event loop and must not block it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        spec: ToolSpec,
        parameters: Mapping[str, _Parameter],
        context_name: str | None,
        max_result_chars: int,
    ) -> None:
        self.spec = spec
        self._function = function
        self._parameters = parameters
        self._context_name = context_name
        self._max_result_chars = max_result_chars
        self.threads = ToolThreads(spec.name)
        """Those in which the function runs."""

    @classmethod
    def from_function(
        cls, function: Callable[..., Any], *, name: str | None = None, max_result_chars: int = 8000
    ) -> FunctionTool:
        """Read name, description and schema off a typed function with a Google-style docstring.

        A parameter annotated `ToolContext` is passed the rollout's context and hidden from the model. Raises
        `ConfigError` when a type or a description is missing.
        """
        name = name or str(getattr(function, "__name__", type(function).__name__))
        if not _TOOL_NAME.fullmatch(name):
            raise ConfigError(f"tool {name!r}: a name has 1 to 64 letters, digits, _ . -. Pass name=... .")
        documented = function if inspect.isroutine(function) else cast("Any", function).__call__
        description, argument_docs = _parse_docstring(inspect.cleandoc(documented.__doc__ or ""))
        if not description:
            raise ConfigError(
                f"tool {name}: the function has no docstring; the model reads it. Say what the tool does."
            )
        parameters, context_name = _read_parameters(documented, name, argument_docs)
        spec = ToolSpec(name=name, description=description, parameters=_object_schema(parameters))
        return cls(
            function,
            spec=spec,
            parameters=parameters,
            context_name=context_name,
            max_result_chars=max_result_chars,
        )

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """Check the arguments, call the function, turn its result into content.

        Raises `ToolError`: `BAD_ARGUMENTS` naming the parameter, `EXECUTION_ERROR` with what the function raised. A
        `ToolError`, `RolloutFault` or `QuotaError` of the function itself passes through.
        """
        return await self.run_as(self._function, call, context)

    async def run_as(self, function: Callable[..., Any], call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """As `run`, with another function of the same arguments."""
        arguments = self._check_arguments(call.arguments)
        if self._context_name is not None:
            arguments[self._context_name] = context
        try:
            with self.threads.call():
                result = await call_function(function, arguments, self.threads)
            return self._to_content(result, context)
        except (ToolError, RolloutFault, QuotaError):
            raise
        except (Exception, SystemExit) as error:
            message = self._cut(f"{type(error).__name__}: {error}", MAX_ERROR_CHARS, context)
            raise ToolError(FailureKind.EXECUTION_ERROR, f"{self.spec.name} raised {message}") from error

    def _check_arguments(self, arguments: Mapping[str, JsonValue]) -> dict[str, Any]:
        unknown = [argument for argument in arguments if argument not in self._parameters]
        if unknown:
            known = ", ".join(self._parameters) or "none"
            raise self._bad_arguments(f"there is no argument {unknown[0][:60]!r}; the arguments are: {known}.")
        checked: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            if name in arguments:
                checked[name] = self._check_argument(name, parameter, arguments[name])
            elif parameter.is_required:
                raise self._bad_arguments(f"the argument {name} is missing.")
        return checked

    def _check_argument(self, name: str, parameter: _Parameter, value: JsonValue) -> Any:
        from pydantic import ValidationError

        try:
            return parameter.adapter.validate_json(json.dumps(value, allow_nan=False), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = ".".join([name, *(str(part) for part in first["loc"])])
            got = cut_middle(json.dumps(first["input"], default=str), 60)
            raise self._bad_arguments(f"{place}: {first['msg']}, got {got}.") from error
        except (ValueError, RecursionError) as error:
            raise self._bad_arguments(f"{name}: {error}.") from error

    def _bad_arguments(self, message: str) -> ToolError:
        return ToolError(FailureKind.BAD_ARGUMENTS, f"{self.spec.name}: {message}")

    def _to_content(self, result: Any, context: ToolContext) -> tuple[Content, ...]:
        from PIL.Image import Image

        blocks = cast("Sequence[Any]", result) if isinstance(result, (list, tuple)) else [result]
        if not any(isinstance(block, Image) for block in blocks):
            return (Content(text=self._to_text(result, context)),)
        return tuple(
            Content(image=self._add_picture(block, context))
            if isinstance(block, Image)
            else Content(text=self._to_text(block, context))
            for block in blocks
        )

    def _add_picture(self, picture: Image, context: ToolContext) -> ImageRef:
        short_px, long_px = sorted(picture.size)
        if short_px * long_px > MAX_IMAGE_PX or long_px > MAX_ASPECT_RATIO * short_px:
            raise self._unusable(
                f"it has {picture.width}x{picture.height} px; at most {MAX_IMAGE_PX} px in all and a length of "
                f"{MAX_ASPECT_RATIO} times the width are possible"
            )
        try:
            return context.store.add_image(picture)
        except DataError as error:
            raise self._unusable(str(error)) from error

    def _unusable(self, reason: str) -> ToolError:
        return ToolError(
            FailureKind.EXECUTION_ERROR, f"{self.spec.name}: the picture it made cannot be used: {reason}."
        )

    def _to_text(self, value: Any, context: ToolContext) -> str:
        if not isinstance(value, str):
            try:
                value = json.dumps(value, ensure_ascii=False, default=str)
            except (TypeError, ValueError):  # keys that JSON has no form for, cycles
                value = str(value)
        # lone surrogates cannot be tokenised
        return self._cut(value.encode("utf-8", "replace").decode("utf-8"), self._max_result_chars, context)

    def _cut(self, text: str, max_chars: int, context: ToolContext) -> str:
        context.is_cut |= len(text) > max_chars
        return cut_middle(text, max_chars)


def cut_middle(text: str, max_chars: int) -> str:
    """The text, its middle replaced by a mark where it is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    head, tail = max_chars - max_chars // 2, max_chars // 2
    return f"{text[:head]}\n[... {len(text) - max_chars} characters left out ...]\n{text[len(text) - tail :]}"


# -- calling ----------------------------------------------------------------------------------------------------------


async def call_function(function: Callable[..., Any], arguments: Mapping[str, Any], threads: ToolThreads) -> Any:
    """The function's result: a plain one runs in a daemon thread, an async one in this event loop."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return await function(**arguments)

    def attempt() -> tuple[Any, BaseException | None]:
        try:
            return function(**arguments), None
        except BaseException as error:  # as a value: no future can hold a StopIteration
            return None, error

    result, error = await threads.run(attempt)
    if isinstance(error, StopIteration):  # no coroutine may raise one
        raise RuntimeError("StopIteration") from error
    if error is not None:
        raise error
    return await result if inspect.isawaitable(result) else result


# -- schema -----------------------------------------------------------------------------------------------------------


def _read_parameters(
    function: Callable[..., Any], tool_name: str, argument_docs: Mapping[str, str]
) -> tuple[dict[str, _Parameter], str | None]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(f"tool {tool_name}: cannot resolve its type hints: {error}. Import the type.") from error
    parameters: dict[str, _Parameter] = {}
    context_name = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"tool {tool_name}: {parameter} cannot be called by name. Write the arguments out.")
        if name not in hints:
            raise ConfigError(f"tool {tool_name}: argument {name} has no type. Annotate it, e.g. `{name}: str`.")
        if hints[name] is ToolContext:
            context_name = name
            continue
        if name not in argument_docs:
            raise ConfigError(f"tool {tool_name}: argument {name} has no line under `Args:` in the docstring. Add one.")
        parameters[name] = _Parameter(
            adapter=_make_adapter(hints[name], f"tool {tool_name}: argument {name}"),
            description=argument_docs[name],
            is_required=parameter.default is parameter.empty,
            default=parameter.default,
        )
    return parameters, context_name


def _make_adapter(annotation: Any, origin: str) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        adapter.json_schema()
    except PydanticUserError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{origin} has a type without a JSON form: {annotation!r} ({reason}). Use JSON types."
        ) from error
    return adapter


def _object_schema(parameters: Mapping[str, _Parameter]) -> dict[str, JsonValue]:
    properties: dict[str, JsonValue] = {}
    definitions: dict[str, JsonValue] = {}
    for name, parameter in parameters.items():
        schema = parameter.adapter.json_schema()
        definitions |= schema.pop("$defs", {})
        properties[name] = schema | {"description": parameter.description}
        if not parameter.is_required and parameter.default is not None:
            properties[name]["default"] = parameter.adapter.dump_python(parameter.default, mode="json")
    required = [name for name, parameter in parameters.items() if parameter.is_required]
    schema = {"type": "object", "properties": properties, "required": required}
    return schema | ({"$defs": definitions} if definitions else {})


def _parse_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Description and the lines of `Args:`, of a docstring in Google style."""
    # [description, section name, section body, section name, ...]
    parts = _SECTION.split(docstring)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    body = next((sections[name] for name in ("Args", "Arguments", "Parameters") if name in sections), "")
    arguments: dict[str, str] = {}
    current, indent = "", -1
    for line in body.splitlines():
        match = _ARGUMENT.match(line)
        if match and (indent < 0 or len(match[1]) <= indent):
            current, indent = match[2], len(match[1])
            arguments[current] = match[3].strip()
        elif current and line.strip():
            arguments[current] = f"{arguments[current]} {line.strip()}".strip()
    return " ".join(parts[0].split()), arguments

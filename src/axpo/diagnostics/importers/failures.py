"""Why a tool call failed, read off what the model got to read. Our own wordings are exact, others are guesses.

Other trainers write errors as plain text in the place of the result, so there is nothing exact to go by. A result
counts as a failure when its beginning says so (`error`, `exception`, `failed`, `{"error": ...}`, a Python traceback),
and the kind follows from words of its first 400 characters. A tool that reports an error in other words goes unseen.
"""

from __future__ import annotations

from axpo.types import FailureKind

_HEAD_CHARS = 400
_TRACEBACK = "Traceback (most recent call last)"
_TRACEBACK_CHARS = 20_000

_ERROR_STARTS = (
    "error",
    "exception",
    "traceback",
    "failed",
    "failure",
    "invalid",
    "execution error",
    "tool error",
    "[error",
    "(error",
    "<error",
    '{"error"',
    "{'error'",
    '{"exception"',
    '{"status": "error"',
    "timeout",
    "timed out",
    "unknown tool",
    "no such tool",
)
_WORDS: tuple[tuple[FailureKind, tuple[str, ...]], ...] = (
    (FailureKind.TIMEOUT, ("timed out", "timeout", "time limit", "did not finish within")),
    (FailureKind.UNKNOWN_TOOL, ("unknown tool", "no such tool", "no tool named", "unknown function")),
    (
        FailureKind.TOOL_FAULT,
        ("rate limit", "quota", "unavailable", "connection", "too many requests", "out of memory"),
    ),
    (FailureKind.MALFORMED_CALL, ("invalid json", "json decode", "jsondecode", "malformed", "could not parse")),
    (
        FailureKind.BAD_ARGUMENTS,
        ("argument", "parameter", "validation", "missing", "required", "schema", "keyerror", "must be"),
    ),
)
_NOT_FOUND = ("not found", "does not exist", "not available", "not exist")
_FAILURE_OF_TYPE = {
    "parsing": FailureKind.BAD_ARGUMENTS,
    "timeout": FailureKind.TIMEOUT,
    "sandbox_unavailable": FailureKind.TOOL_FAULT,
    "cancelled": FailureKind.TOOL_FAULT,
}


def guess_failure(result: str, tool: str | None) -> FailureKind | None:
    """The kind of failure that a result text tells of; None when it reads like a result.

    >>> guess_failure("There is no tool named 'zoom'. Tools: python.", None)
    <FailureKind.UNKNOWN_TOOL: 'unknown_tool'>
    >>> guess_failure('{"error": "Tool zoom not found."}', "zoom")
    <FailureKind.UNKNOWN_TOOL: 'unknown_tool'>
    >>> guess_failure("No errors were found.", "lint") is None
    True
    """
    head = result[:_HEAD_CHARS].lstrip().lower()
    if not head:
        return None
    ours = _own_wording(head, (tool or "").lower())
    if ours is not None:
        return ours
    if tool and result.strip() == repr(tool):  # verifiers answers with the bare text of Python's KeyError
        return FailureKind.UNKNOWN_TOOL
    if not head.startswith(_ERROR_STARTS):
        is_traceback = _TRACEBACK in result[:_TRACEBACK_CHARS]
        return FailureKind.EXECUTION_ERROR if is_traceback else None
    if head.startswith("traceback"):
        return FailureKind.EXECUTION_ERROR
    if any(words in head for words in _NOT_FOUND) and ("tool" in head or "function" in head):
        return FailureKind.UNKNOWN_TOOL
    matching = (kind for kind, words in _WORDS if any(word in head for word in words))
    return next(matching, FailureKind.EXECUTION_ERROR)


def failure_of_type(error_type: str, message: str, tool: str | None) -> FailureKind:
    """The kind of an error that a log names by type (inspect_ai), else by its message."""
    guessed = guess_failure(f"error: {message}", tool) or FailureKind.EXECUTION_ERROR
    if guessed is FailureKind.UNKNOWN_TOOL:  # inspect_ai counts it as an error of parsing
        return guessed
    return _FAILURE_OF_TYPE.get(error_type, guessed)


def _own_wording(head: str, tool: str) -> FailureKind | None:
    """What `axpo.rollout` answers when a call fails."""
    if head.startswith("malformed tool call: "):
        return FailureKind.MALFORMED_CALL
    if head.startswith("there is no tool named "):
        return FailureKind.UNKNOWN_TOOL
    if not tool or not head.startswith(tool):
        return None
    rest = head[len(tool) :]
    if rest.startswith(" did not finish within "):
        return FailureKind.TIMEOUT
    if rest.startswith(" raised "):
        return FailureKind.EXECUTION_ERROR
    return FailureKind.BAD_ARGUMENTS if rest.startswith(": ") else None

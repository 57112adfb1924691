"""Requests to search services: every failure has somebody to blame."""

from __future__ import annotations

import json
from typing import Any

from axpo import http
from axpo.errors import QuotaError, ToolFault
from axpo.http import MAX_RETRY_AFTER_S, Answer, HttpFailure
from axpo.tools.search.results import one_line
from axpo.types import JsonValue

_USED_UP = (402, 432, 433)
"""402 by HTTP; 432 and 433 are Tavily's plan and pay-as-you-go limits."""
_TRANSIENT = (408, 425)
"""The server did not wait for the request, or wants it again."""


class RequestRefused(Exception):
    """The service answered that it does not take this request: the query's fault, or the configuration's.

    `hint` says where the user has to look in the second case. `is_access`: HTTP 401, which no query deserves.
    """

    def __init__(self, message: str, *, hint: str, is_access: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.is_access = is_access


class TooManyRequests(ToolFault):
    """HTTP 429, with the seconds the service asks to wait."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NoResults(ToolFault):
    """Nothing was found, perhaps because a part of the service is out of order."""


class HttpClient(http.HttpClient):
    """A bounded client whose failures are faults of ours."""

    async def request(self, method: str, url: str, *, follow_redirects: bool = True, **request: Any) -> Answer:
        """One exchange. Raises `ToolFault` when it fails, takes too long or is too large."""
        try:
            return await super().request(method, url, follow_redirects=follow_redirects, **request)
        except HttpFailure as failure:
            raise ToolFault(one_line(str(failure))) from failure


def read_json(answer: Answer, *, service: str, key_hint: str, secret: str | None = None) -> JsonValue:
    """The JSON body of a good answer; every other answer raises what it deserves.

    `key_hint` says where the user has to look when access is refused. `secret` never appears in a message.
    """
    if answer.status == 200:
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise ToolFault(f"{service} answered something other than JSON ({len(answer.body)} bytes)") from error
    said = one_line(answer.body[:300].decode("utf-8", "replace"))
    if secret:
        said = said.replace(secret, "***")
    message = f"{service} answered HTTP {answer.status}: {said or 'nothing'}"
    if answer.status in _USED_UP:
        raise QuotaError(f"{message}. Its plan is used up: raise the limit there, then continue with --resume.")
    if answer.status == 429:
        retry_after_s = answer.retry_after_s
        raise TooManyRequests(message, retry_after_s=MAX_RETRY_AFTER_S / 10 if retry_after_s is None else retry_after_s)
    if 400 <= answer.status < 500 and answer.status not in _TRANSIENT:
        hints = {401: key_hint, 403: key_hint, 404: "Check the option url."}
        hint = hints.get(answer.status, "Check the options of the search tool.")
        raise RequestRefused(message, hint=hint, is_access=answer.status == 401)
    raise ToolFault(message)

"""Search by a SearXNG server, the user's own or a public one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from axpo.errors import ToolFault
from axpo.http import check_url, read_key
from axpo.tools.search.http import HttpClient, NoResults, read_json
from axpo.tools.search.results import Domains, SearchResult, one_line, read_results
from axpo.types import JsonValue

_COMMAND_SIGNS = "!:<?"
"""A word that starts with one is a command to SearXNG: bangs (some redirect to other sites), languages, timeouts."""


class SearxngBackend:
    """The server must allow JSON (`search.formats` in its settings.yml). Domains are filtered here."""

    def __init__(self, client: HttpClient, domains: Domains, *, url: str, key_env: str | None) -> None:
        self._client = client
        self._domains = domains
        self._url = check_url("search: url", url)
        self._key_env = key_env

    @property
    def identity(self) -> Mapping[str, JsonValue]:
        """Address and domains."""
        return {
            "backend": "searxng",
            "url": self._url,
            "include_domains": self._domains.include,
            "exclude_domains": self._domains.exclude,
        }

    async def search(self, query: str, max_results: int) -> list[SearchResult]:
        """One request to /search; the server decides how many results it gives, the first ones are taken."""
        words = " ".join(word.lstrip(_COMMAND_SIGNS) for word in query.split()).strip()
        if not words:
            return []
        key = read_key("search", self._key_env) if self._key_env else None
        answer = await self._client.request(
            "GET",
            f"{self._url}/search",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            params={"q": words, "format": "json"},
        )
        hint = "Does its settings.yml list json under search.formats?"
        body = read_json(answer, service="SearXNG", key_hint=hint, secret=key)
        if not isinstance(body, dict):
            raise ToolFault("SearXNG: its answer is no JSON object")
        fields = cast("dict[str, Any]", body)
        results = read_results(fields.get("results"), service="SearXNG", fields=("title", "url", "content"))
        if not results and fields.get("unresponsive_engines"):
            engines = one_line(str(fields["unresponsive_engines"]))[:200]
            raise NoResults(f"SearXNG: no results, and these engines did not answer: {engines}")
        return self._domains.filter(results)[:max_results]

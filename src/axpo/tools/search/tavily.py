"""Search by Tavily's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from axpo.errors import ConfigError, ToolFault
from axpo.http import check_url, read_key
from axpo.tools.search.http import HttpClient, read_json
from axpo.tools.search.results import Domains, SearchResult, read_results
from axpo.types import JsonValue

TAVILY_URL = "https://api.tavily.com"
_DEPTHS = ("basic", "advanced", "fast", "ultra-fast")


class TavilyBackend:
    """Tavily leaves out excluded domains itself; what it returns is filtered once more."""

    def __init__(self, client: HttpClient, domains: Domains, *, url: str, key_env: str, search_depth: str) -> None:
        if search_depth not in _DEPTHS:
            raise ConfigError(f"search: search_depth must be one of {', '.join(_DEPTHS)}, got {search_depth!r}.")
        self._client = client
        self._domains = domains
        self._url = check_url("search: url", url)
        self._key_env = key_env
        self._search_depth = search_depth

    @property
    def identity(self) -> Mapping[str, JsonValue]:
        """Address, depth and domains."""
        return {
            "backend": "tavily",
            "url": self._url,
            "search_depth": self._search_depth,
            "include_domains": self._domains.include,
            "exclude_domains": self._domains.exclude,
        }

    async def search(self, query: str, max_results: int) -> list[SearchResult]:
        """One request to /search."""
        key = read_key("search", self._key_env)
        answer = await self._client.request(
            "POST",
            f"{self._url}/search",
            headers={"Authorization": f"Bearer {key}"},
            json={
                "query": query,
                "max_results": max_results,
                "search_depth": self._search_depth,
                "include_domains": self._domains.include,
                "exclude_domains": self._domains.exclude,
            },
        )
        hint = f"Check the key in the environment variable {self._key_env}."
        body = read_json(answer, service="Tavily", key_hint=hint, secret=key)
        if not isinstance(body, dict):
            raise ToolFault("Tavily: its answer is no JSON object")
        items = cast("dict[str, Any]", body).get("results")
        return self._domains.filter(read_results(items, service="Tavily", fields=("title", "url", "content")))[
            :max_results
        ]

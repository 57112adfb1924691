"""`search`: web search, or search in a local index."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

from axpo.errors import ConfigError
from axpo.http import read_key
from axpo.protocols import Tool, ToolContext
from axpo.tools.search.http import HttpClient
from axpo.tools.search.local import LocalBackend, LocalIndex
from axpo.tools.search.pages import KnownPages, OpenPageTool, PageFetcher
from axpo.tools.search.proof import PROBE_QUERY
from axpo.tools.search.results import (
    MAX_QUERY_CHARS,
    Domains,
    SearchBackend,
    SearchResult,
    format_results,
    read_count,
    read_query,
    refuse_unknown,
)
from axpo.tools.search.searxng import SearxngBackend
from axpo.tools.search.service import CacheMode, Service
from axpo.tools.search.tavily import TAVILY_URL, TavilyBackend
from axpo.types import Content, JsonValue, ToolCall, ToolSpec

MAX_RESULTS = 20
_MAX_JSON_BYTES = 4_000_000
_MAX_PAGE_BYTES = 2_000_000


class SearchTool:
    """Numbered results with title, address and a passage. `docs/search.md` lists the options.

    With `fetch`, `companions` holds the tool `open_page`, which shares cache, quota and connections. On the web it
    opens what the rollout's searches returned: the tool then is an `axpo.protocols.StatefulTool`, whose calls a branch
    replays; they get the answers they had.
    """

    bounds_its_time: Literal[True] = True

    def __init__(
        self,
        *,
        name: str = "search",
        backend: str = "local",
        index: str | None = None,
        url: str | None = None,
        api_key_env: str | None = None,
        search_depth: str = "basic",
        include_domains: Sequence[str] = (),
        exclude_domains: Sequence[str] = (),
        max_snippet_chars: int = 500,
        cache: str | None = None,
        cache_mode: CacheMode = "live",
        max_requests: int | None = None,
        requests_per_second: float | None = None,
        cost_per_request: float = 0.0,
        timeout_s: float = 20.0,
        fetch: bool = False,
        max_page_chars: int = 8000,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        if max_snippet_chars < 1 or timeout_s <= 0:
            raise ConfigError(
                f"{name}: need max_snippet_chars >= 1 and timeout_s > 0, got {max_snippet_chars} and {timeout_s}."
            )
        self.spec = _spec(name)
        self._max_snippet_chars = max_snippet_chars
        self._domains = Domains(include=include_domains, exclude=exclude_domains)
        self._known: KnownPages | None = None
        self._service: Service | None = None
        self._clients: list[HttpClient] = []
        if backend == "local":
            network = {"url": url, "api_key_env": api_key_env, "cache": cache, "max_requests": max_requests}
            if given := [option for option, value in network.items() if value is not None]:
                raise ConfigError(f"{name}: {given[0]} is for tavily and searxng; backend is local. Leave it out.")
            opened = LocalIndex.open(_require(name, "index", index, "made by: axpo index SOURCE --out DIR"))
            self._backend: SearchBackend = LocalBackend(opened, self._domains, passage_chars=max_snippet_chars)
            pages = partial(OpenPageTool, index=opened)
        else:
            if index is not None:
                raise ConfigError(f"{name}: index is for the backend local; backend is {backend}. Leave it out.")
            self._clients = [
                HttpClient(timeout_s=timeout_s, max_bytes=_MAX_JSON_BYTES),
                HttpClient(timeout_s=timeout_s, max_bytes=_MAX_PAGE_BYTES, use_proxies=False),
            ]
            key_env = api_key_env or ("TAVILY_API_KEY" if backend == "tavily" else None)
            if key_env is not None and cache_mode != "replay":
                read_key(name, key_env)  # a missing key is told now, not at the first search
            self._backend = self._network_backend(backend, url=url, key_env=key_env, search_depth=search_depth)
            self._service = Service(
                name,
                probe=partial(self._backend.search, PROBE_QUERY, 1),
                cache=cache,
                cache_mode=cache_mode,
                max_requests=max_requests,
                requests_per_second=requests_per_second,
                cost_per_request=cost_per_request,
            )
            fetcher = PageFetcher(self._clients[1], self._domains, allow_hosts=allow_hosts)
            known = KnownPages(name)
            pages = partial(OpenPageTool, service=self._service, fetcher=fetcher, known=known)
            if fetch:  # otherwise there is nothing to replay
                self._known, self.close_rollout = known, self._close_rollout
        self.companions: tuple[Tool, ...] = (pages("open_page", max_chars=max_page_chars),) if fetch else ()

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """The results as one text.

        Raises `ToolError` for a bad query, `ToolFault` when the service failed, `QuotaError` when it is used up, and
        `ConfigError` when it refuses the key or a replayed search was never recorded.
        """
        name = self.spec.name
        refuse_unknown(name, call.arguments, self.spec.parameters["properties"])
        query = read_query(name, call.arguments)
        max_results = read_count(name, call.arguments, "max_results", default=5, maximum=MAX_RESULTS)
        results = await self._search(query, max_results, context, call_id=call.id if self._known is not None else None)
        return (Content(text=format_results(results, max_snippet_chars=self._max_snippet_chars)),)

    async def search(self, query: str, max_results: int, context: ToolContext) -> list[SearchResult]:
        """The results themselves."""
        return await self._search(query, max_results, context, call_id=None)

    async def _search(
        self, query: str, max_results: int, context: ToolContext, *, call_id: str | None
    ) -> list[SearchResult]:
        if self._service is None:
            return await self._backend.search(query, max_results)
        request = {**self._backend.identity, "query": query, "max_results": max_results}
        ask = partial(self._ask, query, max_results)
        stored = await self._service.answer(request, ask, context, call_id=call_id)
        results = [SearchResult(**cast("dict[str, Any]", entry)) for entry in cast("list[Any]", stored)]
        if self._known is not None:
            self._known.add((result.url for result in results), context)
        return results

    def stats(self) -> dict[str, float]:
        """Requests, cached answers, faults and cost of this process; nothing for a local index."""
        return self._service.stats() if self._service is not None else {}

    def close(self) -> None:
        """Close connections and cache."""
        if self._service is not None:
            self._service.close(self._close_clients())

    async def _close_rollout(self, context: ToolContext) -> None:
        if self._known is not None:
            self._known.forget(context)

    async def _close_clients(self) -> None:
        for client in self._clients:
            await client.close()

    async def _ask(self, query: str, max_results: int) -> JsonValue:
        return [result.to_json() for result in await self._backend.search(query, max_results)]

    def _network_backend(
        self, backend: str, *, url: str | None, key_env: str | None, search_depth: str
    ) -> SearchBackend:
        client, domains = self._clients[0], self._domains
        if backend == "tavily":
            address = url or TAVILY_URL
            return TavilyBackend(client, domains, url=address, key_env=key_env or "", search_depth=search_depth)
        if backend == "searxng":
            address = _require(self.spec.name, "url", url, "the address of the SearXNG server")
            return SearxngBackend(client, domains, url=address, key_env=key_env)
        raise ConfigError(f"{self.spec.name}: backend must be local, tavily or searxng, got {backend!r}.")


def _require(tool: str, option: str, value: str | None, meaning: str) -> str:
    if not value:
        raise ConfigError(f"{tool}: {option} is missing: {meaning}.")
    return value


def _spec(name: str) -> ToolSpec:
    return ToolSpec(
        name=name,
        description="Search for information. Returns titles, addresses and passages.",
        parameters={
            "type": "object",
            "properties": {
                "query": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": MAX_QUERY_CHARS,
                    "description": "What to look for.",
                },
                "max_results": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_RESULTS,
                    "default": 5,
                    "description": f"How many results, 1 to {MAX_RESULTS}.",
                },
            },
            "required": ["query"],
        },
    )

"""`open_page`: the readable text of a page that a search returned."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import time
from collections.abc import Iterable
from functools import partial
from typing import Literal, cast
from urllib.parse import urljoin, urlsplit, urlunsplit

from axpo.errors import ConfigError, ToolError, ToolFault
from axpo.http import Answer
from axpo.protocols import ToolContext
from axpo.threads import run_in_daemon_thread
from axpo.tools.search.http import HttpClient
from axpo.tools.search.local import LocalIndex
from axpo.tools.search.results import Domains, bad_arguments, clean, read_count, refuse_unknown
from axpo.tools.search.service import Service
from axpo.types import Content, FailureKind, ToolCall, ToolSpec
from axpo.workers import WorkError, text_workers

MAX_PARTS = 1000
_MAX_HOPS = 5
_WEB_PORTS = (80, 443)
MIN_READ_S = 1.0
"""Time to read a page that arrived at the last moment."""
_READ_PAGE = "axpo.tools.search.text:read_page"
_HTML = ("text/html", "application/xhtml+xml")
_PLAIN = ("application/json", "application/xml")
_CARRIES_IPV4 = tuple(ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96"))
"""NAT64, IPv4-compatible and IPv4-translated addresses: the last 32 bits are an IPv4 address."""
_LOCAL = (ipaddress.IPv6Network("64:ff9b:1::/48"), ipaddress.IPv6Network("fec0::/10"))
"""NAT64 within a site, and site-local addresses: Python calls some of them global."""


class KnownPages:
    """The addresses that a rollout's own searches returned, kept in its context: what other rollouts find, and when,
    decides nothing, so that a replayed run repeats.
    """

    def __init__(self, search_name: str) -> None:
        self._key = f"{search_name}: addresses found"

    def add(self, urls: Iterable[str], context: ToolContext) -> None:
        """Remember them."""
        context.state.setdefault(self._key, set()).update(urls)

    def has(self, url: str, context: ToolContext) -> bool:
        """True when a search of the rollout returned it."""
        return url in context.state.get(self._key, ())

    def forget(self, context: ToolContext) -> None:
        """The rollout has ended."""
        context.state.pop(self._key, None)


class OpenPageTool:
    """Text of a page, in parts of `max_chars` characters.

    A document of a local index is read from there. On the web, only addresses that a search of the same rollout
    returned can be opened (a branch replays the searches of its prefix), so that the model can send nothing out by an
    address of its own making. A page that cannot be had is a `ToolError`: nobody but the model chose it.
    """

    bounds_its_time: Literal[True] = True

    def __init__(
        self,
        name: str,
        *,
        index: LocalIndex | None = None,
        service: Service | None = None,
        fetcher: PageFetcher | None = None,
        known: KnownPages | None = None,
        max_chars: int = 8000,
    ) -> None:
        if max_chars < 1:
            raise ConfigError(f"{name}: max_page_chars must be at least 1, got {max_chars}.")
        self._index = index
        self._service = service
        self._fetcher = fetcher
        self._known = known
        self._max_chars = max_chars
        self.spec = ToolSpec(
            name=name,
            description="Read a page of the search results as text.",
            parameters={
                "type": "object",
                "properties": {
                    "url": {"type": "string", "description": "The address, exactly as in the search results."},
                    "part": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": MAX_PARTS,
                        "default": 1,
                        "description": "Which part of a long page, from 1.",
                    },
                },
                "required": ["url"],
            },
        )

    async def run(self, call: ToolCall, context: ToolContext) -> tuple[Content, ...]:
        """One part of the page's text."""
        name = self.spec.name
        refuse_unknown(name, call.arguments, self.spec.parameters["properties"])
        url = call.arguments.get("url")
        if not isinstance(url, str):
            raise bad_arguments(name, "url must be a string.")
        part = read_count(name, call.arguments, "part", default=1, maximum=MAX_PARTS)
        text = await self._text(clean(url).strip(), context)
        parts = [text[start : start + self._max_chars] for start in range(0, len(text), self._max_chars)] or [""]
        if part > len(parts):
            raise bad_arguments(name, f"part {part} does not exist; the page has {len(parts)}.")
        more = f"\n\n[part {part} of {len(parts)}]" if len(parts) > 1 else ""
        return (Content(text=(parts[part - 1] or "The page has no text.") + more),)

    async def _text(self, url: str, context: ToolContext) -> str:
        if self._index is not None:
            document = self._index.document(url)
            if document is None:
                raise self._unknown()
            return f"{document.title}\n\n{document.text}".strip()
        assert self._service is not None and self._fetcher is not None and self._known is not None
        if not self._known.has(url, context):
            raise self._unknown()
        request = {"backend": "page", "url": url, **self._fetcher.identity}
        read = partial(self._fetcher.text, url)
        return cast("str", await self._service.answer(request, read, context, is_paid=False))

    def _unknown(self) -> ToolError:
        return bad_arguments(self.spec.name, "url is not among the search results. Copy one from there, exactly.")


class PageFetcher:
    """Fetches pages of the public web.

    A host whose name resolves to an address that is not public is refused, at every redirect anew, and the connection
    goes to the very address that was checked. `allow_hosts` names exceptions, as written in the page's address: a host
    for the web's own ports 80 and 443, `host:port` for another port.
    """

    def __init__(self, client: HttpClient, domains: Domains, *, allow_hosts: Iterable[str] = ()) -> None:
        self._client = client
        self._domains = domains
        self._allow_hosts = frozenset(map(_read_host, allow_hosts))

    @property
    def identity(self) -> dict[str, list[str]]:
        """What decides, besides the address, whether a page is shown."""
        return {
            "include_domains": self._domains.include,
            "exclude_domains": self._domains.exclude,
            "allow_hosts": sorted(f"{host}:{port}" if port else host for host, port in self._allow_hosts),
        }

    async def text(self, url: str) -> str:
        """Title and text. Raises `ToolError` when there is no such page, or none that can be read as text."""
        started_s = time.monotonic()
        try:
            answer = await self.fetch(url)
        except ToolFault as error:  # of a third party, chosen by the model
            raise _unreadable(str(error)) from error
        kind, _, parameters = answer.headers.get("content-type", "text/html").lower().partition(";")
        kind, is_html = kind.strip(), kind.strip() in _HTML
        if not (is_html or kind.startswith("text/") or kind in _PLAIN):
            raise _unreadable(f"it is {kind[:60] or 'of no type'}, not text")
        charset = re.search(r"charset\s*=\s*[\"']?([\w-]{1,30})", parameters)
        remaining_s = max(MIN_READ_S, self._client.timeout_s - (time.monotonic() - started_s))
        body = base64.b64encode(answer.body).decode()
        read = partial(text_workers.run, _READ_PAGE, body, is_html, charset[1] if charset else None)
        try:
            return await run_in_daemon_thread(read, cpu_s=remaining_s, wall_s=remaining_s)
        except WorkError as error:
            raise _unreadable(f"its text cannot be read: {error}") from error

    async def fetch(self, url: str) -> Answer:
        """The answer at the end of the redirects. Raises `ToolError`, or `ToolFault` where the exchange failed."""
        try:
            async with asyncio.timeout(self._client.timeout_s):
                return await self._follow(url)
        except TimeoutError as error:
            raise ToolFault(f"it took longer than {self._client.timeout_s:g} s") from error

    async def _follow(self, url: str) -> Answer:
        for _ in range(_MAX_HOPS):
            answer = await self._request(url)
            target = answer.headers.get("location")
            if answer.status not in (301, 302, 303, 307, 308) or not target:
                if answer.status != 200:
                    raise _unreadable(f"HTTP {answer.status}")
                return answer
            try:
                url = urljoin(url, target)
            except ValueError as error:
                raise _unreadable("it redirects to a malformed address") from error
        raise _unreadable("too many redirects")

    async def _request(self, url: str) -> Answer:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise _unreadable("its address is malformed") from error
        if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
            raise _unreadable("its address is no plain web address")
        if not self._domains.allow(url):
            raise _unreadable("its domain is not allowed")
        default_port = 443 if parts.scheme == "https" else 80
        if (host, port or default_port) in self._allow_hosts or (
            (host, None) in self._allow_hosts and (port or default_port) in _WEB_PORTS
        ):
            return await self._client.request("GET", url, follow_redirects=False)
        address = await _public_address(host, port or default_port)
        bracketed = f"[{address}]" if ":" in address else address
        suffix = f":{port}" if port else ""
        return await self._client.request(
            "GET",
            urlunsplit((parts.scheme, bracketed + suffix, parts.path or "/", parts.query, "")),
            follow_redirects=False,
            headers={"Host": (f"[{host}]" if ":" in host else host) + suffix},
            extensions={"sni_hostname": host},
        )


async def _public_address(host: str, port: int) -> str:
    try:
        # not the loop's own: its threads would be waited for at the end of the program
        found = await run_in_daemon_thread(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolFault(f"the host {host[:100]} cannot be resolved") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _unreadable("its host is not on the public web")
    return addresses[0]


def _read_host(written: str) -> tuple[str, int | None]:
    """Host and port of an entry of `allow_hosts`. Raises `ConfigError`."""
    try:
        parts = urlsplit(f"//{written}")
        if parts.hostname and parts.netloc == written:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"allow_hosts: {written[:100]!r} is no host. Write it as wiki.local or wiki.local:8080.")


def is_public(address: str) -> bool:
    """True for an address of the public internet, also where an IPv6 address carries an IPv4 one."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _LOCAL):
            return False
        teredo = ip.teredo[1] if ip.teredo else None
        carried = ip.ipv4_mapped or ip.sixtofour or teredo
        if carried is None and any(ip in network for network in _CARRIES_IPV4):
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if carried is not None:
            ip = carried
    return ip.is_global and not ip.is_multicast


def _unreadable(reason: str) -> ToolError:
    return ToolError(FailureKind.EXECUTION_ERROR, f"The page cannot be opened: {reason}.")

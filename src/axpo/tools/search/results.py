"""What a search finds, which of it may be shown, and how the model reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

from axpo.errors import ConfigError, ToolError, ToolFault
from axpo.normalization import normalize
from axpo.types import FailureKind, JsonValue

MAX_QUERY_CHARS = 400
"""Tavily takes no longer ones."""
MAX_URL_CHARS = 2000
MAX_TITLE_CHARS = 200
MAX_STORED_CHARS = 4000
"""Of one snippet, before `max_snippet_chars` cuts it for the model."""
_UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but the line end, and halves of surrogate pairs."""
_DOMAIN = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """One hit. `url` is `local:<id>` for a document of a local index that has no address."""

    title: str
    url: str
    snippet: str

    def to_json(self) -> dict[str, JsonValue]:
        """Its fields, for the cache."""
        return asdict(self)


class SearchBackend(Protocol):
    """Where results come from."""

    @property
    def identity(self) -> Mapping[str, JsonValue]:
        """Everything but the query that decides the answer; a part of the cache's key, so never a secret."""
        ...

    async def search(self, query: str, max_results: int) -> list[SearchResult]:
        """At most `max_results`, best first, excluded domains left out."""
        ...


class Domains:
    """Which web pages may be shown: those of `include` if given, none of `exclude`; subdomains count.

    An excluded domain is also looked for in the rest of an address: archives, caches and translators carry the page's
    own address there.
    """

    def __init__(self, *, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        self.include = _read_domains("include_domains", include)
        self.exclude = _read_domains("exclude_domains", exclude)
        names = "|".join(re.escape(name) for name in self.exclude)
        self._excluded = re.compile(rf"(?<![\w-])(?:{names})(?![\w-]|\.\w)", re.IGNORECASE) if names else None

    def allow(self, url: str) -> bool:
        """False for a page that must not be shown."""
        if not self.include and self._excluded is None:
            return True
        try:
            host = (urlsplit(url).hostname or "").rstrip(".")
        except ValueError:
            return False
        if self.include and not any(host == name or host.endswith(f".{name}") for name in self.include):
            return False
        return self._excluded is None or not self._excluded.search(f"{host} {unquote(unquote(url))}")

    def filter(self, results: Iterable[SearchResult]) -> list[SearchResult]:
        """The results that may be shown."""
        return [result for result in results if self.allow(result.url)]


def _read_domains(option: str, names: Iterable[str]) -> list[str]:
    cleaned = [name.strip().lower().removeprefix("*.").removeprefix("www.").rstrip(".") for name in names]
    for name in cleaned:
        if not _DOMAIN.fullmatch(name):
            raise ConfigError(f"search: {option}: {name!r} is no domain. Write it without scheme and path, as a.org.")
    return sorted(set(cleaned))


# -- what comes in ----------------------------------------------------------------------------------------------------


def read_query(tool: str, arguments: Mapping[str, JsonValue]) -> str:
    """The query without control characters and surplus space. Raises `ToolError` when it is empty or too long."""
    value = arguments.get("query")
    if not isinstance(value, str):
        raise bad_arguments(tool, "query must be a string.")
    if len(value) > MAX_QUERY_CHARS:
        raise bad_arguments(tool, f"query has {len(value)} characters, at most {MAX_QUERY_CHARS} are allowed.")
    query = one_line(value)
    if not query:
        raise bad_arguments(tool, "query is empty. Write what to look for.")
    return query


def read_count(tool: str, arguments: Mapping[str, JsonValue], name: str, *, default: int, maximum: int) -> int:
    """An integer argument from 1 to `maximum`. Raises `ToolError`."""
    value = arguments.get(name, default)
    is_whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1
    if not is_whole or not 1 <= value <= maximum:
        raise bad_arguments(tool, f"{name} must be a whole number from 1 to {maximum}.")
    return int(value)


def refuse_unknown(tool: str, arguments: Mapping[str, JsonValue], known: Iterable[str]) -> None:
    """Raise `ToolError` when there are arguments beyond the known ones."""
    names = list(known)
    if unknown := [name for name in arguments if name not in names]:
        raise bad_arguments(tool, f"there is no argument {unknown[0][:60]!r}; the arguments are: {', '.join(names)}.")


def bad_arguments(tool: str, message: str) -> ToolError:
    """A mistake of the model in a call."""
    return ToolError(FailureKind.BAD_ARGUMENTS, f"{tool}: {message}")


def one_line(text: str) -> str:
    """Text in composed form without control characters and halves of surrogate pairs, its white space single spaces."""
    return " ".join(clean(text).split())


def clean(text: str) -> str:
    """Text in composed form, where what cannot be printed (but line ends) has become a space."""
    return _UNPRINTABLE.sub(" ", normalize("NFC", text))


def read_results(items: JsonValue, *, service: str, fields: tuple[str, str, str]) -> list[SearchResult]:
    """Results from a service's JSON list, whose `fields` are called so for title, address and snippet.

    Entries without a usable web address are left out. Raises `ToolFault` when the list is none, or holds no usable
    entry at all.
    """
    if not isinstance(items, list):
        raise ToolFault(f"{service}: its answer has no list of results")
    entries = cast("list[Any]", items)
    results = [result for entry in entries if (result := _read_result(entry, fields)) is not None]
    if entries and not results:
        raise ToolFault(f"{service}: none of its {len(entries)} results has an address")
    return results


def _read_result(entry: Any, fields: tuple[str, str, str]) -> SearchResult | None:
    if not isinstance(entry, dict):
        return None
    values = [cast("dict[str, Any]", entry).get(name) for name in fields]
    title, url, snippet = (one_line(value[:MAX_STORED_CHARS]) if isinstance(value, str) else "" for value in values)
    if not url.startswith(("http://", "https://")) or len(url) > MAX_URL_CHARS or " " in url:
        return None
    return SearchResult(title=title, url=url, snippet=snippet)


# -- what goes out ----------------------------------------------------------------------------------------------------


def format_results(results: Sequence[SearchResult], *, max_snippet_chars: int) -> str:
    """The numbered list that the model reads."""
    if not results:
        return "No results."
    return "\n\n".join(
        f"{number}. " + "\n".join(filter(None, (shorten(hit.title, MAX_TITLE_CHARS), hit.url, passage)))
        for number, hit in enumerate(results, start=1)
        for passage in [shorten(hit.snippet, max_snippet_chars)]
    )


def shorten(text: str, max_chars: int) -> str:
    """The text on one line, cut at a word where it is too long."""
    line = one_line(text)
    if len(line) <= max_chars:
        return line
    cut = line[: max_chars - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut[max_chars // 2 :] else cut) + "…"

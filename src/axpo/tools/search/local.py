"""A search index on disk (tantivy, BM25): opened by any number of processes, read through memory maps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axpo.errors import ConfigError, MissingExtraError
from axpo.tools.search.results import Domains, SearchResult
from axpo.types import JsonValue

if TYPE_CHECKING:
    from tantivy import Index, Query, TextAnalyzer

INDEX_FILE = "axpo_index.json"
INDEX_FORMAT = 1
_TITLE_WEIGHT = 2.0
_MAX_TERM_BYTES = 60
_MAX_TIES = 1000
"""Hits of one score that are put in order; beyond it, the engine's own order (that of the documents) stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfo:
    """What an index was built from; lies beside it as JSON."""

    format: int
    engine: str
    source: str
    source_sha256: str
    num_documents: int
    language: str
    has_images: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One entry of an index. `image` is the path of the captioned picture, whose caption is the text."""

    title: str
    url: str
    text: str
    image: str = ""


class LocalIndex:
    """BM25 over title (double weight) and text. Equal scores rank in the order of the source.

    A query is a set of words: nothing in it is syntax. It may be used from several threads.
    """

    def __init__(self, index: Index, info: IndexInfo, folder: Path) -> None:
        index.register_tokenizer("axpo", analyzer(info.language))
        self.info = info
        self.folder = folder
        self._schema = index.schema
        self._analyzer = analyzer(info.language)
        self._searcher = index.searcher()

    @classmethod
    def open(cls, folder: str | Path) -> LocalIndex:
        """Raises `ConfigError` with the command that builds an index when there is none, or a damaged one."""
        tantivy = load_tantivy()
        path = Path(folder)
        try:
            info = IndexInfo(**json.loads((path / INDEX_FILE).read_text(encoding="utf-8")))
            if info.format != INDEX_FORMAT:
                raise ValueError(f"format {info.format}, expected {INDEX_FORMAT}")
            opened = cls(tantivy.Index.open(str(path / "tantivy")), info, path)
            if opened._searcher.num_docs != info.num_documents:
                raise ValueError(f"{opened._searcher.num_docs} documents, expected {info.num_documents}")
            return opened
        except (OSError, ValueError, TypeError) as error:
            reason = "does not exist" if not path.exists() else f"is no search index: {error}"
            raise ConfigError(
                f"search: index {path} {reason}. Build it: axpo index SOURCE --out {path} (SOURCE: a JSONL file or a "
                "folder)."
            ) from error

    def search(
        self,
        query: str,
        limit: int,
        *,
        passage_chars: int = 500,
        allow: Callable[[str], bool] = lambda url: True,
    ) -> list[tuple[Document, str]]:
        """Documents whose address is allowed, best first, each with the passage that fits the query best."""
        terms = self._terms(query)
        if terms is None:
            return []
        found: list[tuple[Document, str]] = []
        num_seen, num_asked = 0, limit
        passage = self._passages(terms, passage_chars)
        while True:
            ranked = self._rank(terms, num_asked)
            for address in ranked[num_seen:]:
                stored = self._searcher.doc(address)
                document = _read(stored)
                if allow(document.url):
                    is_short = len(document.text) <= passage_chars
                    found.append((document, document.text if is_short else passage(stored)))
                if len(found) == limit:
                    return found
            if len(ranked) < num_asked:
                return found
            num_seen, num_asked = num_asked, 4 * num_asked

    def document(self, url: str) -> Document | None:
        """The document with this address."""
        from tantivy import Query

        hits = self._searcher.search(Query.term_query(self._schema, "url", url), 1, count=False).hits
        return _read(self._searcher.doc(hits[0][1])) if hits else None

    def _terms(self, query: str) -> Query | None:
        from tantivy import Occur, Query

        words = dict.fromkeys(self._analyzer.analyze(query))
        weighted = (("title", _TITLE_WEIGHT), ("text", 1.0))
        clauses = [
            (Occur.Should, Query.boost_query(Query.term_query(self._schema, field, word), weight))
            for word in words
            for field, weight in weighted
        ]
        return Query.boolean_query(clauses) if clauses else None

    def _rank(self, terms: Query, limit: int) -> list[Any]:
        """The addresses of the first hits; where the last one ties with what follows, all of the tie are compared."""
        num_asked = limit + 1
        while True:
            hits = self._searcher.search(terms, num_asked, count=False).hits
            if len(hits) < num_asked or hits[-1][0] != hits[limit - 1][0] or num_asked >= limit + _MAX_TIES:
                break
            num_asked = min(4 * num_asked, limit + _MAX_TIES)
        last = hits[min(limit, len(hits)) - 1][0] if hits else 0.0
        ordered = sorted((-score, self._ordinal(address), address) for score, address in hits if score >= last)
        return [address for _, _, address in ordered[:limit]]

    def _ordinal(self, address: Any) -> int:
        return int(self._searcher.fast_field_values("ordinal", [address])[0] or 0)

    def _passages(self, terms: Query, max_chars: int) -> Callable[[Any], str]:
        from tantivy import SnippetGenerator

        generator = SnippetGenerator.create(self._searcher, terms, self._schema, "text")
        generator.set_max_num_chars(max_chars)
        # only the title may have matched
        return lambda stored: generator.snippet_from_doc(stored).fragment() or stored.to_dict()["text"][0][:max_chars]


class LocalBackend:
    """The local index as a `SearchBackend`."""

    def __init__(self, index: LocalIndex, domains: Domains, *, passage_chars: int) -> None:
        self._index = index
        self._domains = domains
        self._passage_chars = passage_chars

    @property
    def identity(self) -> Mapping[str, JsonValue]:
        """What the index was built from."""
        return {"backend": "local", **asdict(self._index.info)}

    async def search(self, query: str, max_results: int) -> list[SearchResult]:
        """Within the caller's event loop: it takes a millisecond, and runs stay reproducible."""
        found = self._index.search(query, max_results, passage_chars=self._passage_chars, allow=self._domains.allow)
        return [SearchResult(title=hit.title, url=hit.url, snippet=passage) for hit, passage in found]


def analyzer(language: str) -> TextAnalyzer:
    """How text becomes terms: words in lower case without accents, stemmed; pairs of characters for `cjk`.

    Raises `ConfigError` for a language that is not known.
    """
    tantivy = load_tantivy()
    if language == "cjk":
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.ngram(1, 2, False))
    else:
        builder = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    builder = builder.filter(tantivy.Filter.remove_long(_MAX_TERM_BYTES)).filter(tantivy.Filter.lowercase())
    builder = builder.filter(tantivy.Filter.ascii_fold())
    if language in ("cjk", "none"):
        return builder.build()
    try:
        return builder.filter(tantivy.Filter.stemmer(language)).build()
    except ValueError as error:
        raise ConfigError(
            f"search: language {language!r} is unknown. Use a language's English name (english, german, ...), cjk, or "
            "none for no stemming."
        ) from error


def load_tantivy() -> Any:
    """The engine. Raises `MissingExtraError`."""
    try:
        import tantivy
    except ImportError as error:
        raise MissingExtraError("search: a local index needs tantivy. Run: pip install 'axpo[search]'") from error
    return tantivy


def _read(stored: Any) -> Document:
    fields = stored.to_dict()
    title, url, text = (fields[name][0] for name in ("title", "url", "text"))
    return Document(title=title, url=url, text=text, image=os.fsdecode(fields.get("image", [b""])[0]))

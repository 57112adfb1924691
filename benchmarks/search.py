"""Local search over 100,000 documents, beside SQLite's FTS5 on the same corpus; and answers from the cache.

    python benchmarks/search.py [--documents 100000] [--queries 500] [--repeats 5] [--record]

Prints one JSON object. `search_ms`: a call of `SearchTool` with five results, target p50 below 10; `build_per_s`:
documents indexed a second in one thread, reading the JSONL included, target above 5000; `cached_ms`: a call answered
from a cache of 10,000 answers. The corpus is 100 words a document, drawn from 50,000 by Zipf's law; queries have five.
`--record` also writes the object into `benchmarks/records/`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from axpo.images import ContentImageStore
from axpo.protocols import ToolContext
from axpo.tools.search import SearchTool, build_index
from axpo.tools.search.cache import AnswerCache
from axpo.types import ToolCall
from recording import describe_machine, write_record

NUM_WORDS = 50_000
WORDS_PER_DOCUMENT = 100
WORDS_PER_QUERY = 5
NUM_CACHED = 10_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    draw = drawer()
    queries = [draw(WORDS_PER_QUERY) for _ in range(args.queries)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "corpus.jsonl"
        write_corpus(source, args.documents, draw)
        ours = measure_ours(source, folder / "index", queries, args.repeats)
        peer = measure_fts5(source, folder, queries, args.repeats)
        cached_ms = measure_cache(folder / "cache.sqlite", queries, args.repeats)
    result = {
        "benchmark": "search",
        "ours": ours,
        "fts5": peer,
        "speed_over_fts5": {
            "search": round(peer["search_ms"]["p50"] / ours["search_ms"]["p50"], 1),
            "build": round(ours["build_per_s"] / peer["build_per_s"], 2),
        },
        "cached_ms": cached_ms,
        "setting": describe(args),
    }
    print(json.dumps(result))
    if args.record:
        write_record(result)


def drawer() -> Callable[[int], str]:
    """Texts of words by Zipf's law; words are made of syllables, so that they are not all of a shape."""
    rng = np.random.default_rng(0)
    syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in "aeiou"])
    words = np.array(["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(NUM_WORDS)])
    weights = 1 / np.arange(1, NUM_WORDS + 1)
    weights /= weights.sum()
    return lambda count: " ".join(words[rng.choice(NUM_WORDS, count, p=weights)])


def write_corpus(path: Path, num_documents: int, draw: Callable[[int], str]) -> None:
    """JSONL rows with title and text."""
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_documents):
            file.write(json.dumps({"title": draw(4), "text": draw(WORDS_PER_DOCUMENT)}) + "\n")


def measure_ours(source: Path, folder: Path, queries: list[str], repeats: int) -> dict[str, Any]:
    """Build and search through the tool."""
    rates: list[float] = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        build_index(source, folder)
        rates.append(count_lines(source) / (time.perf_counter() - start_s))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    tool = SearchTool(index=str(folder))
    return {
        "build_per_s": round(statistics.median(rates)),
        "search_ms": time_calls(tool, queries, repeats),
        "index_over_source_bytes": round(size / source.stat().st_size, 2),
    }


def measure_fts5(source: Path, folder: Path, queries: list[str], repeats: int) -> dict[str, Any]:
    """The same corpus and queries in SQLite's full-text index."""
    rates: list[float] = []
    for repeat in range(repeats):
        start_s = time.perf_counter()
        connection = sqlite3.connect(folder / f"fts-{repeat}.sqlite")
        connection.execute("CREATE VIRTUAL TABLE documents USING fts5(title, text, tokenize = 'porter')")
        with source.open(encoding="utf-8") as file:
            rows = (json.loads(line) for line in file)
            connection.executemany("INSERT INTO documents VALUES (?, ?)", ((r["title"], r["text"]) for r in rows))
        connection.commit()
        rates.append(count_lines(source) / (time.perf_counter() - start_s))
    statement = "SELECT title, text FROM documents WHERE documents MATCH ? ORDER BY bm25(documents, 2.0, 1.0) LIMIT 5"
    times: list[float] = []
    for query in queries[: max(20, len(queries) // 10)]:  # it is slow
        start_s = time.perf_counter()
        connection.execute(statement, (" OR ".join(query.split()),)).fetchall()
        times.append(1e3 * (time.perf_counter() - start_s))
    return {"build_per_s": round(statistics.median(rates)), "search_ms": percentiles(times)}


def measure_cache(path: Path, queries: list[str], repeats: int) -> dict[str, float]:
    """Replayed calls; the answers are put there by hand."""
    cache = AnswerCache(path)
    backend = {"backend": "searxng", "url": "http://127.0.0.1:1", "include_domains": [], "exclude_domains": []}
    results = [{"title": "t" * 60, "url": f"https://a.org/{n}", "snippet": "s" * 400} for n in range(5)]
    for query in [*queries, *(f"other {n}" for n in range(NUM_CACHED - len(queries)))]:
        cache.put({**backend, "query": query, "max_results": 5}, {"value": results}, is_final=True)
    cache.close()
    tool = SearchTool(backend="searxng", url="http://127.0.0.1:1", cache=str(path), cache_mode="replay")
    times = time_calls(tool, queries, repeats)
    tool.close()
    return times


def time_calls(tool: SearchTool, queries: list[str], repeats: int) -> dict[str, float]:
    """Milliseconds of whole calls; the first round only warms up."""
    context = ToolContext(rollout_id="benchmark", images=[], store=ContentImageStore())

    async def ask_all() -> list[float]:
        times: list[float] = []
        for query in queries:
            call = ToolCall(id="c", name="search", arguments={"query": query})
            start_s = time.perf_counter()
            await tool.run(call, context)
            times.append(1e3 * (time.perf_counter() - start_s))
        return times

    return percentiles([t for repeat in range(repeats + 1) for t in asyncio.run(ask_all()) if repeat > 0])


def percentiles(times_ms: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50": round(statistics.median(times_ms), 3), "p99": round(float(np.percentile(times_ms, 99)), 3)}


def count_lines(path: Path) -> int:
    """Documents of a corpus."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Options, machine and versions."""
    return {
        "documents": args.documents,
        "queries": args.queries,
        "repeats": args.repeats,
        "sqlite": sqlite3.sqlite_version,
        **describe_machine("tantivy"),
    }


if __name__ == "__main__":
    main()

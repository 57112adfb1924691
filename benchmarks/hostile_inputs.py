"""Thousands of damaged and malicious inputs: does anything raise a traceback, hang, or fill the memory?

    python benchmarks/hostile_inputs.py [--count 10000] [--seed 0] [--record FILE]

Four kinds of inputs, a share of `--count` each: dumps of rollouts (`axpo diagnose`), configurations (`axpo train`),
tool schemas of an MCP server with arguments of a model, and requests to `axpo watch`. Each input is a copy of a good
one with some of its bytes, values or keys changed, cut, repeated or nested. It may be accepted or refused with one of
our error messages; any other exception counts as a traceback. Each kind runs in its own process, whose memory is
compared before and after. Prints a table and one JSON object; exits with 1 when a limit below is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import resource
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recording import describe_machine

ROOT = Path(__file__).parent.parent
MAX_SECONDS = 60.0
"""Limit of one input. A schema is checked in three steps, each with a limit of 2 or 5 seconds of processor time."""
MAX_GROWTH_BYTES = 500 * 2**20
SHARES = {"dumps": 0.4, "configurations": 0.2, "schemas": 0.2, "requests": 0.2}

Check = Callable[[random.Random], str]
"""Makes one input, tries it, and returns `accepted` or `refused`."""


def main() -> int:
    """Try all kinds and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=list(SHARES))
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    kinds = {kind: try_kind(kind, round(args.count * SHARES[kind]), args.seed) for kind in args.kinds}
    record = {"benchmark": "hostile_inputs", "seed": args.seed, "kinds": kinds, "setting": describe_machine()}
    for kind, found in kinds.items():
        print(
            f"{kind:15} {found['inputs']:6,} inputs: {found['accepted']:,} accepted, {found['refused']:,} refused, "
            f"{found['tracebacks']} tracebacks, {found['hangs']} hangs; slowest {found['slowest_s']:.2f} s, "
            f"memory +{found['growth_bytes'] / 2**20:.0f} MiB"
        )
        for text in found["first_tracebacks"]:
            print(text)
    text = json.dumps(record)
    print(text)
    if args.record is not None:
        args.record.write_text(text + "\n", encoding="utf-8")
    return int(any(found["is_broken"] for found in kinds.values()))


def try_kind(kind: str, count: int, seed: int) -> dict[str, Any]:
    """Run one kind in a process of its own, which is killed when one input takes too long."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    outcomes: Counter[str] = Counter()
    texts: list[str] = []
    slowest_s, growth = 0.0, 0
    start = 0
    while start < count:
        process = context.Process(target=_run, args=(kind, start, count, seed, sender))
        process.start()
        while start < count:
            if not receiver.poll(MAX_SECONDS + (60.0 if start == 0 else 0.0)):
                outcomes["hangs"] += 1
                texts.append(f"{kind} input {start} of seed {seed}: no end after {MAX_SECONDS:g} s")
                start += 1
                break
            outcome, text, seconds, grown = receiver.recv()
            start += 1
            outcomes[outcome] += 1
            slowest_s, growth = max(slowest_s, seconds), max(growth, grown)
            if text and len(texts) < 5:
                texts.append(text)
        process.kill()
        process.join()
    return {
        "inputs": count,
        "accepted": outcomes["accepted"],
        "refused": outcomes["refused"],
        "tracebacks": outcomes["tracebacks"],
        "hangs": outcomes["hangs"],
        "slowest_s": round(slowest_s, 2),
        "growth_bytes": growth,
        "first_tracebacks": texts,
        "is_broken": bool(outcomes["tracebacks"] or outcomes["hangs"] or growth > MAX_GROWTH_BYTES),
    }


def _run(kind: str, start: int, count: int, seed: int, results: Any) -> None:
    with tempfile.TemporaryDirectory() as name, _CHECKS[kind](Path(name)) as check:
        check(random.Random("warm up"))  # imports and caches are no growth
        before = _memory_bytes()
        for number in range(start, count):
            started_s, outcome, text = time.perf_counter(), "tracebacks", ""
            try:
                outcome = check(random.Random(f"{kind}/{seed}/{number}"))
            except Exception:
                text = f"{kind} input {number} of seed {seed}:\n{traceback.format_exc(limit=-4)[:3000]}"
            results.send((outcome, text, time.perf_counter() - started_s, _memory_bytes() - before))


def _memory_bytes() -> int:
    """The most this process and its ended children have held so far."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024 * max(resource.getrusage(kind).ru_maxrss for kind in kinds)


# -- what is tried ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _dumps(folder: Path) -> Iterator[Check]:
    from axpo.diagnostics.diagnosis import diagnose
    from axpo.errors import UserError

    fixtures = ROOT / "tests" / "fixtures" / "dumps"
    kinds = {".jsonl", ".json", ".parquet", ".eval", ".db"}
    seeds = [(path.suffix, path.read_bytes()[:200_000]) for path in sorted(fixtures.rglob("*")) if path.suffix in kinds]
    seeds += [(".jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows)) for rows in _DUMP_ROWS]

    def check(rng: random.Random) -> str:
        suffix, data = rng.choice(seeds)
        path = folder / f"dump{suffix}"
        path.write_bytes(_damage_lines(rng, data) if suffix == ".jsonl" and rng.random() < 0.7 else _damage(rng, data))
        try:
            diagnose([path])
        except UserError:
            return "refused"
        return "accepted"

    yield check


@contextlib.contextmanager
def _configurations(folder: Path) -> Iterator[Check]:
    from axpo.cli.overrides import load_config, split_overrides
    from axpo.errors import UserError

    seeds = [path.read_bytes() for path in sorted((ROOT / "recipes").rglob("*.toml"))]
    words = ["--train.steps", "3", "--data.tools=[]", "--run.seed", "-1", "--eval.top_p", "nan", "--model.path", "{"]

    def check(rng: random.Random) -> str:
        path = folder / "config.toml"
        seed = rng.choice(seeds)
        path.write_bytes(_exchange_options(rng, seed) if rng.random() < 0.7 else _damage(rng, seed))
        chosen = rng.sample(words, rng.choice((0, 4)))
        given = [_damage(rng, word.encode()).decode("utf-8", "replace") for word in chosen]
        try:
            load_config(path, split_overrides(given)[1])
        except UserError:
            return "refused"
        return "accepted"

    yield check


@contextlib.contextmanager
def _schemas(folder: Path) -> Iterator[Check]:
    """Schemas of an MCP server: checked when it connects, against a call, and against a structured result."""
    from axpo.errors import UserError
    from axpo.rollout.arguments import check_schema, find_misfit
    from axpo.tools.mcp.schema import misfit_of_result, unusable_reason
    from axpo.types import ToolSpec
    from axpo.workers import WorkError

    loop = asyncio.new_event_loop()

    def check(rng: random.Random) -> str:
        # a check that takes as long as it may costs seconds, so few of the inputs are of this kind
        seeds = _SLOW_SCHEMAS if rng.random() < 0.02 else _SCHEMAS
        schema = _damage_value(rng, rng.choice(seeds))
        arguments = _damage_value(rng, rng.choice(_ARGUMENTS))
        if not isinstance(schema, dict) or not isinstance(arguments, dict):
            return "refused"  # the message of the server is refused before
        try:
            if unusable_reason(schema):
                return "refused"
            spec = ToolSpec(name="echo", description="Repeats.", parameters=schema)
            check_schema(spec)
            misfit = loop.run_until_complete(find_misfit(arguments, spec))
            return "refused" if misfit or misfit_of_result(schema, arguments) else "accepted"
        except (UserError, WorkError):
            return "refused"

    yield check
    loop.close()


@contextlib.contextmanager
def _requests(folder: Path) -> Iterator[Check]:
    from axpo.cli.watch import WatchServer
    from axpo.reports.live import LiveReport

    server = WatchServer(LiveReport(run_dirs=(folder / "run",)))
    server.start()
    port = int(server.url.rstrip("/").rpartition(":")[2])

    def check(rng: random.Random) -> str:
        status = _ask(port, _damage(rng, rng.choice(_REQUESTS)))
        assert not status.startswith("5") or status in ("501", "505"), f"answered with {status}"
        assert _ask(port, _REQUESTS[1]) == "200", "the server does not answer any more"
        return "accepted" if status == "200" else "refused"

    try:
        yield check
    finally:
        server.close()


def _ask(port: int, request: bytes) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, contextlib.suppress(OSError):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(4096).partition(b" ")[2][:3].decode("latin-1")
    return ""


_CHECKS = {"dumps": _dumps, "configurations": _configurations, "schemas": _schemas, "requests": _requests}

# -- good inputs ------------------------------------------------------------------------------------------------------

_CALL = '<tool_call>{"name": "zoom", "arguments": {"box": [1, 2, 3, 4]}}</tool_call><tool_response>4</tool_response>'
_CHAT = [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"<think>a</think>{_CALL}4"}]
_DUMP_ROWS: tuple[list[dict[str, Any]], ...] = (
    [{"input": "q", "output": f"<think>a</think>{_CALL}4", "score": 0.9, "acc": 1, "gts": "4", "step": 1}] * 3,
    [{"question": 1, "reward": 1.0, "text": "4", "step": 2, "calls": [{"tool": "zoom", "failure": "timeout"}]}] * 3,
    [{"messages": _CHAT, "reward": 0.0, "task_id": 3}] * 3,
    [{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "4"}], "score": 1}] * 3,
    [{"content": [["q", _CALL, "4"]], "rewards": [1.0], "idx": 0}] * 3,
    [{"input_prompt": "q", "output_response": _CALL, "score": [0.0, 1.0], "stop_reason": "stop"}] * 3,
    [{"id": "a:0", "is_correct": True, "trajectories": [{"name": "s", "steps": [{"chat_completions": _CHAT}]}]}] * 3,
    [{"group_index": 0, "prompt": "q", "response": _CALL, "reward": 1, "status": "completed"}] * 3,
    [{"prompt": _CHAT[:1], "completion": _CHAT[1:], "accuracy": 1.0, "advantage": 0.5, "step": 3}] * 3,
)
_SLOW_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}, "required": ["a"]},
    {"type": "object", "allOf": [{"anyOf": [{"type": "object"}] * 50}] * 50, "patternProperties": {"(x|x)*y": {}}},
)
_SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "^a+$"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}]}}},
    {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 1e-300, "maximum": 1e308}}},
    {"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}},
    {"type": "object", "patternProperties": {"x*y": {"not": {}}}, "additionalProperties": {"const": None}},
    {"type": "object", "properties": {"tree": {"$ref": "#"}, "size": {"enum": ["small", "large"]}}},
)
_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"a": "a" * 40 + "!"},
    {"n": 10**400, "l": list(range(500))},
    {"x" * 60: None, "l": [[[]]]},
    {},
)
_HOST = b"Host: 127.0.0.1\r\n"
_REQUESTS = (
    b"GET / HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /status HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"GET /images/" + b"a" * 64 + b".png HTTP/1.1\r\n" + _HOST + b"\r\n",
    b"POST / HTTP/1.1\r\n" + _HOST + b"Content-Length: 5\r\n\r\nhello",
)

# -- damage -----------------------------------------------------------------------------------------------------------

_PIECES = (
    b"\x00", b"\xff\xfe", b"\r\n", b"{" * 2000, b"[" * 2000, b'"', b"1e999", b"NaN", b"<tool_call>", b"<think>", b"\\u",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, -1, 1e308, float("nan"), 10**400, "", "\ud800", "\x1b[31m", "x" * 100_000, [], {}, [[]], {"a": {}},
    "#", {"$ref": "#"}, {"$ref": "http://127.0.0.1:9/"}, {"$dynamicRef": "#a"}, {"type": "nothing"},
)  # fmt: skip
_LITERALS = (
    "0", "1", "-1", "3", "0.5", "1e308", "nan", "inf", "9223372036854775808", "true", "''", "'mini'", "'\x1b'",
    "[]", "[1]", "{}", "{ a = 1 }", "{ image_zoom_in = { max_pixels = -1 } }", "['x:y']", "1979-05-27", "[[[[]]]]",
    "'" + "x" * 5000 + "'",
)  # fmt: skip


def _damage(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, insert, repeat: one to six times."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(5):
            case 0 if found:
                found[at % len(found)] = rng.randrange(256)
            case 1:
                del found[at : at + rng.randrange(1, 64)]
            case 2:
                found[at:at] = rng.choice(_PIECES)
            case 3:
                found[at:at] = found[at : at + 256] * rng.randrange(1, 20)
            case _:
                found = found[: max(1, at)] if rng.random() < 0.1 else found
    return bytes(found)


def _damage_lines(rng: random.Random, data: bytes) -> bytes:
    """The rows of a JSONL file with values exchanged, so that they still are JSON."""
    rows: list[Any] = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            rows.append(_damage_value(rng, json.loads(line)))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _exchange_options(rng: random.Random, data: bytes) -> bytes:
    """A TOML file with another value for one or two options."""
    lines = data.decode().splitlines()
    options = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    for number in rng.sample(options, rng.randint(1, 2)):
        lines[number] = f"{lines[number].partition(' = ')[0]} = {rng.choice(_LITERALS)}"
    return "\n".join(lines).encode()


def _damage_value(rng: random.Random, value: Any) -> Any:
    """A copy with some of its values exchanged, keys renamed, or parts nested deeply."""
    if rng.random() < 0.05:
        exchanged = rng.choice(_VALUES)
        if rng.random() < 0.05:
            for _ in range(rng.choice((5, 200, 900))):
                exchanged = {rng.choice(("a", "items", "properties", "not")): exchanged}
        return exchanged
    if isinstance(value, dict):
        return {
            (rng.choice(("", "role", "from", "$ref", "type")) if rng.random() < 0.03 else key): _damage_value(rng, item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        items = [_damage_value(rng, item) for item in value]
        return items * rng.choice((0, 2, 50)) if rng.random() < 0.03 else items
    return value


if __name__ == "__main__":
    sys.exit(main())

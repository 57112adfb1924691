"""Dialogues with a chat endpoint that answers after 200 ms: how much of concurrency / latency is reached.

    python benchmarks/endpoint.py [--rollouts 1000] [--latency-ms 200] [--repeats 5] [--record]

Prints one JSON object. The endpoint is a stub in a process of its own; a rollout has three turns, two with a call of a
tool that answers at once, and every request carries a picture. `share`: requests a second over concurrency / latency,
target at least 0.9 at 64. `share_with_journal`: the same with every turn on disk before the next. `rss_mb`: memory of
the client after its first fifth of the rollouts and at the end; it should not grow. `stub_share`: what a client that
only writes and reads sockets reaches with the same stub, the limit of the machine. Medians over the repeats. `--record`
also writes the object into `benchmarks/records/`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from axpo.engines.http import HttpChatModel
from axpo.images import ContentImageStore
from axpo.rollout.calls import read_call
from axpo.rollout.chat import ChatSetup, run_chat
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.rollout.journal import TurnJournal
from axpo.rollout.loop import RolloutLimits
from axpo.tools.fakes import EchoTool
from axpo.types import Content, Message, Problem, SamplingParams
from recording import describe_machine, write_record

NUM_TURNS = 3
PICTURE_PX = 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with stub(args.latency_ms / 1e3) as port:
        results = {str(num): measure(port, num, args) for num in args.concurrency}
    result = {
        "benchmark": "endpoint",
        "concurrency": results,
        "setting": {**describe(args), "load_before": round(load, 1)},
    }
    print(json.dumps(result))
    if args.record:
        write_record(result)


def measure(port: int, concurrency: int, args: argparse.Namespace) -> dict[str, Any]:
    """All repeats at one concurrency."""
    limit_per_s = concurrency / (args.latency_ms / 1e3)
    plain = [asyncio.run(run(port, concurrency, args.rollouts, has_journal=False)) for _ in range(args.repeats)]
    journaled = [asyncio.run(run(port, concurrency, args.rollouts, has_journal=True)) for _ in range(args.repeats)]
    num_requests = args.rollouts * NUM_TURNS
    bare = [asyncio.run(run_bare(port, concurrency, num_requests)) for _ in range(args.repeats)]
    return {
        "requests_per_s": round(statistics.median(rate for rate, _ in plain), 1),
        "share": round(statistics.median(rate for rate, _ in plain) / limit_per_s, 3),
        "share_with_journal": round(statistics.median(rate for rate, _ in journaled) / limit_per_s, 3),
        "stub_share": round(statistics.median(bare) / limit_per_s, 3),
        "rss_mb": [memory for _, memory in plain],
        "rss_mb_with_journal": [memory for _, memory in journaled],
    }


async def run(port: int, concurrency: int, num_rollouts: int, *, has_journal: bool) -> tuple[float, list[float]]:
    """Requests a second, and memory on the way."""
    from PIL import Image

    store = ContentImageStore()
    picture = store.add_image(Image.effect_noise((PICTURE_PX, PICTURE_PX), 60))
    message = Message(role="user", content=(Content(image=picture), Content(text="How many?")))
    num_done = 0
    memory: list[float] = []
    gate = asyncio.Semaphore(concurrency)
    async with open_setup(port, concurrency, store, has_journal=has_journal) as setup:

        async def one(number: int) -> None:
            nonlocal num_done
            problem = Problem(id=f"q{number}", messages=(message,), answer="")
            async with gate:
                transcript = await run_chat(problem, setup=setup, rollout_id=problem.id, seed=number)
            assert len(transcript.turns) == NUM_TURNS, transcript.stop_reason
            if setup.journal is not None:
                setup.journal.forget(problem.id)
            num_done += 1
            if num_done in (num_rollouts // 5, num_rollouts):
                gc.collect()
                memory.append(rss_mb())

        start_s = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(num_rollouts)))
        return num_rollouts * NUM_TURNS / (time.perf_counter() - start_s), memory


@contextlib.asynccontextmanager
async def open_setup(
    port: int, concurrency: int, store: ContentImageStore, *, has_journal: bool
) -> AsyncGenerator[ChatSetup]:
    """A model at the stub, and a journal in a folder that goes away."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".endpoint-") as name, contextlib.ExitStack() as stack:
        journal = None
        if has_journal:
            journal = TurnJournal(Path(name) / "turns.jsonl", store=store, pictures=Path(name) / "pictures")
            stack.callback(journal.close)
        model = HttpChatModel(
            f"http://127.0.0.1:{port}/v1", "stub", store=store, read_call=read_call, max_concurrent=concurrency
        )
        try:
            yield ChatSetup(
                model=model,
                executor=ToolExecutor(
                    tools={"echo": EchoTool()}, default_limits=ToolLimits(max_concurrent=concurrency)
                ),
                store=store,
                limits=RolloutLimits(max_tool_turns=NUM_TURNS, max_response_tokens=10_000),
                sampling=SamplingParams(),
                journal=journal,
            )
        finally:
            await model.close()


async def run_bare(port: int, concurrency: int, num_requests: int) -> float:
    """Requests a second of a client that does nothing else."""
    body = b'{"messages": []}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    left = num_requests

    async def worker() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_content_length(answer))
        writer.close()
        await writer.wait_closed()

    start_s = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return num_requests / (time.perf_counter() - start_s)


# -- the stub ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stub(latency_s: float) -> Generator[int]:
    """The endpoint in another process; yields its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, latency_s), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def serve(pipe: Connection, latency_s: float) -> None:
    """Two replies with a call, then one without, told apart by how many tool messages the request holds."""
    call = {"type": "function", "id": "c", "function": {"name": "echo", "arguments": '{"text": "seen"}'}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}

    def reply(message: dict[str, Any], finish: str) -> bytes:
        fields = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}
        body = json.dumps(fields).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    calling = reply({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")
    answering = reply({"role": "assistant", "content": "<answer>4</answer>"}, "stop")

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_content_length(head))
                await asyncio.sleep(latency_s)
                writer.write(answering if body.count(b'"role":"tool"') == NUM_TURNS - 1 else calling)
        writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, backlog=1024, limit=2**20)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


def _content_length(head: bytes) -> int:
    return int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


# -- the machine ------------------------------------------------------------------------------------------------------


def rss_mb() -> float:
    """Resident memory of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(fields["VmRSS"].split()[0]) / 1024, 1)


def describe(args: argparse.Namespace) -> dict[str, Any]:
    """Options, machine and versions."""
    return {
        "rollouts": args.rollouts,
        "turns": NUM_TURNS,
        "latency_ms": args.latency_ms,
        "repeats": args.repeats,
        **describe_machine(),
    }


if __name__ == "__main__":
    main()

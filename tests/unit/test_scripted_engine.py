"""The scripted engine does what its script says and remembers what it was asked."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

from axpo.engines.scripted import ScriptedEngine
from axpo.errors import EngineFault
from axpo.protocols import InferenceEngine
from axpo.types import Completion, GenerationRequest, SamplingParams


def request(*token_ids: int, max_new_tokens: int = 8, seed: int = 0) -> GenerationRequest:
    return GenerationRequest(
        token_ids=token_ids, images=(), max_new_tokens=max_new_tokens, sampling=SamplingParams(), seed=seed
    )


def ask(engine: ScriptedEngine, *requests: GenerationRequest) -> list[Completion]:
    async def gather() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(item) for item in requests))

    return asyncio.run(gather())


def test_a_function_sees_the_request() -> None:
    engine = ScriptedEngine(lambda item: [item.seed, *item.token_ids[-2:]], logprob=lambda item, token: -float(token))
    (completion,) = ask(engine, request(4, 5, 6, seed=3))
    assert completion == Completion(
        token_ids=(3, 5, 6), logprobs=(-3.0, -5.0, -6.0), finish_reason="stop", policy_version=0
    )


def test_the_longest_matching_end_of_the_prompt_counts() -> None:
    engine = ScriptedEngine({(): [1], (9,): [2], (8, 9): [3]})
    completions = ask(engine, request(5), request(7, 9), request(8, 9), request(8, 9, 7))
    assert [completion.token_ids for completion in completions] == [(1,), (2,), (3,), (1,)]


def test_a_prompt_without_a_reply_is_a_fault() -> None:
    with pytest.raises(EngineFault, match=r"no reply for a prompt that ends with \(5,\)"):
        ask(ScriptedEngine({(9,): [2]}), request(5))


@pytest.mark.parametrize(("limit", "kept", "reason"), [(2, (5, 6), "length"), (3, (5, 6, 7), "stop")])
def test_replies_end_at_the_limit(limit: int, kept: tuple[int, ...], reason: str) -> None:
    (completion,) = ask(ScriptedEngine({(): [5, 6, 7]}), request(1, max_new_tokens=limit))
    assert (completion.token_ids, completion.finish_reason) == (kept, reason)


def test_texts_need_an_encoder() -> None:
    assert ask(ScriptedEngine({(): "ab"}, encode=lambda text: [ord(c) for c in text]), request(1))[0].token_ids == (
        97,
        98,
    )
    with pytest.raises(EngineFault, match="pass encode="):
        ask(ScriptedEngine({(): "ab"}), request(1))


def test_slow_requests_do_not_hold_up_others() -> None:
    engine = ScriptedEngine({(): [1]}, delay_s=lambda item: 0.2 if item.seed == 0 else 0.0)
    finished: list[int] = []

    async def one(seed: int) -> None:
        await engine.generate(request(1, seed=seed))
        finished.append(seed)

    async def main() -> None:
        await asyncio.gather(*(one(seed) for seed in range(4)))

    start_s = time.monotonic()
    asyncio.run(main())
    assert finished[-1] == 0 and sorted(finished) == [0, 1, 2, 3]
    assert time.monotonic() - start_s >= 0.2


def test_requests_and_updates_are_recorded() -> None:
    engine = ScriptedEngine({(): [1]})
    assert isinstance(engine, InferenceEngine)
    first, second = request(1), request(2)
    ask(engine, first)
    engine.update_weights([("a", torch.zeros(1)), ("b", torch.zeros(2))], 5)
    assert ask(engine, second)[0].policy_version == 5
    assert engine.requests == [first, second]
    assert engine.weight_updates == [(5, ("a", "b"))]


def test_an_exception_of_the_script_passes_through_and_closing_ends_it() -> None:
    def fail(item: GenerationRequest) -> list[int]:
        raise EngineFault(f"no luck with {item.token_ids}")

    engine = ScriptedEngine(fail)
    with pytest.raises(EngineFault, match=r"no luck with \(1, 2\)"):
        ask(engine, request(1, 2))
    engine.close()
    with pytest.raises(EngineFault, match="is closed"):
        ask(engine, request(1, 2))

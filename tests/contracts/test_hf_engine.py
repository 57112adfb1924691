"""The engine's tokens and log-probabilities are the model's, whatever else is going on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from axpo.engines.decoding import SamplingTable, sample_tokens
from axpo.engines.hf import HfEngine
from axpo.errors import EngineFault, RecordError, WeightSyncError
from axpo.models.qwen3_vl import ImageFeatureCache, token_logprobs
from axpo.protocols import InferenceEngine
from axpo.types import Completion, GenerationRequest, ImageRef, SamplingParams

PLAIN = SamplingParams()
GREEDY = SamplingParams(temperature=0)
MIXED_SAMPLING = (
    PLAIN,
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.7, top_p=0.8, top_k=20),
    SamplingParams(top_k=3),
    SamplingParams(top_p=0.5),
    GREEDY,
    SamplingParams(temperature=0.7, top_k=20, presence_penalty=1.5),
    SamplingParams(temperature=0, presence_penalty=-0.5),
)


@pytest.fixture
def build(setting: Any) -> Iterator[Callable[..., HfEngine]]:
    """Makes engines on the shared model, and closes them."""
    engines: list[HfEngine] = []

    def make(model: Any = None, *, stop: Sequence[int] = (), banned: Sequence[int] = (), **options: Any) -> HfEngine:
        engines.append(
            HfEngine(
                setting.model if model is None else model,
                preprocessor=setting.preprocessor,
                store=setting.store,
                banned_token_ids=[setting.image_token_id, *setting.vision_ids, *banned],
                stop_token_ids=stop,
                **options,
            )
        )
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def ask(
    token_ids: Sequence[int],
    images: Sequence[ImageRef] = (),
    *,
    seed: int = 0,
    num_tokens: int = 12,
    sampling: SamplingParams = PLAIN,
) -> GenerationRequest:
    return GenerationRequest(
        token_ids=tuple(token_ids), images=tuple(images), max_new_tokens=num_tokens, sampling=sampling, seed=seed
    )


def mixed_requests(setting: Any) -> list[GenerationRequest]:
    """Different lengths, 0 to 3 images, siblings of one prompt, a branch of one of them, every kind of sampling."""
    first, second, third, fourth = setting.images
    prompts: list[tuple[tuple[int, ...], tuple[ImageRef, ...]]] = [
        (setting.dialogue(5, first, 3, second, 4, seed=1), (first, second)),
        (setting.dialogue(9, seed=2), ()),
        (setting.dialogue(3, first, third, 2, third, 7, seed=3), (first, third, third)),
        (setting.dialogue(1, fourth, seed=4), (fourth,)),
    ]
    branch = ((*prompts[0][0], *setting.words(11, seed=5)), prompts[0][1])
    prompts += [prompts[0], prompts[0], branch, branch]
    return [
        ask(ids, images, seed=100 + i, num_tokens=3 + 7 * i % 31, sampling=sampling)
        for i, ((ids, images), sampling) in enumerate((p, s) for p in prompts for s in MIXED_SAMPLING)
    ]


def run_all(engine: HfEngine, requests: Sequence[GenerationRequest]) -> list[Completion]:
    async def gather() -> list[Completion]:
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    return asyncio.run(gather())


def test_a_completion_ends_at_its_time_limit(setting: Any, build: Any) -> None:
    request = ask(setting.dialogue(9, seed=2), num_tokens=40)
    whole, cut = run_all(build(), [request, dataclasses.replace(request, time_limit_s=0.0)])
    assert len(whole.token_ids) == 40
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:1], "length")


def recompute(
    setting: Any, model: Any, request: GenerationRequest, completion: Completion, banned: Sequence[int] = ()
) -> Tensor:
    sequence = (*request.token_ids, *completion.token_ids)
    mask_BT = torch.zeros(1, len(sequence), dtype=torch.bool)
    mask_BT[0, len(request.token_ids) :] = True
    with torch.no_grad():
        return token_logprobs(
            model,
            [sequence],
            [request.images],
            mask_BT,
            features=ImageFeatureCache(model, setting.preprocessor, setting.store),
            temperature=request.sampling.temperature,
            banned_token_ids=[setting.image_token_id, *setting.vision_ids, *banned],
        ).logprobs_BT[mask_BT]


class TestFidelity:
    def test_logprobs_are_those_of_the_trainer(self, setting: Any, build: Any) -> None:
        requests = mixed_requests(setting)
        banned = [40, 41, 42]
        completions = run_all(build(banned=banned), requests)
        gaps: list[Tensor] = []
        for request, completion in zip(requests, completions, strict=True):
            assert len(completion.token_ids) == request.max_new_tokens
            assert not {*banned, setting.image_token_id} & set(completion.token_ids)
            expected = recompute(setting, setting.model, request, completion, banned)
            gaps.append((torch.tensor(completion.logprobs) - expected).abs())
        assert torch.cat(gaps).mean() < 1e-6
        assert torch.cat(gaps).max() < 1e-4

    def test_a_row_does_not_depend_on_its_batch(self, setting: Any, build: Any) -> None:
        requests = mixed_requests(setting)
        engine = build()
        together = run_all(engine, requests)
        small = run_all(build(max_batch_size=3, max_prefill_tokens=50), requests)
        for request, completion, squeezed in zip(requests, together, small, strict=True):
            (alone,) = run_all(engine, [request])
            assert alone.token_ids == completion.token_ids == squeezed.token_ids
            assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-5)

    def test_seeds_decide(self, setting: Any, build: Any) -> None:
        prompt = setting.dialogue(6, seed=1)
        one, same, other = run_all(build(), [ask(prompt, seed=1), ask(prompt, seed=1), ask(prompt, seed=2)])
        assert one == same
        assert one.token_ids != other.token_ids

    def test_greedy_is_that_of_transformers(self, setting: Any, build: Any) -> None:
        requests = [
            dataclasses.replace(request, sampling=GREEDY) for request in mixed_requests(setting)[:: len(MIXED_SAMPLING)]
        ]
        ends = setting.model.generation_config.eos_token_id
        for request, completion in zip(requests, run_all(build(banned=ends), requests), strict=True):
            token_ids = torch.tensor([request.token_ids])
            refs = request.images
            expected = setting.model.generate(
                input_ids=token_ids,
                attention_mask=torch.ones_like(token_ids),
                mm_token_type_ids=(token_ids == setting.image_token_id).int(),
                do_sample=False,
                max_new_tokens=request.max_new_tokens,
                suppress_tokens=[setting.image_token_id, *setting.vision_ids, *ends],
                **({"pixel_values": setting.pixels(refs), "image_grid_thw": setting.grids(refs)} if refs else {}),
            )
            assert expected[0, len(request.token_ids) :].tolist() == list(completion.token_ids)

    def test_the_presence_penalty_is_that_of_transformers_own_loop(self, setting: Any, build: Any) -> None:
        """Greedy, so that every token follows from the logits; the penalty counts what was sampled, not the prompt."""
        from transformers import LogitsProcessorList

        ends = setting.model.generation_config.eos_token_id
        requests = [
            ask(setting.dialogue(5, seed=seed), num_tokens=40, sampling=SamplingParams(temperature=0, **penalty))
            for seed, penalty in enumerate(({"presence_penalty": 2.0}, {"presence_penalty": -0.1}, {}))
        ]
        completions = run_all(build(banned=ends), requests)
        for request, completion in zip(requests, completions, strict=True):
            token_ids = torch.tensor([request.token_ids])

            def penalize(input_ids: Tensor, scores: Tensor, request: Any = request) -> Tensor:
                sampled = input_ids[0, len(request.token_ids) :].unique()
                scores[0, sampled] -= request.sampling.presence_penalty
                return scores

            expected = setting.model.generate(
                input_ids=token_ids,
                attention_mask=torch.ones_like(token_ids),
                do_sample=False,
                max_new_tokens=40,
                suppress_tokens=[setting.image_token_id, *setting.vision_ids, *ends],
                logits_processor=LogitsProcessorList([penalize]),
            )
            assert expected[0, len(request.token_ids) :].tolist() == list(completion.token_ids)
        plain = run_all(build(banned=ends), [dataclasses.replace(request, sampling=GREEDY) for request in requests])
        assert [a.token_ids == b.token_ids for a, b in zip(plain, completions, strict=True)][0::2] == [False, True]

    @pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
    @pytest.mark.parametrize("is_tied", [True, False])
    def test_holds_for_each_kind_of_model(
        self, setting: Any, build: Any, tmp_path: Any, attn_implementation: str, is_tied: bool
    ) -> None:
        from axpo.models.loading import load_model
        from axpo.models.scratch import save_scratch_checkpoint

        folder = save_scratch_checkpoint(tmp_path, text={"tie_word_embeddings": is_tied}, seed=1)
        model = load_model(folder, dtype="float32", attn_implementation=attn_implementation, device=torch.device("cpu"))
        requests = mixed_requests(setting)[::5]
        for request, completion in zip(requests, run_all(build(model), requests), strict=True):
            expected = recompute(setting, model, request, completion)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)

    def test_bfloat16_stays_within_its_noise(self, setting: Any, own_setting: Any, build: Any) -> None:
        model = own_setting.model.to(torch.bfloat16)
        requests = mixed_requests(setting)
        gaps = [
            (torch.tensor(completion.logprobs) - recompute(setting, model, request, completion)).abs()
            for request, completion in zip(requests, run_all(build(model), requests), strict=True)
        ]
        assert torch.cat(gaps).mean() < 0.03


class TestSampling:
    """`sample_tokens` on one distribution: 0.5, 0.3, 0.15, 0.05 and a banned id between the first two."""

    PROBS = (0.5, 0.0, 0.3, 0.15, 0.05)

    def pick(self, uniform: float, sampling: SamplingParams) -> tuple[int, float]:
        logits_BV = torch.tensor([self.PROBS]).log()
        table = SamplingTable([sampling], vocab_size=5, device=torch.device("cpu"))
        ids_B, logprobs_B = sample_tokens(logits_BV, torch.tensor([uniform], dtype=torch.float64), table)
        return int(ids_B[0]), logprobs_B[0].exp().item()

    @pytest.mark.parametrize(
        ("sampling", "edges"),
        [
            (PLAIN, [(0, 0.0, 0.5), (2, 0.5, 0.8), (3, 0.8, 0.95), (4, 0.95, 1.0)]),
            (SamplingParams(top_k=2), [(0, 0.0, 0.625), (2, 0.625, 1.0)]),  # 0.5 / 0.8
            (SamplingParams(top_p=0.5), [(0, 0.0, 1.0)]),  # the first id reaches 0.5
            (SamplingParams(top_p=0.81), [(0, 0.0, 0.526), (2, 0.527, 0.842), (3, 0.843, 1.0)]),  # of 0.95
            (SamplingParams(top_k=3, top_p=0.6), [(0, 0.0, 0.625), (2, 0.625, 1.0)]),  # 0.5 / 0.95 < 0.6: two ids
            (GREEDY, [(0, 0.0, 1.0)]),
        ],
    )
    def test_each_id_owns_its_share_of_the_unit_interval(
        self, sampling: SamplingParams, edges: list[tuple[int, float, float]]
    ) -> None:
        for token_id, start, stop in edges:
            for uniform in (start + 1e-4, (start + stop) / 2, stop - 1e-4):
                got, prob = self.pick(uniform, sampling)
                assert got == token_id
                assert prob == pytest.approx(self.PROBS[token_id], rel=1e-5)  # never that of the truncated policy

    def test_a_presence_penalty_shifts_the_shares_of_what_was_sampled(self) -> None:
        """Temperature 2: the logits here are already halved, so a penalty of 2 ln 2 halves a probability, too."""
        penalty = 2 * math.log(2)
        params = [SamplingParams(temperature=2.0, presence_penalty=penalty), SamplingParams(temperature=2.0)]
        logits_BV = torch.tensor([self.PROBS, self.PROBS]).log()
        table = SamplingTable(params, vocab_size=5, device=torch.device("cpu"), sampled=[[0], [0]])
        table.note(torch.tensor([3, 2]))
        weights = (0.25, 0.0, 0.3, 0.075, 0.05)
        edges = [sum(weights[: index + 1]) / sum(weights) for index in range(5)]
        for token_id in (0, 2, 3, 4):
            start = edges[token_id - 1] if token_id else 0.0
            for uniform in (start + 1e-4, edges[token_id] - 1e-4):
                uniforms_B = torch.full((2,), uniform, dtype=torch.float64)
                ids_B, logprobs_B = sample_tokens(logits_BV, uniforms_B, table)
                assert ids_B[0] == token_id
                assert logprobs_B[0].exp().item() == pytest.approx(self.PROBS[token_id], rel=1e-5)
                assert ids_B[1] == self.pick(uniform, PLAIN)[0]

    def test_without_a_penalty_nothing_is_copied(self) -> None:
        logits_BV = torch.tensor([self.PROBS]).log()
        table = SamplingTable([PLAIN], vocab_size=5, device=torch.device("cpu"), sampled=[[0, 2]])
        logprobs_BV = logits_BV.log_softmax(dim=-1)
        assert table.penalized(logits_BV, logprobs_BV) is logprobs_BV

    def test_the_ends_of_the_interval_never_give_a_banned_id(self) -> None:
        logits_BV = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
        table = SamplingTable([PLAIN], vocab_size=4, device=torch.device("cpu"))
        for uniform, expected in ((0.0, 1), (1 - 2**-53, 2), (1.0, 1)):  # 1.0 cannot come; rounding could make it
            ids_B, _ = sample_tokens(logits_BV, torch.tensor([uniform], dtype=torch.float64), table)
            assert ids_B.tolist() == [expected]


class TestSharing:
    def test_equal_contexts_are_prefilled_and_encoded_once(self, setting: Any, build: Any) -> None:
        first, second, *_ = setting.images
        prompt = setting.dialogue(5, first, 3, second, 4)
        branch = (*prompt, *setting.words(6, seed=1))
        requests = [ask(ids, (first, second), seed=index) for ids in (prompt, branch) for index in range(4)]
        engine = build()
        run_all(engine, requests)
        assert engine.stats.num_prefill_tokens == len(prompt) + len(branch)
        assert engine.num_encoded_images == 2

    def test_a_late_request_joins_and_leaves_while_a_long_one_runs(self, setting: Any, build: Any) -> None:
        long = ask(setting.dialogue(5, seed=1), num_tokens=500)
        short = ask(setting.dialogue(7, setting.images[0], seed=2), (setting.images[0],), num_tokens=4)
        engine = build()
        expected = [run_all(engine, [request])[0] for request in (long, short)]

        async def main() -> tuple[list[Completion], bool]:
            slow = asyncio.create_task(engine.generate(long))
            while engine.stats.num_decode_steps < 499 + 3 + 10:  # the runs above, and a little more
                await asyncio.sleep(0.001)
            quick = await engine.generate(short)
            was_running = not slow.done()
            return [await slow, quick], was_running

        got, was_running = asyncio.run(main())
        assert was_running
        for completion, alone in zip(got, expected, strict=True):
            assert completion.token_ids == alone.token_ids
            assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-5)

    def test_finished_rows_are_not_carried_along(self, setting: Any, build: Any) -> None:
        prompt = setting.dialogue(5, seed=1)
        engine = build()
        run_all(engine, [ask(prompt, seed=seed, num_tokens=100 if seed == 0 else 5) for seed in range(32)])
        # 32 rows for 4 steps, 1 row for 95: the first token of each comes from the prefill
        assert engine.stats.num_decode_rows == 32 * 4 + 95

    def test_a_run_of_turns_repeats_bit_for_bit(self, setting: Any, build: Any) -> None:
        async def rollout(engine: HfEngine, seed: int) -> tuple[Completion, ...]:
            ids = setting.dialogue(4 + seed % 3, seed=seed % 3)
            turns: list[Completion] = []
            for turn in range(3):
                turns.append(await engine.generate(ask(ids, seed=10 * seed + turn, num_tokens=2 + (seed + turn) % 7)))
                await asyncio.wait_for(asyncio.sleep(0), timeout=5)  # a tool that answers at once
                ids = (*ids, *turns[-1].token_ids, *setting.words(3, seed=seed))
            return tuple(turns)

        async def main(engine: HfEngine) -> list[tuple[Completion, ...]]:
            return await asyncio.gather(*(rollout(engine, seed) for seed in range(24)))

        engines = [build(), build()]
        results = [asyncio.run(main(engine)) for engine in engines]
        assert results[0] == results[1]
        assert engines[0].stats == engines[1].stats


class TestEnds:
    def test_a_stop_id_ends_a_row_and_belongs_to_it(self, setting: Any, build: Any) -> None:
        requests = [ask(setting.dialogue(6, seed=seed), seed=seed, num_tokens=20) for seed in range(8)]
        free = run_all(build(), requests)
        stop = free[0].token_ids[7]
        for before, after in zip(free, run_all(build(stop=[stop]), requests), strict=True):
            if stop in before.token_ids:
                end = before.token_ids.index(stop) + 1
                assert (after.token_ids, after.finish_reason) == (before.token_ids[:end], "stop")
            else:
                assert (after.token_ids, after.finish_reason) == (before.token_ids, "length")

    def test_limits_are_each_rows_own(self, setting: Any, build: Any) -> None:
        prompt = setting.dialogue(6)
        completions = run_all(build(), [ask(prompt, num_tokens=count) for count in (1, 2, 9, 30)])
        assert [len(completion.token_ids) for completion in completions] == [1, 2, 9, 30]
        assert {completion.finish_reason for completion in completions} == {"length"}

    def test_impossible_requests_are_refused_one_by_one(self, setting: Any, build: Any) -> None:
        engine = build()
        image = setting.images[0]
        bad = {
            "0 image placeholders, but its 1 images are 6": ask((40, 41), (image,)),
            "6 image placeholders, but its 0 images are 0": ask(setting.dialogue(2, image)),
            "needs a prompt": ask(()),
            "room for a token": ask((40,), num_tokens=0),
            "ids from 40 to 999999": ask((40, 999999)),
            "ids from -1 to 40": ask((40, -1)),
            "a seed >= 0": ask((40,), seed=-1),
        }
        for message, request in bad.items():
            with pytest.raises(RecordError, match=message):
                run_all(engine, [request])


class TestWeights:
    def test_an_update_is_exact(self, setting: Any, own_setting: Any, build: Any, tiny_checkpoint: Any) -> None:
        from axpo.models.loading import load_model

        fresh = load_model(tiny_checkpoint, dtype="float32", device=torch.device("cpu"))
        requests = mixed_requests(setting)
        engine = build(own_setting.model)
        before = run_all(engine, requests)
        num_encoded = engine.num_encoded_images
        engine.update_weights(fresh.state_dict().items(), 7)
        after = run_all(engine, requests)
        expected = run_all(build(fresh), requests)
        assert [c.token_ids for c in after] == [c.token_ids for c in expected] != [c.token_ids for c in before]
        assert [c.logprobs for c in after] == [c.logprobs for c in expected]
        assert {c.policy_version for c in after} == {engine.policy_version} == {7}
        assert engine.num_encoded_images == 2 * num_encoded  # features of the old tower are gone

    def test_either_name_of_a_tied_weight_will_do(self, own_setting: Any, build: Any) -> None:
        model = own_setting.model
        engine = build(model)
        tied = {"lm_head.weight", "model.language_model.embed_tokens.weight"}
        everything = {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}
        assert tied <= everything.keys()
        for version, left_out in enumerate(tied):
            engine.update_weights([item for item in everything.items() if item[0] != left_out], version)
            assert engine.policy_version == version

    def test_weights_are_cast(self, own_setting: Any, build: Any) -> None:
        model = own_setting.model
        new = {name: (p.detach() * 2).to(torch.bfloat16) for name, p in model.named_parameters()}
        build(model).update_weights(new.items(), 1)
        for name, parameter in model.named_parameters():
            assert parameter.dtype is torch.float32
            assert torch.equal(parameter, new[name].float())

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda w: {**w, "stranger": torch.zeros(1)}, "no weight 'stranger'"),
            (lambda w: dict(list(w.items())[:-1]), "lacks 1 weights"),
            (lambda w: {name: t[..., :1] for name, t in w.items()}, r"has shape .*, the update"),
        ],
    )
    def test_a_wrong_update_stops_the_engine_until_a_right_one(
        self, own_setting: Any, build: Any, spoil: Any, message: str
    ) -> None:
        engine = build(own_setting.model)
        weights = {name: p.detach().clone() for name, p in own_setting.model.named_parameters()}
        with pytest.raises(WeightSyncError, match=message):
            engine.update_weights(spoil(weights).items(), 1)
        with pytest.raises(EngineFault, match="update the weights again"):
            run_all(engine, [ask((40, 41))])
        assert engine.policy_version == 0
        engine.update_weights(weights.items(), 2)
        assert run_all(engine, [ask((40, 41))])[0].policy_version == 2

    def test_an_update_waits_for_running_requests(self, own_setting: Any, build: Any) -> None:
        engine = build(own_setting.model)
        weights = {name: torch.zeros_like(p) for name, p in own_setting.model.named_parameters()}
        request = ask(own_setting.dialogue(5), num_tokens=100)
        expected = run_all(engine, [request])[0]

        async def main() -> list[Completion]:
            running = asyncio.create_task(engine.generate(request))
            while engine.stats.num_decode_steps < 99 + 10:
                await asyncio.sleep(0.001)
            later = asyncio.create_task(engine.generate(request))
            await asyncio.to_thread(engine.update_weights, weights.items(), 1)
            return [await running, await later]

        running, later = asyncio.run(main())
        assert running == expected
        assert later.policy_version == 1
        # all-zero weights: every id that is not banned is equally likely
        num_ids = own_setting.model.config.text_config.vocab_size - 3
        assert later.logprobs == pytest.approx([-torch.tensor(float(num_ids)).log().item()] * 100, abs=1e-5)


class TestFaults:
    @contextlib.contextmanager
    def broken(self, model: Any, check: Callable[[Tensor], None]) -> Iterator[None]:
        """`check` sees the inputs [B, T, H] of every pass through the language model and may raise."""
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: check(kwargs["inputs_embeds"]), with_kwargs=True
        )
        try:
            yield
        finally:
            handle.remove()

    def test_a_failure_hits_its_own_batch_and_no_other(self, own_setting: Any, build: Any) -> None:
        model = own_setting.model
        engine = build(model)
        requests = [ask(own_setting.dialogue(5, seed=seed), seed=seed) for seed in range(3)]
        expected = run_all(engine, requests)

        def fail(inputs_BTH: Tensor) -> None:
            raise ValueError("cosmic ray")

        async def main() -> list[Any]:
            with self.broken(model, fail):
                return await asyncio.gather(*(engine.generate(r) for r in requests), return_exceptions=True)

        for outcome in asyncio.run(main()):
            assert isinstance(outcome, EngineFault)
            assert "ValueError: cosmic ray" in str(outcome)
        assert run_all(engine, requests) == expected

    def test_a_failing_prefill_spares_the_running_rows(self, own_setting: Any, build: Any) -> None:
        model = own_setting.model
        engine = build(model)
        running = ask(own_setting.dialogue(5, seed=1), num_tokens=500)
        expected = run_all(engine, [running])[0]

        def fail(inputs_BTH: Tensor) -> None:
            if inputs_BTH.shape[1] == 17:
                raise ValueError("cosmic ray")

        async def main() -> Completion:
            with self.broken(model, fail):
                task = asyncio.create_task(engine.generate(running))
                while engine.stats.num_decode_steps < 499 + 10:
                    await asyncio.sleep(0.001)
                with pytest.raises(EngineFault, match="cosmic ray"):
                    await engine.generate(ask(own_setting.dialogue(17, seed=2)))
                assert not task.done()
                return await task

        assert asyncio.run(main()) == expected

    @pytest.mark.parametrize("sampling", [PLAIN, SamplingParams(temperature=0.1, presence_penalty=2.0)])
    def test_running_out_of_memory_halves_the_batch(
        self, own_setting: Any, build: Any, sampling: SamplingParams
    ) -> None:
        model = own_setting.model
        requests = [
            ask(own_setting.dialogue(5, seed=seed), seed=seed, num_tokens=9, sampling=sampling) for seed in range(8)
        ]
        expected = run_all(build(model), requests)
        passes: list[int] = []

        def fail(inputs_BTH: Tensor) -> None:
            passes.append(len(inputs_BTH))
            if len(passes) == 5:  # in the middle of decoding
                raise torch.OutOfMemoryError("too much")

        with self.broken(model, fail):
            got = run_all(build(model), requests)
        assert [completion.token_ids for completion in got] == [completion.token_ids for completion in expected]
        assert passes[:5] == [8] * 5
        assert max(passes[5:]) == 4

    def test_running_out_of_memory_again_is_a_fault(self, own_setting: Any, build: Any) -> None:
        def fail(inputs_BTH: Tensor) -> None:
            raise torch.OutOfMemoryError("too much")

        engine = build(own_setting.model)
        with self.broken(own_setting.model, fail), pytest.raises(EngineFault, match="out of memory with 1 rows"):
            run_all(engine, [ask((40, 41))])
        assert len(run_all(engine, [ask((40, 41))])[0].token_ids) == 12

    def test_diverged_weights_are_a_fault(self, own_setting: Any, build: Any) -> None:
        engine = build(own_setting.model)
        weights = {name: p.detach() * torch.nan for name, p in own_setting.model.named_parameters()}
        engine.update_weights(weights.items(), 1)
        with pytest.raises(EngineFault, match="its weights may have diverged"):
            run_all(engine, [ask((40, 41))])

    def test_a_cancelled_request_leaves_the_others_alone(self, setting: Any, build: Any) -> None:
        engine = build()
        requests = [ask(setting.dialogue(5, seed=seed), seed=seed, num_tokens=60) for seed in range(6)]
        expected = run_all(engine, requests)

        async def main() -> list[Any]:
            tasks = [asyncio.create_task(engine.generate(request)) for request in requests]
            await asyncio.sleep(0)
            tasks[1].cancel()  # while it waits
            while engine.stats.num_decode_steps < 59 + 10:
                await asyncio.sleep(0.001)
            tasks[4].cancel()  # while it is decoded
            return await asyncio.gather(*tasks, return_exceptions=True)

        got = asyncio.run(main())
        for index, (outcome, completion) in enumerate(zip(got, expected, strict=True)):
            if index in (1, 4):
                assert isinstance(outcome, asyncio.CancelledError)
            else:
                assert outcome.token_ids == completion.token_ids
        assert run_all(engine, requests[:1])[0].token_ids == expected[0].token_ids

    def test_closing_fails_what_is_pending_and_what_comes_later(self, setting: Any, build: Any) -> None:
        engine = build()

        async def main() -> None:
            task = asyncio.create_task(engine.generate(ask(setting.dialogue(5), num_tokens=4000)))
            while engine.stats.num_decode_steps < 5:
                await asyncio.sleep(0.001)
            engine.close()
            with pytest.raises(EngineFault, match="closed before the request was done"):
                await task
            with pytest.raises(EngineFault, match="is closed"):
                await engine.generate(ask((40, 41)))

        asyncio.run(main())
        assert not any(thread.name == "axpo-hf-engine" and thread.is_alive() for thread in threading.enumerate())

    def test_it_satisfies_the_protocol(self, build: Any) -> None:
        assert isinstance(build(), InferenceEngine)

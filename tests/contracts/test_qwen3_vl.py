"""Our positions, features and log-probabilities are those of transformers' own forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import axpo.models.qwen3_vl as qwen3_vl
from axpo.errors import CheckpointError, RecordError
from axpo.models.preprocessing import ImagePreprocessor
from axpo.models.qwen3_vl import ImageFeatureCache, TokenLogprobs, mrope_positions, token_logprobs
from axpo.types import ImageRef


def random_layout(setting: Any, seed: int) -> tuple[tuple[int, ...], list[ImageRef]]:
    """0 to 3 images between texts of 0 to 6 tokens; a text of 0 puts images side by side or at the very ends."""
    rng = np.random.default_rng(seed)
    images = [setting.images[index] for index in rng.integers(0, len(setting.images), rng.integers(0, 4))]
    parts = [int(rng.integers(0, 7))]
    for ref in images:
        parts += [ref, int(rng.integers(0, 7))]
    return setting.dialogue(2, *parts, seed=seed), images


def positions(setting: Any, token_ids: Sequence[int], images: Sequence[ImageRef]) -> Tensor:
    return mrope_positions(
        token_ids,
        [setting.preprocessor.grid_thw(ref) for ref in images],
        image_token_id=setting.image_token_id,
        merge_size=setting.preprocessor.merge_size,
    )


def full_mask(sequences: Sequence[Sequence[int]], *, without: int) -> Tensor:
    """True at every token but the first, the padding and the id `without`."""
    mask_BT = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        mask_BT[row, 1 : len(sequence)] = torch.tensor(sequence[1:]) != without
    return mask_BT


def transformers_logprobs(setting: Any, sequence: Sequence[int], images: Sequence[ImageRef]) -> Tensor:
    """log softmax of the model's own forward, one row without padding: [T - 1, V], row t predicts token t + 1."""
    token_ids = torch.tensor([sequence])
    inputs: dict[str, Any] = {}
    if images:
        inputs = {"pixel_values": setting.pixels(images), "image_grid_thw": setting.grids(images)}
    output = setting.model(
        input_ids=token_ids, mm_token_type_ids=(token_ids == setting.image_token_id).int(), use_cache=False, **inputs
    )
    return output.logits[0, :-1].log_softmax(dim=-1)


@pytest.fixture
def features(setting: Any) -> ImageFeatureCache:
    return ImageFeatureCache(setting.model, setting.preprocessor, setting.store)


@pytest.fixture
def mixed(setting: Any) -> tuple[list[tuple[int, ...]], list[list[ImageRef]]]:
    """Rows of different lengths with 2, 0, 3 and 1 images, two of them shared."""
    first, second, third, fourth = setting.images
    images = [[first, second], [], [first, third, third], [fourth]]
    sequences = [
        setting.dialogue(5, first, 3, second, 4, seed=1),
        setting.dialogue(9, seed=2),
        setting.dialogue(3, first, third, 2, third, 7, seed=3),
        setting.dialogue(1, fourth, 1, seed=4),
    ]
    return sequences, images


class TestPositions:
    def test_by_hand(self) -> None:
        # Image of 2 x 3 merged tokens (grid 4 x 6): it starts at 2, spreads over rows 2..3 and columns 2..4; the longer
        # side is 3, so the next text token stands at 2 + 3 = 5.
        got = mrope_positions([7, 7, 9, 9, 9, 9, 9, 9, 7, 7], [(1, 4, 6)], image_token_id=9, merge_size=2)
        assert got.tolist() == [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
        ]

    @pytest.mark.parametrize("seed", range(40))
    def test_equal_those_of_transformers(self, setting: Any, seed: int) -> None:
        token_ids, images = random_layout(setting, seed)
        ids_1T = torch.tensor([token_ids])
        expected, _ = setting.model.model.get_rope_index(
            ids_1T, (ids_1T == setting.image_token_id).int(), setting.grids(images) if images else None
        )
        assert torch.equal(positions(setting, token_ids, images), expected[:, 0])

    @pytest.mark.parametrize("seed", range(10))
    def test_of_a_prefix_are_the_first_of_the_whole(self, setting: Any, seed: int) -> None:
        token_ids, images = random_layout(setting, seed)
        whole = positions(setting, token_ids, images)
        num_placeholders = np.cumsum(np.array(token_ids) == setting.image_token_id)
        ends = np.cumsum([0] + [setting.preprocessor.num_tokens(ref) for ref in images])
        for length in range(1, len(token_ids)):
            if (num_images := int(np.searchsorted(ends, num_placeholders[length - 1]))) < len(ends) and (
                ends[num_images] == num_placeholders[length - 1]
            ):
                assert torch.equal(positions(setting, token_ids[:length], images[:num_images]), whole[:, :length])

    def test_placeholders_that_do_not_fit_are_refused_by_row(self, setting: Any, features: ImageFeatureCache) -> None:
        image = setting.images[0]
        good = setting.dialogue(3, image)
        bad = tuple(setting.words(3, seed=0)) + (setting.image_token_id,) * 3
        mask_BT = full_mask([good, bad], without=setting.image_token_id)
        with pytest.raises(RecordError, match=r"row 1 of the batch has 3 image placeholders, but its 1 images are 6"):
            token_logprobs(setting.model, [good, bad], [[image], [image]], mask_BT, features=features)


class TestTokenLogprobs:
    def test_equal_those_of_transformers(self, setting: Any, features: ImageFeatureCache, mixed: Any) -> None:
        sequences, images = mixed
        mask_BT = full_mask(sequences, without=setting.image_token_id)
        got = token_logprobs(setting.model, sequences, images, mask_BT, features=features)
        for row, (sequence, refs) in enumerate(zip(sequences, images, strict=True)):
            logprobs_TV = transformers_logprobs(setting, sequence, refs)
            expected_T = logprobs_TV.gather(-1, torch.tensor(sequence[1:])[:, None])[:, 0]
            entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=-1)
            mask_T = mask_BT[row, 1 : len(sequence)]
            torch.testing.assert_close(got.logprobs_BT[row, 1 : len(sequence)], expected_T * mask_T)
            torch.testing.assert_close(got.entropy_BT[row, 1 : len(sequence)], entropy_T * mask_T)
            assert not got.logprobs_BT[row, len(sequence) :].any()

    def test_temperature_and_banned_ids_by_hand(self, setting: Any, features: ImageFeatureCache) -> None:
        sequence = setting.dialogue(6, seed=5)
        banned = [3, 4, setting.image_token_id]
        logits_V = transformers_logprobs(setting, sequence, [])[4]  # predicts token 5, up to a constant
        weights = [math.exp(x / 0.7) if v not in banned else 0.0 for v, x in enumerate(logits_V.tolist())]
        probs = [weight / sum(weights) for weight in weights]
        mask_BT = torch.tensor([[False] * 5 + [True]])
        got = token_logprobs(
            setting.model, [sequence], [[]], mask_BT, features=features, temperature=0.7, banned_token_ids=banned
        )
        assert got.logprobs_BT[0, 5].item() == pytest.approx(math.log(probs[sequence[5]]), abs=1e-5)
        assert got.entropy_BT[0, 5].item() == pytest.approx(-sum(p * math.log(p) for p in probs if p), abs=1e-4)

    def test_chunks_change_neither_values_nor_gradients(
        self, setting: Any, features: ImageFeatureCache, mixed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sequences, images = mixed
        mask_BT = full_mask(sequences, without=setting.image_token_id)
        shapes: list[int] = []
        policy_logits = qwen3_vl.policy_logits

        def spy(model: Any, hidden_NH: Tensor, **kwargs: Any) -> Tensor:
            shapes.append(len(hidden_NH))
            return policy_logits(model, hidden_NH, **kwargs)

        def run() -> tuple[TokenLogprobs, dict[str, Tensor]]:
            setting.model.zero_grad()
            got = token_logprobs(setting.model, sequences, images, mask_BT, features=features, temperature=0.9)
            got.logprobs_BT.square().sum().backward()
            return got, {n: p.grad.clone() for n, p in setting.model.named_parameters() if p.grad is not None}

        whole, whole_grads = run()
        monkeypatch.setattr(qwen3_vl, "LOGITS_PER_CHUNK", 5 * setting.model.config.text_config.vocab_size)
        monkeypatch.setattr(qwen3_vl, "policy_logits", spy)
        chunked, chunked_grads = run()
        setting.model.zero_grad()
        assert max(shapes) == 5
        assert len(shapes) == 2 * math.ceil(int(mask_BT.sum()) / 5)  # each chunk once more in the backward pass
        torch.testing.assert_close(chunked.logprobs_BT, whole.logprobs_BT)
        torch.testing.assert_close(chunked.entropy_BT, whole.entropy_BT)
        assert chunked_grads.keys() == whole_grads.keys()
        for name, grad in whole_grads.items():
            torch.testing.assert_close(chunked_grads[name], grad, rtol=1e-3, atol=1e-4)

    def test_later_tokens_and_other_rows_do_not_matter(self, setting: Any, features: ImageFeatureCache) -> None:
        image = setting.images[0]
        sequence = setting.dialogue(4, image, 8, seed=6)
        changed = (*sequence[:-3], *setting.words(3, seed=99))
        other = setting.dialogue(30, seed=7)
        mask_BT = torch.zeros(1, len(sequence), dtype=torch.bool)
        mask_BT[0, -6:-3] = True
        alone = token_logprobs(setting.model, [sequence], [[image]], mask_BT, features=features).logprobs_BT
        wide_BT = torch.zeros(2, len(other), dtype=torch.bool)
        wide_BT[0, : len(sequence)] = mask_BT[0]
        beside = token_logprobs(setting.model, [changed, other], [[image], []], wide_BT, features=features).logprobs_BT
        torch.testing.assert_close(beside[0, : len(sequence)], alone[0])

    def test_masks_that_cover_no_sampled_token_are_refused(self, setting: Any, features: ImageFeatureCache) -> None:
        sequences = [setting.dialogue(6, seed=8), setting.dialogue(4, seed=9)]
        mask_BT = torch.ones(2, 6, dtype=torch.bool)
        with pytest.raises(RecordError, match="row 0 of the batch: the mask covers its first token or its padding"):
            token_logprobs(setting.model, sequences, [[], []], mask_BT, features=features)
        mask_BT[:, 0] = False
        with pytest.raises(RecordError, match="row 1 of the batch: the mask covers its first token or its padding"):
            token_logprobs(setting.model, sequences, [[], []], mask_BT, features=features)
        mask_BT[1, 4:] = False
        with pytest.raises(RecordError, match=f"row 1 of the batch: token 2 has id {sequences[1][2]}"):
            token_logprobs(
                setting.model, sequences, [[], []], mask_BT, features=features, banned_token_ids=[sequences[1][2]]
            )
        with pytest.raises(RecordError, match=r"mask of shape \(2, 5\) for tokens of \(2, 6\)"):
            token_logprobs(setting.model, sequences, [[], []], mask_BT[:, :5], features=features)

    def test_autocast_keeps_float32_results_close(self, setting: Any, features: ImageFeatureCache, mixed: Any) -> None:
        sequences, images = mixed
        mask_BT = full_mask(sequences, without=setting.image_token_id)
        exact = token_logprobs(setting.model, sequences, images, mask_BT, features=features).logprobs_BT.detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = token_logprobs(setting.model, sequences, images, mask_BT, features=features).logprobs_BT
        assert got.dtype is torch.float32
        gap = (got - exact)[mask_BT].abs()
        assert 0 < gap.mean() < 0.03

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for the old name
    def test_works_inside_a_peft_model(self, own_setting: Any, mixed: Any) -> None:
        peft = pytest.importorskip("peft")
        base = own_setting
        sequences, images = mixed
        mask_BT = full_mask(sequences, without=base.image_token_id)
        cache = ImageFeatureCache(base.model, base.preprocessor, base.store)
        expected = token_logprobs(base.model, sequences, images, mask_BT, features=cache).logprobs_BT.detach()
        model = peft.get_peft_model(base.model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        cache = ImageFeatureCache(model, base.preprocessor, base.store)
        got = token_logprobs(model, sequences, images, mask_BT, features=cache).logprobs_BT
        torch.testing.assert_close(got, expected)  # a fresh adapter adds zero
        got.sum().backward()
        learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert learning and all("lora_B" in name for name in learning)


class TestImageFeatures:
    def test_each_image_is_encoded_once_until_cleared(self, setting: Any, features: ImageFeatureCache) -> None:
        first, second, third, _ = setting.images
        with torch.no_grad():
            once = features.gather([first, second, first])
            assert features.num_encoded == 2
            again = features.gather([third, first])
            assert features.num_encoded == 3
            size = setting.preprocessor.num_tokens(first)
            assert torch.equal(once[:, :size], again[:, -size:])
            features.clear()
            torch.testing.assert_close(features.gather([first]), once[:, :size])
            assert features.num_encoded == 4

    def test_are_those_of_the_vision_tower(self, setting: Any, features: ImageFeatureCache) -> None:
        images = [setting.images[2], setting.images[0]]
        with torch.no_grad():
            output = setting.model.model.visual(
                setting.pixels(images), grid_thw=setting.grids(images), return_dict=True
            )
            got = features.gather(images)
        torch.testing.assert_close(got, torch.stack([output.pooler_output, *output.deepstack_features]))

    def test_least_recently_used_ones_go_first(self, setting: Any) -> None:
        first, second, third, _ = setting.images
        tokens = {ref: setting.preprocessor.num_tokens(ref) for ref in (first, second, third)}
        cache = ImageFeatureCache(
            setting.model, setting.preprocessor, setting.store, max_cached_tokens=sum(tokens.values()) - 1
        )
        with torch.no_grad():
            for ref in (first, second, first, third):  # the last one does not fit: second goes
                cache.gather([ref])
            assert cache.num_encoded == 3
            cache.gather([first, third])
            assert cache.num_encoded == 3
            cache.gather([second])
            assert cache.num_encoded == 4

    def test_gradient_reaches_the_tower_when_it_learns_and_only_then(
        self, setting: Any, features: ImageFeatureCache, mixed: Any
    ) -> None:
        sequences, images = mixed
        mask_BT = full_mask(sequences, without=setting.image_token_id)
        weight = setting.model.model.visual.patch_embed.proj.weight
        setting.model.zero_grad()
        token_logprobs(setting.model, sequences, images, mask_BT, features=features).logprobs_BT.sum().backward()
        assert features.num_encoded == 4  # distinct images of the batch
        got = weight.grad.clone()

        setting.model.zero_grad()
        for sequence, refs in zip(sequences, images, strict=True):
            mask_T = torch.tensor(sequence[1:]) != setting.image_token_id
            logprobs_TV = transformers_logprobs(setting, sequence, refs)
            (logprobs_TV.gather(-1, torch.tensor(sequence[1:])[:, None])[:, 0] * mask_T).sum().backward()
        torch.testing.assert_close(got, weight.grad, rtol=1e-3, atol=1e-3)

        setting.model.zero_grad()
        setting.model.model.visual.requires_grad_(False)
        try:
            for _ in range(2):
                token_logprobs(
                    setting.model, sequences, images, mask_BT, features=features
                ).logprobs_BT.sum().backward()
        finally:
            setting.model.model.visual.requires_grad_(True)
        assert weight.grad is None
        assert features.num_encoded == 8  # once more, then from memory
        setting.model.zero_grad()

    def test_a_preprocessor_of_another_model_is_refused(self, setting: Any) -> None:
        size = {"shortest_edge": 784, "longest_edge": 10**6}
        other = ImagePreprocessor(
            {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "size": size}
            | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        )
        with pytest.raises(CheckpointError, match=r"\(14, 2, 2\), config.json \(16, 2, 2\)"):
            ImageFeatureCache(setting.model, other, setting.store)

"""An engine that does not run the weights it was given is found at the first update it missed, however small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from axpo.engines.hf import HfEngine
from axpo.engines.scripted import ScriptedEngine
from axpo.errors import WeightSyncError
from axpo.images import ContentImageStore
from axpo.models.loading import load_model
from axpo.models.preprocessing import ImagePreprocessor
from axpo.protocols import ChecksummedEngine, RenderedTokens
from axpo.trainer.config import ModelConfig
from axpo.trainer.policy import Policy
from axpo.trainer.weight_sync import WeightSync
from axpo.types import SamplingParams

CPU = torch.device("cpu")


class StaleEngine(HfEngine):
    """Takes the first update and reports every one."""

    reads_updates = True

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if version == 1:
            super().update_weights(weights, version)
        elif self.reads_updates:
            list(weights)
        self._policy_version = version


class CarelessEngine(StaleEngine):
    """Does not even look at an update."""

    reads_updates = False


class ForgetfulEngine(HfEngine):
    """Loses the smallest weight of each update but the first."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        kept = {name: parameter.clone() for name, parameter in self._model.named_parameters()}
        lost = min(kept, key=lambda name: kept[name].numel())
        taken = ((name, kept[name] if name == lost and version > 1 else tensor) for name, tensor in weights)
        super().update_weights(taken, version)


class Parts:
    """A policy and the engine that samples from it."""

    def __init__(self, checkpoint: Path, engine_class: type[HfEngine], **model: Any) -> None:
        config = ModelConfig(path=str(checkpoint), **model)
        store, preprocessor = ContentImageStore(), ImagePreprocessor.from_pretrained(checkpoint)
        self.policy = Policy(
            config, path=checkpoint, preprocessor=preprocessor, store=store, device=CPU, temperature=1.0,
            banned_token_ids=(), has_reference=False,
        )  # fmt: skip
        self.engine = engine_class(
            load_model(checkpoint, dtype=config.dtype, device=CPU), preprocessor=preprocessor, store=store,
            banned_token_ids=(), stop_token_ids=(),
        )  # fmt: skip
        probe = RenderedTokens(token_ids=tuple(range(40, 60)), images=())
        self.sync = WeightSync(self.policy, self.engine, probe=probe, sampling=SamplingParams(), dtype=config.dtype)

    @torch.no_grad()
    def learn(self, relative: float) -> None:
        for parameter in self.policy.trainable_parameters().values():
            parameter.mul_(1 + relative).add_(relative)


@pytest.fixture
def build(tiny_checkpoint: Path) -> Iterator[Callable[..., Parts]]:
    built: list[Parts] = []

    def make(engine_class: type[HfEngine], **model: Any) -> Parts:
        built.append(Parts(tiny_checkpoint, engine_class, **model))
        return built[-1]

    yield make
    for parts in built:
        parts.engine.close()


@pytest.mark.parametrize("engine_class", [StaleEngine, CarelessEngine])
def test_one_missed_update_of_a_ten_millionth_stops_the_run(build: Any, engine_class: type[HfEngine]) -> None:
    parts = build(engine_class)
    parts.sync.push(1)
    parts.learn(1e-7)
    with pytest.raises(WeightSyncError, match="after update 2 the checksum of the engine's weights is"):
        parts.sync.push(2)


def test_one_missed_weight_stops_the_run(build: Any) -> None:
    parts = build(ForgetfulEngine, freeze_vision=False)
    parts.sync.push(1)
    parts.learn(1e-6)
    with pytest.raises(WeightSyncError, match="after update 2 the checksum"):
        parts.sync.push(2)


def test_without_a_checksum_the_canary_is_blind_to_that(build: Any) -> None:
    """What the checksum is for; an engine without one is none the worse."""
    parts = build(StaleEngine)
    bare = _Bare(parts.engine)
    assert not isinstance(bare, ChecksummedEngine)
    parts.sync._engine = bare
    for version in (1, 2):
        assert parts.sync.push(version) < 1e-4
        parts.learn(1e-7)


def test_an_engine_with_other_log_probs_stops_the_run(build: Any) -> None:
    parts = build(HfEngine)
    parts.sync._engine = ScriptedEngine({(): [50, 51]}, logprob=-1.0)
    with pytest.raises(WeightSyncError, match="after update 1 the engine's log-probs of the probe differ"):
        parts.sync.push(1)


def test_a_gap_that_is_not_a_number_stops_the_run(build: Any) -> None:
    parts = build(HfEngine)
    parts.sync._engine = ScriptedEngine({(): [50, 51]}, logprob=-5.0)
    parts.learn(float("nan"))
    with pytest.raises(WeightSyncError, match=r"after update 1 .* differ from the trainer's by nan nats"):
        parts.sync.push(1)


@pytest.mark.parametrize("behind", [-1, 1])
def test_an_engine_with_another_version_stops_the_run(build: Any, behind: int) -> None:
    class OtherVersion(ScriptedEngine):
        def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
            super().update_weights(weights, version + behind)

    parts = build(HfEngine)
    parts.sync._engine = OtherVersion({(): [50, 51]})
    with pytest.raises(WeightSyncError, match=f"weights of version {2 + behind} after it was given 2"):
        parts.sync.push(2)


class _Bare:
    """The five members of an engine and no more."""

    def __init__(self, inner: HfEngine) -> None:
        self.generate, self.update_weights, self.close = inner.generate, inner.update_weights, inner.close
        self._inner = inner

    @property
    def policy_version(self) -> int:
        return self._inner.policy_version


@pytest.mark.parametrize(
    "model",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16", "freeze_vision": False},
        {"dtype": "float32", "lora_rank": 2},
        {"dtype": "bfloat16", "lora_rank": 2},
    ],
    ids=str,
)
def test_an_engine_that_takes_every_update_passes(build: Any, model: dict[str, Any]) -> None:
    parts = build(HfEngine, **model)
    checksums: set[int] = set()
    for version in range(1, 4):
        parts.sync.push(version)
        checksums.add(parts.engine.weights_checksum())
        parts.learn(0.01)
    assert len(checksums) == 3, "nothing was learnt: the test is too easy"

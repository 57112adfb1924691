"""New weights into the engine, and checks that it samples from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from axpo.errors import WeightSyncError
from axpo.models.checksums import MODULUS, weights_checksum
from axpo.protocols import ChecksummedEngine, InferenceEngine, RenderedTokens
from axpo.trainer.policy import Policy
from axpo.types import GenerationRequest, RowRole, SamplingParams, TrainingRow

NUM_PROBE_TOKENS = 4
MAX_GAP = {"float32": 1e-3, "bfloat16": 0.2}
"""Mean |engine - trainer| over the probe tokens, in nats, by compute precision; beyond it the weights differ."""


class WeightSync:
    """Hands over weights and checks what the engine makes of them, in two ways.

    Both sides score the same tokens of one short, fixed prompt: a difference means other weights, other positions,
    other images or another temperature. And an `axpo.protocols.ChecksummedEngine` reports the checksum of what it runs:
    it must be that of what it was given, in the compute precision. Another engine that keeps old weights is found only
    once the updates it missed move the probe by more than `MAX_GAP`; at a small learning rate that takes many.
    """

    def __init__(
        self,
        policy: Policy,
        engine: InferenceEngine,
        *,
        probe: RenderedTokens,
        sampling: SamplingParams,
        dtype: Literal["float32", "bfloat16"],
    ) -> None:
        self._policy = policy
        self._engine = engine
        self._probe = probe
        self._sampling = sampling
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._max_gap = MAX_GAP[dtype]

    def push(self, version: int) -> float:
        """Update the engine; returns the gap of the canary in nats. Raises `WeightSyncError`."""
        weights = self._policy.engine_weights()
        if not isinstance(self._engine, ChecksummedEngine):
            self._engine.update_weights(weights, version)
            return self._check_canary(version)
        given: list[int] = []
        self._engine.update_weights(self._record_checksums(weights, given), version)
        gap = self._check_canary(version)
        self._check_weights(self._engine.weights_checksum(), sum(given) % MODULUS, version)
        return gap

    def _record_checksums(
        self, weights: Iterator[tuple[str, Tensor]], found: list[int]
    ) -> Iterator[tuple[str, Tensor]]:
        """The same weights; checksums are taken as they pass, since merging adapters a second time would be dear."""
        for name, tensor in weights:
            found.append(weights_checksum([tensor], dtype=self._dtype))
            yield name, tensor

    def _check_weights(self, found: int, given: int, version: int) -> None:
        if found != given:
            raise WeightSyncError(
                f"after update {version} the checksum of the engine's weights is {found:016x}, that of those it was "
                f"given {given:016x}: it runs others, be they older or of another precision than model.dtype. "
                "Resume from the last checkpoint; if it happens again, the engine is at fault."
            )

    def _check_canary(self, version: int) -> float:
        request = GenerationRequest(
            token_ids=self._probe.token_ids,
            images=self._probe.images,
            max_new_tokens=NUM_PROBE_TOKENS,
            sampling=self._sampling,
            seed=0,
        )
        completion = asyncio.run(self._engine.generate(request))
        if completion.policy_version != version:
            raise WeightSyncError(
                f"the engine reports weights of version {completion.policy_version} after it was given {version}"
            )
        gap = self._gap(completion.token_ids, completion.logprobs)
        if not gap <= self._max_gap:
            raise WeightSyncError(
                f"after update {version} the engine's log-probs of the probe differ from the trainer's by {gap:.4g} "
                f"nats on average, more than {self._max_gap:g}: it does not run the weights it was given. "
                "Resume from the last checkpoint; if it happens again, the engine is at fault.",
                gap=gap,
            )
        return gap

    @torch.no_grad()
    def _gap(self, token_ids: tuple[int, ...], logprobs: tuple[float, ...]) -> float:
        num_prompt, num_sampled = len(self._probe.token_ids), len(token_ids)
        mask = (False,) * num_prompt + (True,) * num_sampled
        row = TrainingRow(
            id="probe",
            role=RowRole.ROLLOUT,
            token_ids=self._probe.token_ids + token_ids,
            loss_mask=mask,
            advantages=(0.0,) * len(mask),
            behavior_logprobs=(0.0,) * num_prompt + logprobs,
            images=self._probe.images,
        )
        own_T = self._policy.logprobs([row], torch.tensor([mask])).logprobs_BT[0, num_prompt:]
        return float((own_T.cpu() - torch.tensor(logprobs)).abs().mean())

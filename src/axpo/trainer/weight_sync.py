"""New weights into the engine, and a check that it samples from them."""

from __future__ import annotations

import asyncio
from typing import Literal

import torch

from axpo.errors import WeightSyncError
from axpo.protocols import InferenceEngine, RenderedTokens
from axpo.trainer.policy import Policy
from axpo.types import GenerationRequest, RowRole, SamplingParams, TrainingRow

NUM_PROBE_TOKENS = 4
MAX_GAP = {"float32": 1e-3, "bfloat16": 0.2}
"""Mean |engine - trainer| over the probe tokens, in nats, by compute precision; beyond it the weights differ."""


class WeightSync:
    """Hands over weights and compares both sides on one short, fixed prompt.

    Both sides score the same tokens: a difference means other weights, other positions, other images or another
    temperature. `version` tells which update the engine must report. An engine that keeps old weights is found once the
    updates it missed move the probe by more than `MAX_GAP`; at a small learning rate that takes several.
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
        self._max_gap = MAX_GAP[dtype]

    def push(self, version: int) -> float:
        """Update the engine; returns the gap of the canary in nats. Raises `WeightSyncError`."""
        self._engine.update_weights(self._policy.engine_weights(), version)
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
                "Resume from the last checkpoint; if it happens again, the engine is at fault."
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

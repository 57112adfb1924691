"""Batched decoding for `axpo.engines.hf`: rows of different lengths that join, sample and leave one running batch.

Single-threaded and free of asyncio; the engine's worker thread drives it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from axpo.models.qwen3_vl import ImageFeatureCache, base_model, collate_dialogues, hidden_states, policy_logits
from axpo.types import GenerationRequest, ImageRef, SamplingParams

MIN_SPARE_COLUMNS = 64

Context = tuple[tuple[int, ...], tuple[ImageRef, ...]]
"""Tokens and images: all that the next token depends on."""


@dataclass(slots=True, eq=False)
class DecodeRow:
    """One request on its way: what it sampled so far and its own source of randomness."""

    request: GenerationRequest
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    finish_reason: Literal["stop", "length"] | None = None
    is_cancelled: bool = False
    """Nobody waits for it any more."""
    num_restarts: int = 0
    deadline_s: float = math.inf
    """On the monotonic clock. Set when its first token is sampled: before that the row waits for the engine."""
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.request.seed)

    def restart(self) -> None:
        """Prepare to be admitted again after a failure: the next random number is that of the next token."""
        self.num_restarts += 1
        self.random = np.random.default_rng(self.request.seed)
        self.random.random(len(self.token_ids))

    @property
    def context(self) -> Context:
        """What the next token depends on; a row that was thrown out of a batch goes on from what it has sampled."""
        return (*self.request.token_ids, *self.token_ids), self.request.images

    @property
    def is_done(self) -> bool:
        """True when it samples no further token."""
        return self.is_cancelled or self.finish_reason is not None

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values exist: all but the one sampled last."""
        return len(self.request.token_ids) + len(self.token_ids) - 1


# -- sampling ---------------------------------------------------------------------------------------------------------


class SamplingTable:
    """The sampling parameters of a batch as tensors, rebuilt only when its rows change.

    `sampled`: what each row has sampled so far; `note` adds to it. Kept only for rows with a presence penalty.
    """

    def __init__(
        self,
        params: Sequence[SamplingParams],
        *,
        vocab_size: int,
        device: torch.device,
        sampled: Sequence[Sequence[int]] = (),
    ) -> None:
        temperatures = [p.temperature for p in params]
        temperature_B = torch.tensor(temperatures, dtype=torch.float32, device=device)
        self.is_greedy_B = temperature_B == 0
        self.temperature: float | Tensor = temperatures[0] if len(set(temperatures)) == 1 else temperature_B[:, None]
        is_truncated = [p.temperature > 0 and (p.top_k > 0 or p.top_p < 1) for p in params]
        truncated = [p for p, is_cut in zip(params, is_truncated, strict=True) if is_cut]
        ranks = [min(p.top_k or vocab_size, vocab_size) for p in truncated]
        self.num_candidates = max(ranks, default=0)
        self.truncated_R = torch.tensor(is_truncated, device=device).nonzero()[:, 0]
        self.top_k_R1 = torch.tensor(ranks, device=device)[:, None]
        self.top_p_R1 = torch.tensor([p.top_p for p in truncated], dtype=torch.float64, device=device)[:, None]
        self._penalized = [row for row, p in enumerate(params) if p.presence_penalty != 0]
        if self._penalized:
            self._prepare_penalties(params, sampled, vocab_size=vocab_size, device=device)

    def _prepare_penalties(
        self,
        params: Sequence[SamplingParams],
        sampled: Sequence[Sequence[int]],
        *,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        rows = self._penalized
        self._rows_R = torch.tensor(rows, device=device)
        # it is taken from the logits before they are divided by the temperature; here they have been
        shifts = [params[row].presence_penalty / (params[row].temperature or 1.0) for row in rows]
        self._shift_R1 = torch.tensor(shifts, dtype=torch.float32, device=device)[:, None]
        self._is_seen_RV = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
        for place, row in enumerate(rows):
            if row < len(sampled) and sampled[row]:
                self._is_seen_RV[place, torch.tensor(sampled[row], device=device)] = True

    def note(self, ids_B: Tensor) -> None:
        """Every row has sampled one more token."""
        if self._penalized:
            self._is_seen_RV.scatter_(1, ids_B[self._rows_R][:, None], True)

    def penalized(self, logits_BV: Tensor, logprobs_BV: Tensor) -> Tensor:
        """The log-probabilities to choose by: without a penalty those that are given, not a copy."""
        if not self._penalized:
            return logprobs_BV
        logits_RV = logits_BV[self._rows_R] - self._shift_R1 * self._is_seen_RV
        return logprobs_BV.index_copy(0, self._rows_R, logits_RV.log_softmax(dim=-1))


def sample_tokens(logits_BV: Tensor, uniforms_B: Tensor, table: SamplingTable) -> tuple[Tensor, Tensor]:
    """Sampled ids [B] and their log-probability under the softmax of `logits_BV`, without truncation or penalty [B].

    Inverse distribution function: a row's token depends on its logits, its own uniform number in [0, 1) and, with a
    presence penalty, what it has sampled. Ids at minus infinity are never chosen.
    """
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    choice_BV = table.penalized(logits_BV, logprobs_BV)
    best_B = choice_BV.argmax(dim=-1)
    probs_BV = choice_BV.exp()
    ids_B = _invert_distribution(probs_BV, uniforms_B)
    if table.num_candidates:
        rows_R = table.truncated_R
        ids_B[rows_R] = _sample_truncated(probs_BV[rows_R], uniforms_B[rows_R], table)
    # Rounding at the very end of the distribution function may land on an impossible id.
    is_impossible_B = probs_BV.gather(-1, ids_B[:, None])[:, 0] == 0
    ids_B = torch.where(is_impossible_B | table.is_greedy_B, best_B, ids_B)
    return ids_B, logprobs_BV.gather(-1, ids_B[:, None])[:, 0].clamp_max(0.0)


def _sample_truncated(probs_RV: Tensor, uniforms_R: Tensor, table: SamplingTable) -> Tensor:
    """Top-k, then top-p of what is left: the most probable ids up to the one that reaches the mass `top_p`."""
    probs_RC, ids_RC = probs_RV.topk(table.num_candidates, dim=-1)
    ranks_C = torch.arange(table.num_candidates, device=probs_RV.device)
    probs_RC = torch.where(ranks_C < table.top_k_R1, probs_RC, 0.0).double()
    mass_before_RC = probs_RC.cumsum(dim=-1) - probs_RC
    probs_RC = torch.where(mass_before_RC < table.top_p_R1 * probs_RC.sum(dim=-1, keepdim=True), probs_RC, 0.0)
    return ids_RC.gather(-1, _invert_distribution(probs_RC, uniforms_R)[:, None])[:, 0]


def _invert_distribution(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    # float64: in float32 the tail of a large vocabulary vanishes from the running sum.
    cumulated_BV = weights_BV.cumsum(dim=-1, dtype=torch.float64)
    thresholds_B1 = uniforms_B[:, None] * cumulated_BV[:, -1:]
    return torch.searchsorted(cumulated_BV, thresholds_B1, right=True)[:, 0].clamp_max(weights_BV.shape[-1] - 1)


# -- keys and values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CachePart:
    """Rows of some cache and where they go in a new one."""

    layers: Sequence[tuple[Tensor, Tensor]]
    """Keys and values per layer, [rows, columns, heads, head_dim]."""
    source_rows: Tensor
    target_rows: Tensor


class _RaggedLayer(DynamicLayer):
    """One layer of a `RaggedCache`; a decoding step writes one column per row in place."""

    def __init__(self, cache: RaggedCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._cache = cache

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, store: Tensor | None, new_BH1D: Tensor) -> Tensor:
        assert store is not None
        store.flatten(0, 1).index_copy_(0, self._cache.slots_B, new_BH1D[:, :, 0])
        return store[:, : self._cache.num_columns].transpose(1, 2)

    def get_seq_length(self) -> int:
        return self._cache.num_columns - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.num_columns, 0


class RaggedCache(Cache):
    """Keys and values of rows with different lengths, padded on the right, with spare columns to grow into."""

    def __init__(self, lengths: Sequence[int], parts: Sequence[CachePart]) -> None:
        device = parts[0].source_rows.device
        self.num_columns = max(lengths)
        self.capacity = self.num_columns + max(MIN_SPARE_COLUMNS, self.num_columns // 4)
        self.lengths_B = torch.tensor(lengths, device=device)
        self.slots_B = self.lengths_B
        self._first_slots_B = torch.arange(len(lengths), device=device) * self.capacity
        self._columns = torch.arange(self.capacity, device=device)
        stores = [[self._merge(parts, layer, side) for side in (0, 1)] for layer in range(len(parts[0].layers))]
        super().__init__(layers=[_RaggedLayer(self, keys, values) for keys, values in stores])

    def _merge(self, parts: Sequence[CachePart], layer: int, side: int) -> Tensor:
        example = parts[0].layers[layer][side]
        # Zeros, not empty memory: a NaN there would survive the masked weight of zero.
        store = example.new_zeros(len(self.lengths_B), self.capacity, *example.shape[2:])
        for part in parts:
            tensor = part.layers[layer][side][:, : self.num_columns]
            store[part.target_rows, : tensor.shape[1]] = tensor[part.source_rows]
        return store

    @property
    def is_full(self) -> bool:
        """True when no column is left for another step."""
        return self.num_columns == self.capacity

    def open_column(self) -> Tensor:
        """Make room for one more token per row; returns which columns each row may look at, [B, num_columns]."""
        self.slots_B = self._first_slots_B + self.lengths_B
        self.lengths_B = self.lengths_B + 1
        self.num_columns += 1
        return self._columns[: self.num_columns] < self.lengths_B[:, None]

    def part(self, source_rows: Sequence[int]) -> CachePart:
        """Some of its rows, to become the first rows of another cache."""
        source = torch.tensor(source_rows, dtype=torch.long, device=self.lengths_B.device)
        return CachePart(_keys_and_values(self), source, torch.arange(len(source_rows), device=source.device))


def _keys_and_values(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cast("list[Any]", cache.layers)]


# -- the running batch ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class DecodeStats:
    """Work done so far."""

    num_prefill_tokens: int = 0
    """Prompt tokens passed through the model, each distinct context once."""
    num_decode_steps: int = 0
    num_decode_rows: int = 0
    """Rows summed over steps, finished ones that were still carried included."""


class DecodeBatch:
    """Rows that are decoded together. Results of a row do not depend on the others, up to float noise."""

    def __init__(
        self,
        model: Any,
        *,
        features: ImageFeatureCache,
        banned_token_ids: Sequence[int],
        stop_token_ids: Sequence[int],
        max_prefill_tokens: int,
    ) -> None:
        self.rows: list[DecodeRow] = []
        self.stats = DecodeStats()
        self._model = model
        self._features = features
        self._stop_token_ids = frozenset(stop_token_ids)
        self._max_prefill_tokens = max_prefill_tokens
        self._device: torch.device = base_model(model).lm_head.weight.device
        self._banned_ids = torch.tensor(banned_token_ids, dtype=torch.long, device=self._device)
        text_config = base_model(model).config.get_text_config()
        self._vocab_size: int = text_config.vocab_size
        # sdpa takes a ready mask; the other implementations derive their own form from [B, columns].
        self._is_sdpa: bool = text_config._attn_implementation == "sdpa"
        self.clear()

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self.rows = []
        self._cache: RaggedCache | None = None
        self._last_ids_B = torch.zeros(0, dtype=torch.long, device=self._device)
        self._positions_B = torch.zeros(0, dtype=torch.long, device=self._device)
        self._sampling = self._sampling_table(())

    @property
    def live_rows(self) -> list[DecodeRow]:
        """Rows that still sample."""
        return [row for row in self.rows if not row.is_done]

    @torch.no_grad()
    def admit(self, rows: Sequence[DecodeRow]) -> list[DecodeRow]:
        """Prefill new rows, sample the first token of each and let them join. Returns the rows that finished by it.

        Rows with the same context and images are prefilled once. When this raises, the running rows are untouched.
        """
        contexts = dict.fromkeys(row.context for row in rows)
        prefill = self._prefill(sorted(contexts, key=lambda context: len(context[0])))
        sources = [prefill.index_of[row.context] for row in rows]
        sources_B = torch.tensor(sources, device=self._device)
        sampling = self._sampling_table(rows)
        ids_B, sampled = self._sample(prefill.hidden_UH[sources_B], rows, sampling)

        live = [index for index, row in enumerate(self.rows) if not row.is_done]
        lengths = [row.num_cached for row in self.live_rows] + [len(row.context[0]) for row in rows]
        parts = [] if self._cache is None else [self._cache.part(live)]
        for start, stop, layers in prefill.blocks:
            targets_B = ((sources_B >= start) & (sources_B < stop)).nonzero()[:, 0]
            parts.append(CachePart(layers, sources_B[targets_B] - start, targets_B + len(live)))
        cache = RaggedCache(lengths, parts)
        sampling = self._sampling_table([*self.live_rows, *rows])

        # From here on nothing allocates much, so nothing fails half-way.
        self._keep(live)
        self._cache = cache
        self.rows.extend(rows)
        self._last_ids_B = torch.cat([self._last_ids_B, ids_B])
        self._positions_B = torch.cat([self._positions_B, prefill.positions_U[sources_B]])
        self._sampling = sampling
        self._sampling.note(self._last_ids_B)  # the first tokens of the new rows are not recorded yet
        return self._record(rows, sampled)

    @torch.no_grad()
    def step(self) -> list[DecodeRow]:
        """Sample one token for every row. Returns the rows that finished by it."""
        assert self._cache is not None
        if self._cache.is_full or 4 * len(self.live_rows) <= 3 * len(self.rows):
            self._compact()
        is_visible_BT = self._cache.open_column()
        core = base_model(self._model).model.language_model
        hidden_BTH = core(
            inputs_embeds=core.embed_tokens(self._last_ids_B[:, None]),
            position_ids=self._positions_B[None, :, None].expand(3, -1, 1),
            attention_mask=is_visible_BT[:, None, None] if self._is_sdpa else is_visible_BT,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._positions_B = self._positions_B + 1
        self._last_ids_B, sampled = self._sample(hidden_BTH[:, 0], self.rows, self._sampling)
        self._sampling.note(self._last_ids_B)
        self.stats.num_decode_steps += 1
        self.stats.num_decode_rows += len(self.rows)
        return self._record(self.rows, sampled)

    def _prefill(self, contexts: Sequence[Context]) -> _Prefill:
        blocks: list[tuple[int, int, list[tuple[Tensor, Tensor]]]] = []
        hidden: list[Tensor] = []
        positions: list[Tensor] = []
        for start, stop in _split_by_tokens([len(ids) for ids, _ in contexts], self._max_prefill_tokens):
            token_ids, images = zip(*contexts[start:stop], strict=True)
            batch = collate_dialogues(self._model, token_ids, images, preprocessor=self._features.preprocessor)
            cache = DynamicCache()
            hidden_BTH = hidden_states(self._model, batch, features=self._features, past_key_values=cache)
            hidden.append(hidden_BTH[torch.arange(stop - start), batch.lengths_B - 1])
            positions.append(batch.next_positions_B)
            layers = [(keys.transpose(1, 2), values.transpose(1, 2)) for keys, values in _keys_and_values(cache)]
            blocks.append((start, stop, layers))
        self.stats.num_prefill_tokens += sum(len(ids) for ids, _ in contexts)
        return _Prefill(
            index_of={context: index for index, context in enumerate(contexts)},
            hidden_UH=torch.cat(hidden),
            positions_U=torch.cat(positions).to(self._device),
            blocks=blocks,
        )

    def _compact(self) -> None:
        """Let go of finished rows, and of columns that only they needed; make room for more columns."""
        assert self._cache is not None
        live = [index for index, row in enumerate(self.rows) if not row.is_done]
        self._cache = RaggedCache([row.num_cached for row in self.live_rows], [self._cache.part(live)])
        self._keep(live)
        self._sampling = self._sampling_table(self.rows)

    def _keep(self, live: Sequence[int]) -> None:
        index = torch.tensor(live, dtype=torch.long, device=self._device)
        self._last_ids_B, self._positions_B = self._last_ids_B[index], self._positions_B[index]
        self.rows = [self.rows[place] for place in live]

    def _sampling_table(self, rows: Sequence[DecodeRow]) -> SamplingTable:
        return SamplingTable(
            [row.request.sampling for row in rows],
            vocab_size=self._vocab_size,
            device=self._device,
            sampled=[row.token_ids for row in rows],
        )

    def _sample(
        self, hidden_BH: Tensor, rows: Sequence[DecodeRow], sampling: SamplingTable
    ) -> tuple[Tensor, list[list[float]]]:
        """Sampled ids on the device, and per row (id, log-prob) as Python numbers in one transfer."""
        logits_BV = policy_logits(self._model, hidden_BH, temperature=sampling.temperature, banned_ids=self._banned_ids)
        uniforms_B = torch.tensor([row.random.random() for row in rows], dtype=torch.float64, device=self._device)
        ids_B, logprobs_B = sample_tokens(logits_BV, uniforms_B, sampling)
        return ids_B, torch.stack([ids_B.double(), logprobs_B.double()], dim=1).tolist()

    def _record(self, rows: Sequence[DecodeRow], sampled: list[list[float]]) -> list[DecodeRow]:
        finished: list[DecodeRow] = []
        for row, (token_id, logprob) in zip(rows, sampled, strict=True):
            if row.is_done:
                continue
            row.token_ids.append(int(token_id))
            row.logprobs.append(logprob)
            now_s = time.monotonic()
            if len(row.token_ids) == 1:
                row.deadline_s = now_s + row.request.time_limit_s
            if row.token_ids[-1] in self._stop_token_ids:
                row.finish_reason = "stop"
            elif len(row.token_ids) == row.request.max_new_tokens or now_s >= row.deadline_s:
                row.finish_reason = "length"
            if row.is_done:
                finished.append(row)
        return finished


@dataclass(frozen=True, slots=True)
class _Prefill:
    index_of: dict[Context, int]
    hidden_UH: Tensor
    """Last hidden state of each distinct context."""
    positions_U: Tensor
    """M-RoPE position of the token that follows."""
    blocks: list[tuple[int, int, list[tuple[Tensor, Tensor]]]]
    """Contexts [start, stop) and their keys and values per layer, [rows, columns, heads, head_dim]."""


def _split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Ranges of ascending `lengths` whose padded size stays within `max_tokens`; a longer one stands alone."""
    starts = [0]
    for index, length in enumerate(lengths):
        if index > starts[-1] and (index + 1 - starts[-1]) * length > max_tokens:
            starts.append(index)
    return list(itertools.pairwise([*starts, len(lengths)]))

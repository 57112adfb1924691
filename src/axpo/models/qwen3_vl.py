"""How a Qwen3-VL eats a dialogue: positions, image features, hidden states, log-probabilities.

Engine and trainer both go through here, so that both mean the same policy: ids of text and expanded image placeholders,
M-RoPE positions counted from those ids, image features put in place of the placeholders, logits with the banned ids at
minus infinity, divided by the temperature in float32.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from axpo.errors import CheckpointError, RecordError

if TYPE_CHECKING:
    from axpo.models.preprocessing import ImagePreprocessor
    from axpo.protocols import ImageStore
    from axpo.types import ImageRef

LOGITS_PER_CHUNK = 2**26
"""Logits alive at once in `token_logprobs`: 256 MiB of float32."""
PATCHES_PER_ENCODING = 32768
"""Patches of one pass through the vision tower when it does not learn."""

Grid = tuple[int, int, int]


def base_model(model: Any) -> Any:
    """The Qwen3-VL itself, out of a peft wrapper (its adapters stay active inside)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# -- positions --------------------------------------------------------------------------------------------------------


def mrope_positions(
    token_ids: Sequence[int], grids_thw: Sequence[Grid], *, image_token_id: int, merge_size: int
) -> Tensor:
    """Temporal, height and width position of each token: LongTensor [3, T].

    A text token moves all three on by one. The tokens of an image share the temporal position, spread over its merged
    grid in height and width, and what follows starts after the longer side. Raises `RecordError` when the placeholders
    are not as many as the images need.
    """
    is_image_T = np.asarray(token_ids, dtype=np.int64) == image_token_id
    advance_T = np.ones(len(token_ids), dtype=np.int64)
    offsets_3T = np.zeros((3, len(token_ids)), dtype=np.int64)
    columns = np.flatnonzero(is_image_T)
    merged = [(frames, height // merge_size, width // merge_size) for frames, height, width in grids_thw]
    num_needed = sum(frames * height * width for frames, height, width in merged)
    if num_needed != len(columns):
        raise RecordError(
            f"{len(columns)} image placeholders, but its {len(merged)} images are {num_needed} tokens: "
            "each image needs one placeholder per visual token."
        )
    start = 0
    for grid in merged:
        place = columns[start : start + grid[0] * grid[1] * grid[2]]
        offsets_3T[:, place] = np.indices(grid).reshape(3, -1)
        advance_T[place] = 0
        advance_T[place[-1]] = max(grid[1:])
        start += len(place)
    starts_T = np.cumsum(advance_T) - advance_T
    return torch.from_numpy(starts_T + offsets_3T)


# -- images -----------------------------------------------------------------------------------------------------------


class ImageFeatureCache:
    """Passes each distinct image through the vision tower once and keeps the result until `clear()`.

    Where the tower learns and gradients are on, nothing is kept: the distinct images of the call are encoded together,
    with gradient. The least recently used images go when more than `max_cached_tokens` visual tokens are held. After
    the tower's weights changed, `clear()` is the caller's to call.
    """

    def __init__(
        self, model: Any, preprocessor: ImagePreprocessor, store: ImageStore, *, max_cached_tokens: int = 131072
    ) -> None:
        config = base_model(model).config.vision_config
        expected = (config.patch_size, config.temporal_patch_size, config.spatial_merge_size)
        given = (preprocessor.patch_size, preprocessor.temporal_patch_size, preprocessor.merge_size)
        if expected != given:
            raise CheckpointError(
                f"preprocessor_config.json has (patch, temporal patch, merge) = {given}, config.json {expected}: "
                "they are not of one model."
            )
        self.preprocessor = preprocessor
        self.num_encoded = 0
        """Images passed through the vision tower so far."""
        self._model = model
        self._store = store
        self._max_cached_tokens = max_cached_tokens
        self._num_cached_tokens = 0
        self._cached: OrderedDict[str, Tensor] = OrderedDict()

    def clear(self) -> None:
        """Forget all features."""
        self._cached.clear()
        self._num_cached_tokens = 0

    def gather(self, images: Sequence[ImageRef]) -> Tensor:
        """Features [1 + D, num_visual_tokens, hidden] of one or more images in order, repeats included.

        Index 0 is what replaces the placeholders, 1..D are the D deepstack levels.
        """
        distinct = {ref.sha256: ref for ref in images}
        if torch.is_grad_enabled() and any(p.requires_grad for p in base_model(self._model).model.visual.parameters()):
            features = dict(zip(distinct, self._encode(list(distinct.values())), strict=True))
            return torch.cat([features[ref.sha256] for ref in images], dim=1)
        with torch.no_grad():
            self._encode_missing(distinct)
            gathered = torch.cat([self._cached[ref.sha256] for ref in images], dim=1)
        self._evict(distinct)
        return gathered

    def _encode_missing(self, distinct: dict[str, ImageRef]) -> None:
        missing = [ref for sha256, ref in distinct.items() if sha256 not in self._cached]
        while missing:
            num_patches = np.cumsum([int(np.prod(self.preprocessor.grid_thw(ref))) for ref in missing])
            num_images = max(1, int(np.searchsorted(num_patches, PATCHES_PER_ENCODING, side="right")))
            for ref, features in zip(missing[:num_images], self._encode(missing[:num_images]), strict=True):
                # A copy of its own, so that evicting one image frees its memory.
                self._cached[ref.sha256] = features.clone()
                self._num_cached_tokens += features.shape[1]
            missing = missing[num_images:]

    def _evict(self, in_use: dict[str, ImageRef]) -> None:
        for sha256 in in_use:
            self._cached.move_to_end(sha256)
        while self._num_cached_tokens > self._max_cached_tokens:
            _, features = self._cached.popitem(last=False)
            self._num_cached_tokens -= features.shape[1]

    def _encode(self, images: list[ImageRef]) -> tuple[Tensor, ...]:
        model = base_model(self._model)
        pixels = torch.cat([self.preprocessor.pixel_values(ref, self._store) for ref in images])
        grids = torch.tensor([self.preprocessor.grid_thw(ref) for ref in images])
        output = model.get_image_features(pixels.to(model.device), grids.to(model.device), return_dict=True)
        # transformers before 5.20 splits only the first of the two by image.
        levels = [torch.cat(list(level)) if not isinstance(level, Tensor) else level for level in _levels(output)]
        self.num_encoded += len(images)
        return torch.stack(levels).split([self.preprocessor.num_tokens(ref) for ref in images], dim=1)


def _levels(output: Any) -> list[Any]:
    return [output.pooler_output, *(output.deepstack_features or ())]


# -- dialogues --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueBatch:
    """Dialogues padded on the right, on the CPU."""

    token_ids_BT: Tensor
    positions_3BT: Tensor
    lengths_B: Tensor
    next_positions_B: Tensor
    """M-RoPE position of the text token that would follow each dialogue."""
    images: tuple[ImageRef, ...]
    """All images, row after row."""


def collate_dialogues(
    model: Any,
    sequences: Sequence[Sequence[int]],
    images: Sequence[Sequence[ImageRef]],
    *,
    preprocessor: ImagePreprocessor,
) -> DialogueBatch:
    """Pad dialogues into a batch. Raises `RecordError` naming the row whose images and placeholders disagree."""
    image_token_id = base_model(model).config.image_token_id
    num_columns = max(len(sequence) for sequence in sequences)
    # Nothing looks at the padding, but it must not be taken for an image.
    token_ids_BT = torch.full((len(sequences), num_columns), 0 if image_token_id != 0 else 1)
    positions_3BT = torch.zeros(3, len(sequences), num_columns, dtype=torch.long)
    for row, (sequence, refs) in enumerate(zip(sequences, images, strict=True)):
        try:
            positions_3T = mrope_positions(
                sequence,
                [preprocessor.grid_thw(ref) for ref in refs],
                image_token_id=image_token_id,
                merge_size=preprocessor.merge_size,
            )
        except RecordError as error:
            raise RecordError(f"row {row} of the batch has {error}") from None
        token_ids_BT[row, : len(sequence)] = torch.tensor(sequence)
        positions_3BT[:, row, : len(sequence)] = positions_3T
    return DialogueBatch(
        token_ids_BT=token_ids_BT,
        positions_3BT=positions_3BT,
        lengths_B=torch.tensor([len(sequence) for sequence in sequences]),
        next_positions_B=positions_3BT.amax(dim=(0, 2)) + 1,
        images=tuple(ref for refs in images for ref in refs),
    )


def hidden_states(
    model: Any, batch: DialogueBatch, *, features: ImageFeatureCache, past_key_values: Any = None
) -> Tensor:
    """Last hidden state of every token [B, T, H]; fills `past_key_values` (an empty cache) when one is given.

    Rows are padded on the right and attention is causal, so no real token sees padding and no mask is needed.
    """
    core = base_model(model).model
    device = core.language_model.embed_tokens.weight.device
    token_ids_BT = batch.token_ids_BT.to(device)
    embeddings_BTH = core.language_model.embed_tokens(token_ids_BT)
    visual: dict[str, Any] = {}
    if batch.images:
        is_image_BT = token_ids_BT == core.config.image_token_id
        levels = features.gather(batch.images).to(device, embeddings_BTH.dtype)
        embeddings_BTH = embeddings_BTH.masked_scatter(is_image_BT[..., None], levels[0])
        visual = {"visual_pos_masks": is_image_BT, "deepstack_visual_embeds": list(levels[1:])}
    return core.language_model(
        inputs_embeds=embeddings_BTH,
        position_ids=batch.positions_3BT.to(device),
        past_key_values=past_key_values,
        use_cache=past_key_values is not None,
        **visual,
    ).last_hidden_state


def policy_logits(model: Any, hidden_NH: Tensor, *, temperature: float | Tensor, banned_ids: Tensor) -> Tensor:
    """Logits of the policy, float32 [N, V]: banned ids at minus infinity, then divided by the temperature.

    `temperature` is a number or [N, 1]; 0 means the greedy policy and leaves the logits as they are.
    """
    logits_NV = base_model(model).lm_head(hidden_NH).float().index_fill_(-1, banned_ids, -torch.inf)
    if isinstance(temperature, Tensor):
        return logits_NV / torch.where(temperature == 0, 1.0, temperature)
    return logits_NV if temperature in (0.0, 1.0) else logits_NV / temperature


# -- log-probabilities ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Per-token quantities in nats, float32 [B, T]; 0.0 where the mask is off."""

    logprobs_BT: Tensor
    entropy_BT: Tensor
    """Entropy of the policy before each token, without gradient."""
    divergence_BT: Tensor | None = None
    """`Reference.divergence` of the policy and the reference before each token; None without a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Another model at the same tokens, for comparing next-token distributions over the whole vocabulary."""

    model: Any
    """Only its language head is used."""
    hidden_NH: Tensor
    """Its `scored_states`, without gradient."""
    divergence: Callable[[Tensor, Tensor], Tensor]
    """Log-probabilities [N, V] of the policy and of this model, in nats -> [N]."""


def token_logprobs(
    model: Any,
    sequences: Sequence[Sequence[int]],
    images: Sequence[Sequence[ImageRef]],
    mask_BT: Tensor,
    *,
    features: ImageFeatureCache,
    temperature: float = 1.0,
    banned_token_ids: Sequence[int] = (),
    reference: Reference | None = None,
) -> TokenLogprobs:
    """Log-probability of each masked token given the tokens before it, under the engine's policy.

    `mask_BT` is boolean, [B, T] with T the longest sequence. The language head runs at masked positions only, in chunks
    that are recomputed in the backward pass, so logits of a whole batch are never held. With `reference` its head runs
    in the same chunks, at the same temperature and with the same banned ids. Works under autocast and with peft models.
    Raises `RecordError` naming the row when a mask or the placeholders do not fit.
    """
    batch = collate_dialogues(model, sequences, images, preprocessor=features.preprocessor)
    banned_ids = torch.tensor(banned_token_ids, dtype=torch.long)
    _check_mask(mask_BT.cpu(), batch, banned_ids)
    hidden_NH = _states_before(model, batch, mask_BT, features=features)
    device = hidden_NH.device
    rows_N, columns_N = mask_BT.to(device).nonzero(as_tuple=True)
    targets_N = batch.token_ids_BT.to(device)[rows_N, columns_N]
    scores = _score(
        model, hidden_NH, targets_N, temperature=temperature, banned_ids=banned_ids.to(device), reference=reference
    )
    zeros_BT = torch.zeros(mask_BT.shape, device=device)
    logprobs_BT, entropy_BT, *rest = (zeros_BT.index_put((rows_N, columns_N), score_N) for score_N in scores)
    return TokenLogprobs(logprobs_BT=logprobs_BT, entropy_BT=entropy_BT, divergence_BT=rest[0] if rest else None)


def scored_states(
    model: Any,
    sequences: Sequence[Sequence[int]],
    images: Sequence[Sequence[ImageRef]],
    mask_BT: Tensor,
    *,
    features: ImageFeatureCache,
) -> Tensor:
    """Hidden state [N, H] from which each masked token is predicted, row after row: `Reference.hidden_NH`."""
    batch = collate_dialogues(model, sequences, images, preprocessor=features.preprocessor)
    return _states_before(model, batch, mask_BT, features=features)


def _states_before(model: Any, batch: DialogueBatch, mask_BT: Tensor, *, features: ImageFeatureCache) -> Tensor:
    hidden_BTH = hidden_states(model, batch, features=features)
    rows_N, columns_N = mask_BT.to(hidden_BTH.device).nonzero(as_tuple=True)
    return hidden_BTH[rows_N, columns_N - 1]


def _check_mask(mask_BT: Tensor, batch: DialogueBatch, banned_ids: Tensor) -> None:
    if mask_BT.shape != batch.token_ids_BT.shape:
        raise RecordError(f"mask of shape {tuple(mask_BT.shape)} for tokens of {tuple(batch.token_ids_BT.shape)}")
    columns_T = torch.arange(mask_BT.shape[1])
    is_bad_BT = mask_BT & ((columns_T == 0) | (columns_T >= batch.lengths_B[:, None]))
    if is_bad_BT.any():
        row = int(is_bad_BT.any(dim=1).nonzero()[0])
        raise RecordError(f"row {row} of the batch: the mask covers its first token or its padding")
    is_banned_BT = mask_BT & torch.isin(batch.token_ids_BT, banned_ids)
    if is_banned_BT.any():
        row, column = is_banned_BT.nonzero()[0].tolist()
        raise RecordError(
            f"row {row} of the batch: token {column} has id {int(batch.token_ids_BT[row, column])}, which the policy "
            "may never sample, so it has no log-probability"
        )


def _score(
    model: Any,
    hidden_NH: Tensor,
    targets_N: Tensor,
    *,
    temperature: float,
    banned_ids: Tensor,
    reference: Reference | None,
) -> list[Tensor]:
    """Log-probability of each target, entropy (detached) and, with a reference, the divergence from it; [N] each."""

    def logprobs_of(head: Any, states_CH: Tensor) -> Tensor:
        return policy_logits(head, states_CH, temperature=temperature, banned_ids=banned_ids).log_softmax(dim=-1)

    def score_chunk(hidden_CH: Tensor, targets_C: Tensor, *reference_CH: Tensor) -> tuple[Tensor, ...]:
        logprobs_CV = logprobs_of(model, hidden_CH)
        entropy_C = torch.special.entr(logprobs_CV.detach().exp()).sum(dim=-1)
        scores = (logprobs_CV.gather(-1, targets_C[:, None])[:, 0], entropy_C)
        if reference is None:
            return scores
        with torch.no_grad():
            reference_CV = logprobs_of(reference.model, *reference_CH)
        return (*scores, reference.divergence(logprobs_CV, reference_CV))

    inputs = [hidden_NH, targets_N, *([] if reference is None else [reference.hidden_NH])]
    chunk_size = max(1, LOGITS_PER_CHUNK // base_model(model).config.text_config.vocab_size)
    if len(targets_N) <= chunk_size:
        return list(score_chunk(*inputs))
    chunks = zip(*(values.split(chunk_size) for values in inputs), strict=True)
    if torch.is_grad_enabled():
        scored = [checkpoint(score_chunk, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        scored = [score_chunk(*chunk) for chunk in chunks]
    return [torch.cat(parts) for parts in zip(*scored, strict=True)]

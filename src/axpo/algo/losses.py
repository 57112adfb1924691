"""Losses per token and the weight of a token (arXiv:2605.28774, Eq. 5 and Eq. 6).

The loss of a mini-batch is `sum_B weights_B * masked_sum(per_token_BT, mask_BT)` with `weights_B` from `row_weights`
over all of its rows: any split of the rows into micro-batches sums to the same loss and gradient.

Every per-token loss is to be minimized and has the shape of its inputs. None of them knows the mask: pass inputs that
may hold inf or NaN where nothing learns through `zero_masked` first. Shapes are checked. Values are not, because masked
positions may hold anything: `Rollout` and `TrainingRow` refuse log-probs that are not finite or exceed 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from axpo.algo.options import Aggregation, check_choice
from axpo.errors import ConfigError, UserError
from axpo.types import RowRole

MAX_LOG_RATIO = 20.0
"""Nats. Beyond it a ratio of probabilities is held: exp must not overflow and then turn a zero gradient into NaN."""

MAX_KL_PENALTY = 10.0
"""Nats. The most that one token adds to the estimated divergence."""


def clipped_surrogate_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.4
) -> Tensor:
    """PPO's clipped surrogate with separate bounds, negated: -min(rho A, clip(rho, 1 - low, 1 + high) A).

    Eq. 6 of arXiv:2605.28774 without its KL term (`kl_penalty`). Deviation: rho is held beyond exp(+-20).

    Args:
        logprobs: Log-probabilities under the policy that learns, in nats; carries the gradient.
        old_logprobs: Same shape, under the policy that sampled; a constant.
        advantages: Same shape.
        clip_low: How far rho may fall below 1.
        clip_high: How far rho may rise above 1.

    Returns:
        Loss per token.

    Raises:
        UserError: Shapes differ.
        ConfigError: A bound is negative.

    >>> loss = clipped_surrogate_loss(torch.log(torch.tensor([2.0, 2.0])), torch.zeros(2), torch.tensor([1.0, -1.0]))
    >>> [round(value, 4) for value in loss.tolist()]
    [-1.4, 2.0]
    """
    ratio = _policy_ratio(logprobs, old_logprobs, advantages)
    clipped = _clip_ratio(ratio, clip_low, clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float = 0.2, clip_high: float = 0.4
) -> Tensor:
    """REINFORCE with a clipped importance weight: -sg(clip(rho, 1 - low, 1 + high)) A log pi.

    CISPO of arXiv:2506.13585, a baseline in arXiv:2605.28774, which does not give its bounds. No token's gradient is
    cut off. Deviation: rho is held beyond exp(+-20).

    Args:
        logprobs: Log-probabilities under the policy that learns, in nats; carries the gradient.
        old_logprobs: Same shape, under the policy that sampled; a constant.
        advantages: Same shape.
        clip_low: How far rho may fall below 1.
        clip_high: How far rho may rise above 1.

    Returns:
        Loss per token; its gradient counts, its value does not measure progress.

    Raises:
        UserError: Shapes differ.
        ConfigError: A bound is negative.

    >>> logprobs = torch.log(torch.tensor([0.5])).requires_grad_()
    >>> cispo_loss(logprobs, torch.log(torch.tensor([0.25])), torch.tensor([1.0])).sum().backward()
    >>> [round(value, 4) for value in logprobs.grad.tolist()]
    [-1.4]
    """
    ratio = _policy_ratio(logprobs, old_logprobs, advantages).detach()
    return -_clip_ratio(ratio, clip_low, clip_high) * advantages * logprobs


def importance_weights(old_logprobs: Tensor, behavior_logprobs: Tensor, *, cap: float) -> Tensor:
    """Truncated importance sampling: min(pi_old / mu, cap), to be multiplied with the loss of each token.

    For engines whose probabilities mu are not exactly those of the trainer's policy pi_old (another precision, other
    kernels): the expectation over tokens that mu sampled becomes one over pi_old, up to the cap. Not part of
    arXiv:2605.28774.

    Args:
        old_logprobs: Log-probabilities under the trainer's policy before the update, in nats.
        behavior_logprobs: Same shape, as the engine returned them.
        cap: The largest weight; it bounds the variance.

    Returns:
        Weights, constants without a gradient.

    Raises:
        UserError: Shapes differ.
        ConfigError: `cap` is not above 0.

    >>> old, behavior = torch.log(torch.tensor([0.3, 0.8])), torch.log(torch.tensor([0.6, 0.1]))
    >>> [round(weight, 4) for weight in importance_weights(old, behavior, cap=2.0).tolist()]
    [0.5, 2.0]
    """
    if not cap > 0:
        raise ConfigError(f"cap: expected a number > 0, got {cap}")
    _check_shapes(old_logprobs=old_logprobs, behavior_logprobs=behavior_logprobs)
    log_weights = (old_logprobs - behavior_logprobs).detach()
    return log_weights.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=cap)


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from each sampled token alone, in nats: k3 = exp(d) - 1 - d.

    The KL term of Eq. 6 of arXiv:2605.28774, which does not name an estimator; d = log ref - log pi of the token.
    Never negative, and unbiased as far as it is not held. On policy its gradient is in expectation that of
    KL(reference || policy). Deviation: d is held within +-20 nats and the value at most at 10, as in verl.

    A held token has gradient zero: it no longer pulls the policy back. The value 10 is reached where the policy is 2.6
    nats less likely than the reference or 11 nats more likely. Without the bound one such token can outweigh a whole
    batch, because its gradient grows as exp(d). With it, the most distant tokens count for nothing. `exact_kl` needs no
    bound: take it for a policy that may move far.

    Args:
        logprobs: Log-probabilities under the policy that learns, in nats; carries the gradient.
        reference_logprobs: Same shape, under the fixed reference; a constant.

    Returns:
        Penalty per token, 0 to 10.

    Raises:
        UserError: Shapes differ.

    >>> round(kl_penalty(torch.log(torch.tensor([0.5])), torch.log(torch.tensor([0.25]))).item(), 4)
    0.1931
    """
    _check_shapes(logprobs=logprobs, reference_logprobs=reference_logprobs)
    log_ratio = (reference_logprobs.detach() - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(log_ratio) - log_ratio).clamp(max=MAX_KL_PENALTY)


def exact_kl(logprobs_V: Tensor, reference_logprobs_V: Tensor) -> Tensor:
    """KL(policy || reference) of the next token over the whole vocabulary, in nats: sum_v p_v (log p_v - log q_v).

    The KL term of Eq. 6 of arXiv:2605.28774 without an estimate. Deviation: none. It does not depend on which token
    was sampled, is bounded by what the two distributions are, and its gradient is that of the divergence at this
    position.

    Args:
        logprobs_V: [..., V] log-probabilities of every token under the policy that learns; carries the gradient. Minus
            infinity, of a token that may never be sampled, adds nothing.
        reference_logprobs_V: Same shape, under the fixed reference; a constant.

    Returns:
        [...]

    Raises:
        UserError: Shapes differ.

    >>> policy_V, reference_V = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.75, 0.0])
    >>> round(exact_kl(policy_V.log(), reference_V.log()).item(), 4)
    0.1438
    """
    _check_shapes(logprobs=logprobs_V, reference_logprobs=reference_logprobs_V)
    # Where both are minus infinity the difference is NaN; `where` keeps it out of the value and out of the gradient.
    log_ratio_V = torch.where(logprobs_V.isneginf(), 0.0, logprobs_V - reference_logprobs_V.detach())
    return (logprobs_V.exp() * log_ratio_V).sum(dim=-1)


def cross_entropy_loss(logprobs: Tensor) -> Tensor:
    """Supervised fine-tuning: -log pi of the demonstrated token, in nats.

    >>> round(cross_entropy_loss(torch.log(torch.tensor([0.5]))).item(), 4)
    0.6931
    """
    return -logprobs


def zero_masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The values where the mask is True and 0 elsewhere, in the backward pass too, whatever stands there.

    A product with the mask would not do: 0 * NaN is NaN.

    Raises:
        UserError: Shapes differ or the mask is not boolean.

    >>> zero_masked(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).tolist()
    [1.0, 0.0]
    """
    _check_shapes(values=values_BT, mask=mask_BT)
    if mask_BT.dtype != torch.bool:
        raise UserError(f"mask: expected a boolean tensor, got {mask_BT.dtype}")
    return torch.where(mask_BT, values_BT, torch.zeros_like(values_BT))


def masked_sum(per_token_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of each row over the tokens that learn.

    Args:
        per_token_BT: [B, T] loss per token.
        mask_BT: [B, T] boolean, True where the token learns.

    Returns:
        [B]. What stands at masked positions reaches neither the sum nor the gradient of `per_token_BT`.

    Raises:
        UserError: Shapes differ or the mask is not boolean.

    >>> per_token_BT = torch.tensor([[1.0, 2.0], [4.0, float("inf")]])
    >>> masked_sum(per_token_BT, torch.tensor([[True, True], [True, False]])).tolist()
    [3.0, 4.0]
    """
    return zero_masked(per_token_BT, mask_BT).sum(dim=-1)


def row_weights(
    num_learning_tokens_B: Sequence[int] | Tensor,
    roles: Sequence[RowRole],
    group_sizes_B: Sequence[int] | Tensor,
    *,
    aggregation: Aggregation,
    num_questions: float,
) -> Tensor:
    """How much one learning token of each row counts, over all rows of a mini-batch.

    arXiv:2605.28774 writes a mean over tokens in Eq. 6 and a sum over segments in Eq. 5, and leaves their mixture with
    ordinary rollouts open:

    - `token_mean`: every learning token of the mini-batch alike, 1 / (all learning tokens);
    - `sequence_mean`: every row alike, 1 / (rows * tokens of the row);
    - `equation5`: Eq. 5 read literally. A prefix and each continuation weigh as much as a whole group of ordinary
      rollouts: 1 / (questions * tokens), against 1 / (questions * siblings * tokens). A demonstration is an
      ordinary rollout without siblings.

    Args:
        num_learning_tokens_B: [B] tokens with a loss in each row; a row with none weighs 0 and is not counted.
        roles: [B]
        group_sizes_B: [B] siblings behind each row's baseline; read for ordinary rollouts by `equation5`.
        aggregation: See above.
        num_questions: Questions (or demonstrations) in the mini-batch, a fraction where one is split; read by
            `equation5`.

    Returns:
        [B] float64.

    Raises:
        UserError: Lengths differ, or a count is out of range.
        ConfigError: Unknown `aggregation`.

    >>> roles = [RowRole.ROLLOUT, RowRole.PREFIX]
    >>> row_weights([4, 2], roles, [8, 8], aggregation="equation5", num_questions=1).tolist()
    [0.03125, 0.5]
    """
    check_choice("aggregation", aggregation, Aggregation)
    lengths_B = torch.as_tensor(num_learning_tokens_B, dtype=torch.float64)
    siblings_B = torch.as_tensor(group_sizes_B, dtype=torch.float64, device=lengths_B.device)
    if not len(lengths_B) == len(siblings_B) == len(roles):
        raise UserError(f"row_weights: got {len(lengths_B)} lengths, {len(roles)} roles, {len(siblings_B)} group sizes")
    if not (bool((lengths_B >= 0).all()) and bool((siblings_B >= 1).all()) and num_questions > 0):
        raise UserError("row_weights: lengths must be >= 0, group sizes >= 1 and num_questions > 0")
    learns_B = lengths_B > 0
    if aggregation == "token_mean":
        shares_B = torch.ones_like(lengths_B) * lengths_B.sum()
    elif aggregation == "sequence_mean":
        shares_B = lengths_B * learns_B.sum()
    else:
        is_branch = [role in (RowRole.PREFIX, RowRole.CONTINUATION) for role in roles]
        is_branch_B = torch.tensor(is_branch, dtype=torch.bool, device=lengths_B.device)
        shares_B = lengths_B * num_questions * torch.where(is_branch_B, 1.0, siblings_B)
    return torch.where(learns_B, 1.0 / shares_B.clamp(min=1.0), 0.0)


def _policy_ratio(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    _check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    return (logprobs - old_logprobs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clip_ratio(ratio: Tensor, clip_low: float, clip_high: float) -> Tensor:
    if not (clip_low >= 0 and clip_high >= 0):
        raise ConfigError(f"clip bounds: expected numbers >= 0, got clip_low={clip_low}, clip_high={clip_high}")
    return ratio.clamp(1.0 - clip_low, 1.0 + clip_high)


def _check_shapes(**tensors: Tensor) -> None:
    # Broadcasting one number per row over its tokens is the mistake that would go unnoticed.
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise UserError(f"shapes must be equal, got {shapes}; expand per-row values to their tokens")

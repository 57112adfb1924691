"""Group-relative advantages (arXiv:2605.28774, Eq. 2 and Eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from axpo.algo.options import AdvantageStd, check_choice
from axpo.errors import ConfigError, UserError


def group_relative_advantages(
    rewards_G: Sequence[float] | Tensor, *, std: AdvantageStd = "sample", eps: float = 1e-6
) -> Tensor:
    """How much better each member of a group did than the group: (r - mean r) / (std r + eps).

    The GRPO advantage over N siblings and, over the K continuations of one prefix, Eq. 2 of arXiv:2605.28774.
    Deviation: the paper has no `eps` and names no std convention. Equal rewards, a group of one among them, give
    exactly 0.0.

    Args:
        rewards_G: [G] rewards, any real numbers.
        std: `sample` divides by G - 1, `population` by G, `none` does not scale (and reads no `eps`).
        eps: Added to the standard deviation.

    Returns:
        [G] float64, summing to zero up to rounding.

    Raises:
        UserError: The group is empty or not one-dimensional, or a reward is not finite.
        ConfigError: Unknown `std`, negative `eps`.

    >>> group_relative_advantages([1, 0, 0, 0], eps=0.0).tolist()
    [1.5, -0.5, -0.5, -0.5]
    """
    check_choice("std", std, AdvantageStd)
    if not (math.isfinite(eps) and eps >= 0):
        raise ConfigError(f"eps: expected a number >= 0, got {eps}")
    rewards_G = _check_rewards(rewards_G)
    # The mean of equal numbers is not always that number in floating point; dividing its error by eps would be noise.
    if bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    centered_G = rewards_G - rewards_G.mean()
    if std == "none":
        return centered_G
    return centered_G / (centered_G.std(correction=1 if std == "sample" else 0) + eps)


def prefix_advantage(
    rewards_G: Sequence[float],
    *,
    source: int,
    is_recovered: bool,
    std: AdvantageStd = "sample",
    eps: float = 1e-6,
) -> float:
    """Credit of a resampled thinking prefix: its advantage among the siblings had its reward been `is_recovered`.

    Eq. 3 and Eq. 4 of arXiv:2605.28774. Only the source's own entry is replaced: several sources of one group do not
    see each other's recovery. Deviation: `std` and `eps` as in `group_relative_advantages`.

    Args:
        rewards_G: [G] original rewards of the siblings.
        source: Index of the resampled sibling.
        is_recovered: At least one continuation is correct (Eq. 3).
        std: See `group_relative_advantages`.
        eps: See `group_relative_advantages`.

    Returns:
        The advantage; 0.0 when recovery makes all rewards equal.

    Raises:
        UserError: `source` is not a member, or what `group_relative_advantages` refuses.
        ConfigError: See `group_relative_advantages`.

    >>> round(prefix_advantage([0, 0, 0, 0, 0, 1, 1, 1], source=0, is_recovered=True, eps=0.0), 4)
    0.9354
    """
    if not 0 <= source < len(rewards_G):
        raise UserError(f"source: expected an index into {len(rewards_G)} siblings, got {source}")
    replaced_G = _check_rewards(rewards_G).clone()
    replaced_G[source] = float(is_recovered)
    return float(group_relative_advantages(replaced_G, std=std, eps=eps)[source])


def _check_rewards(rewards_G: Sequence[float] | Tensor) -> Tensor:
    rewards_G = torch.as_tensor(rewards_G, dtype=torch.float64).detach()
    if rewards_G.ndim != 1 or len(rewards_G) == 0:
        raise UserError(f"rewards: expected one reward per group member, got shape {tuple(rewards_G.shape)}")
    if not bool(rewards_G.isfinite().all()):
        raise UserError(f"rewards: every reward must be finite, got {rewards_G.tolist()}; check the reward function")
    return rewards_G

"""The algorithm alone: records and tensors in, records and tensors out. Samples nothing, loads no model.

One step, in the order in which a training loop calls it:

    plan_resampling          rollout groups -> which prefixes to continue
    assign_credit            groups and continuations -> training rows with a mask and an advantage per token
    clipped_surrogate_loss   log-probs and advantages -> loss per token (or `cispo_loss`), plus `kl_penalty`
                             or `exact_kl`
    row_weights, masked_sum  rows -> one number, the same for any split into micro-batches
"""

from axpo.algo.advantages import group_relative_advantages, prefix_advantage
from axpo.algo.credit import assign_credit
from axpo.algo.losses import (
    cispo_loss,
    clipped_surrogate_loss,
    cross_entropy_loss,
    exact_kl,
    importance_weights,
    kl_penalty,
    masked_sum,
    row_weights,
    zero_masked,
)
from axpo.algo.prefixes import cut_point, is_triggered, thinking_prefixes, tool_call_confidence
from axpo.algo.resampling import plan_resampling, resample_budget
from axpo.algo.statistics import (
    all_wrong_rate,
    post_resampling_all_wrong_rate,
    recovery_probability,
    restore_rate,
    tool_use_rate,
)

__all__ = [
    "all_wrong_rate",
    "assign_credit",
    "cispo_loss",
    "clipped_surrogate_loss",
    "cross_entropy_loss",
    "cut_point",
    "exact_kl",
    "group_relative_advantages",
    "importance_weights",
    "is_triggered",
    "kl_penalty",
    "masked_sum",
    "plan_resampling",
    "post_resampling_all_wrong_rate",
    "prefix_advantage",
    "recovery_probability",
    "resample_budget",
    "restore_rate",
    "row_weights",
    "thinking_prefixes",
    "tool_call_confidence",
    "tool_use_rate",
    "zero_masked",
]

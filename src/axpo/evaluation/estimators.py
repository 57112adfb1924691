"""Point estimates over repeated samples of a question."""

from __future__ import annotations

import math
from collections.abc import Sequence

from axpo.errors import DataError


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of `k` samples drawn without replacement from `num_samples` is correct.

    `1 - C(n - c, k) / C(n, k)`, the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374), Eq. 1. Deviation:
    none; the binomials are exact integers instead of a running product.

    Args:
        num_samples: n, samples of the question.
        num_correct: c, correct ones among them, 0..n.
        k: draws, 1..n.

    Returns:
        A probability in 0..1.

    Raises:
        DataError: when the three numbers do not fit together.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 4)
    (0.25, 1.0)
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise DataError(f"pass_at_k: need 0 <= c <= n and 1 <= k <= n, got n={num_samples}, c={num_correct}, k={k}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def average(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing.

    >>> average([0.0, 1.0, 0.5])
    0.5
    """
    return math.fsum(values) / len(values) if values else None

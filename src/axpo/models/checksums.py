"""An exact fingerprint of a model's weights, the same wherever and in whatever pieces they are held."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MODULUS = 1 << 64
_FACTOR = 0x9E3779B97F4A7C15 - MODULUS  # 2**64 / golden ratio, odd, as the int64 of the same bits
_LOW_HALF = 0xFFFFFFFF
_PIECE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Entries hashed at once: what fits a cache, or keeps a GPU busy."""


def weights_checksum(weights: Iterable[Tensor], *, dtype: torch.dtype | None = None) -> int:
    """Sum over all entries of a 64-bit hash of the entry's float32 value, modulo 2**64.

    One bit of one entry changes it; two different sets of weights agree by chance once in 2**64. The order of entries
    does not count, so fused, split and sharded tensors sum to what the whole ones do; nor do zeros, hence padding.
    Count a tied or replicated tensor once.

    `dtype`: round to the precision of the other side first; None: as the tensors are.

    >>> whole = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> weights_checksum([whole]) == weights_checksum([whole[1], whole[0]])
    True
    >>> weights_checksum([whole]) == weights_checksum([whole * (1 + 1e-7)])
    False
    """
    return sum(_checksum(tensor.detach(), dtype or tensor.dtype) for tensor in weights) % MODULUS


def _checksum(tensor: Tensor, dtype: torch.dtype) -> int:
    total = 0
    for piece in tensor.flatten().split(_PIECE.get(tensor.device.type, 1 << 20)):
        # int64 products wrap around, as they should; in place, because the int64 copies are what takes memory
        hash_N = piece.to(dtype).float().view(torch.int32).to(torch.int64)
        hash_N.mul_(_FACTOR)
        hash_N.bitwise_xor_((hash_N >> 32).bitwise_and_(_LOW_HALF))
        hash_N.mul_(_FACTOR)
        total += int(hash_N.sum())
    return total

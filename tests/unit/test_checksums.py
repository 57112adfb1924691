"""The fingerprint of weights: exact, and the same for the same numbers however they are held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axpo.models.checksums import MODULUS, weights_checksum


def by_definition(values: list[float]) -> int:
    """The same sum in Python's unbounded integers."""
    total = 0
    for bits in torch.tensor(values, dtype=torch.float32).view(torch.int32).tolist():
        mixed = bits * 0x9E3779B97F4A7C15 % MODULUS
        total += (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15
    return total % MODULUS


@settings(deadline=None)  # the first example loads torch
@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
def test_it_is_the_sum_of_the_entries_hashes(values: list[float]) -> None:
    assert weights_checksum([torch.tensor(values)]) == by_definition(values)


def test_pieces_shards_transposed_and_padded_tensors_sum_to_the_whole() -> None:
    whole = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0))  # several pieces
    expected = weights_checksum([whole])
    padded = torch.cat([whole, torch.zeros(7, 1000)])
    assert weights_checksum([whole.T, torch.zeros(0)]) == weights_checksum([padded]) == expected
    assert sum(weights_checksum([shard]) for shard in whole.tensor_split(7, dim=1)) % MODULUS == expected


@pytest.mark.parametrize("index", [0, 65535, 65536, 199999])
def test_the_last_bit_of_any_one_entry_shows(index: int) -> None:
    weights = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    expected = weights_checksum([weights])
    weights[index] = torch.nextafter(weights[index], torch.tensor(torch.inf))
    assert weights_checksum([weights]) != expected


def test_changes_that_cancel_in_a_plain_sum_show() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    bits = weights.view(torch.int32)
    changed = (bits + torch.tensor([1, -1, 0], dtype=torch.int32)).view(torch.float32)
    assert weights_checksum([changed]) != weights_checksum([weights])


def test_the_precision_of_the_other_side_is_what_counts() -> None:
    weights = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    rounded = weights.bfloat16()
    assert weights_checksum([weights], dtype=torch.bfloat16) == weights_checksum([rounded])
    assert weights_checksum([weights]) != weights_checksum([rounded])

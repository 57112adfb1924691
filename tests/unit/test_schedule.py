import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axpo.trainer.schedule import learning_rate


def rates(schedule: str, *, num_steps: int = 6, warmup_steps: int = 2) -> list[float]:
    return [
        learning_rate(step, num_steps=num_steps, peak=8.0, schedule=schedule, warmup_steps=warmup_steps)
        for step in range(1, num_steps + 1)
    ]


def test_constant_stays_after_warm_up() -> None:
    assert rates("constant") == [4.0, 8.0, 8.0, 8.0, 8.0, 8.0]


def test_linear_falls_by_equal_parts() -> None:
    # four steps after warm-up: 4/4, 3/4, 2/4, 1/4 of 8
    assert rates("linear") == [4.0, 8.0, 8.0, 6.0, 4.0, 2.0]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    # 8 * (1 + cos(pi * k / 4)) / 2 for k = 0..3; cos(pi / 4) = sqrt(1/2)
    half = math.sqrt(0.5)
    assert rates("cosine") == pytest.approx([4.0, 8.0, 8.0, 4 * (1 + half), 4.0, 4 * (1 - half)])


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(1, 50), st.integers(0, 60), st.floats(1e-9, 1.0))
def test_every_step_learns_and_none_above_the_peak(
    schedule: str, num_steps: int, warmup_steps: int, peak: float
) -> None:
    for step in range(1, num_steps + 1):
        rate = learning_rate(step, num_steps=num_steps, peak=peak, schedule=schedule, warmup_steps=warmup_steps)
        assert 0 < rate <= peak


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        learning_rate(0, num_steps=3, peak=1.0)

"""What a person sees of a step while it runs."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from axpo.cli.console import RunConsole

ROLLOUT: Any = None
"""The bar looks at none of it."""


def last_bar(totals: Sequence[int], *, rollouts_per_step: int = 128) -> str:
    """How the bar stands at the end of a step that announced `totals` and sampled each in full."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with RunConsole(columns=(), num_steps=9, rollouts_per_step=rollouts_per_step, console=terminal) as console:
        console.on_start(3)
        num_done = 0
        for total in totals:
            console.on_total(total)
            for _ in range(total - num_done):
                console.on_rollout(ROLLOUT)
            num_done = total
    return re.findall(r"step 3 .*?(\d+/\s*\d+)", screen.getvalue())[-1]


@pytest.mark.parametrize(
    ("totals", "shown"),
    [
        ((128, 160), "160/160"),  # 32 continuations were planned
        ((128, 128), "128/128"),  # none
        ((20, 20), "20/20"),  # the file holds fewer questions than a step could take
    ],
)
def test_the_bar_ends_full(totals: Sequence[int], shown: str) -> None:
    assert last_bar(totals) == shown


def test_without_rollouts_or_a_terminal_there_is_no_bar() -> None:
    screen = io.StringIO()
    for console in (
        RunConsole(columns=(), num_steps=9, console=Console(file=screen, force_terminal=True)),
        RunConsole(columns=(), num_steps=9, rollouts_per_step=8, console=Console(file=screen)),
    ):
        with console:
            console.on_start(3)
            console.on_total(8)
            console.on_rollout(ROLLOUT)
    assert "step" not in screen.getvalue()

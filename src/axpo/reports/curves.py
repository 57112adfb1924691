"""Training curves as numbers: what the page draws, run by run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from axpo.reports.charts import Panel
from axpo.reports.definitions import define
from axpo.reports.runs import Arm, Run
from axpo.reports.tools import tool_panels

MAX_POINTS = 1000
"""Steps of a longer run are averaged in windows of equal length."""

SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Reward": (
        Panel(
            title="Reward",
            caption="Right answers among the training rollouts; continuations are not counted.",
            keys=("reward/mean",),
            is_fraction=True,
        ),
        Panel(
            title="Reward with and without a tool",
            caption="Solid: rollouts that call a tool. Dashed: rollouts that answer directly.",
            keys=("reward/tool", "reward/no_tool"),
            is_fraction=True,
        ),
        Panel(
            title="Groups without signal",
            caption="All siblings got one reward, so no advantage is left.",
            keys=("groups/zero_signal",),
            is_fraction=True,
        ),
    ),
    "Tools and the gap": (
        Panel(
            title="Tool use",
            caption="Rollouts that call a tool. When acting is starved this falls to zero, and zero is absorbing.",
            keys=("rollout/tool_use_rate",),
            is_fraction=True,
        ),
        Panel(
            title="Tool-using siblings all wrong",
            caption="No positive signal for any call. Dashed: after resampling.",
            keys=("rollout/all_wrong_tool", "rollout/all_wrong_tool_post"),
            is_fraction=True,
        ),
        Panel(
            title="Direct siblings all wrong",
            caption="The same for rollouts without a tool. The distance to the panel before is the gap.",
            keys=("rollout/all_wrong_no_tool",),
            is_fraction=True,
        ),
        Panel(
            title="Failed calls",
            caption="Of all calls that were answered.",
            keys=("tools/failure_rate",),
            is_fraction=True,
        ),
        Panel(
            title="Zoom box hits",
            caption="Zoom calls whose box contains what was asked for: better looking, not luckier guessing.",
            keys=("zoom/box_hit_rate",),
            is_fraction=True,
        ),
    ),
    "Resampling": (
        Panel(
            title="Restored by resampling",
            caption="Resampled questions in which at least one continuation was right. Dashed: of all triggered ones.",
            keys=("resample/restore_rate", "resample/restore_rate_all"),
            is_fraction=True,
        ),
        Panel(
            title="Continuations per step",
            caption="What resampling cost. Dashed: the budget.",
            keys=("resample/used", "resample/budget"),
        ),
        Panel(
            title="Triggered questions",
            caption="Questions whose tool-using siblings are all wrong.",
            keys=("resample/triggered",),
        ),
    ),
    "Lengths and ends": (
        Panel(title="Response length", caption="Tokens after the prompt, mean.", keys=("length/response_mean",)),
        Panel(
            title="Ended by themselves",
            caption="The rest was cut off by a limit on turns, tokens or time.",
            keys=("stop/answered",),
            is_fraction=True,
        ),
    ),
    "Update": (
        Panel(title="Loss", caption="Mean over the step's updates.", keys=("train/loss",)),
        Panel(title="KL", caption="Nats per token from the reference.", keys=("train/kl",)),
        Panel(title="Entropy", caption="Nats, of the policy at the trained tokens.", keys=("train/entropy",)),
        Panel(title="Gradient norm", caption="Before clipping.", keys=("train/grad_norm",)),
    ),
    "Engine and time": (
        Panel(
            title="Engine against trainer",
            caption="Mean |Δ log-prob| of the same tokens, in nats: must stay small. Logarithmic.",
            keys=("engine/logprob_gap_mean",),
            is_log=True,
        ),
        Panel(
            title="Seconds per phase",
            caption="Solid: rollouts. Dashed: the update. Dotted: resampling.",
            keys=("seconds/rollout", "seconds/train", "seconds/resample"),
        ),
        Panel(title="Seconds per step", caption="Without evaluation and checkpoints.", keys=("seconds/step",)),
    ),
}


def build_curves(arms: Sequence[Arm]) -> dict[str, Any]:
    """Panels with at least one value, and the series of each run: steps, and values by key (null where missing)."""
    sections = dict(SECTIONS)
    sections["Tools and the gap"] = (*sections["Tools and the gap"], *tool_panels(arms))
    wanted = {key for panels in sections.values() for panel in panels for key in panel.keys}
    series = [_series(arm, run, wanted) for arm in arms for run in arm.runs]
    logged = {key for one in series for key in one["values"]}
    return {
        "sections": [
            {"title": title, "panels": built}
            for title, panels in sections.items()
            if (built := [_panel(panel, logged) for panel in panels if set(panel.keys) & logged])
        ],
        "series": series,
    }


def _panel(panel: Panel, logged: set[str]) -> dict[str, Any]:
    keys = [key for key in panel.keys if key in logged]
    return {
        "title": panel.title,
        "caption": panel.caption,
        "keys": [{"key": key, "dash": panel.keys.index(key), "def": define(key)} for key in keys],
        "scale": "share" if panel.is_fraction else "log" if panel.is_log else "number",
    }


def _series(arm: Arm, run: Run, wanted: set[str]) -> dict[str, Any]:
    """GRPO has no resampling curves, and a surrogate's value says nothing: only fine-tuning has a loss curve."""
    records = run.train_records
    keys = [key for key in wanted if any(_number(record.get(key)) is not None for record in records)]
    keys = [key for key in keys if arm.method == "AXPO" or not (key.startswith("resample/") or key.endswith("_post"))]
    keys = [key for key in keys if arm.method == "SFT" or key != "train/loss"]
    windows = list(_windows(records))
    return {
        "steps": [window[-1]["step"] for window in windows],
        "values": {key: [_mean(window, key) for window in windows] for key in sorted(keys)},
    }


def _windows(records: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    length = max(1, math.ceil(len(records) / MAX_POINTS))
    for start in range(0, len(records), length):
        yield records[start : start + length]


def _mean(window: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [value for record in window if (value := _number(record.get(key))) is not None]
    return float(f"{sum(values) / len(values):.5g}") if values else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None

"""Curves of several runs as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from axpo.reports.runs import Arm

SMOOTHING_STEPS = 5
"""Steps of the centred moving average behind a bold line."""

_INK, _GRID = "#010203", "#040506"  # replaced by the page's own colours
_ARM = "#0a0b%02x"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: a metric, or several drawn in different dashes."""

    title: str
    caption: str
    keys: tuple[str, ...]
    is_fraction: bool = False
    is_log: bool = False


PANELS = (
    Panel(
        title="Tool use",
        caption="Rollouts that call a tool. When acting is starved this falls to zero, and zero is absorbing.",
        keys=("rollout/tool_use_rate",),
        is_fraction=True,
    ),
    Panel(
        title="Tool-using siblings all wrong",
        caption="Questions whose tool-using rollouts all failed: no positive signal for any call. "
        "Dashed: after resampling.",
        keys=("rollout/all_wrong_tool", "rollout/all_wrong_tool_post"),
        is_fraction=True,
    ),
    Panel(
        title="Direct siblings all wrong",
        caption="The same for rollouts that answer without a tool. The distance to the panel before is the gap.",
        keys=("rollout/all_wrong_no_tool",),
        is_fraction=True,
    ),
    Panel(
        title="Reward",
        caption="Share of right answers among the training rollouts; continuations are not counted.",
        keys=("reward/mean",),
        is_fraction=True,
    ),
    Panel(
        title="Restored by resampling",
        caption="Resampled questions in which at least one continuation was right.",
        keys=("resample/restore_rate",),
        is_fraction=True,
    ),
    Panel(
        title="Continuations per step",
        caption="What resampling cost. Dashed: the most it may cost.",
        keys=("resample/used", "resample/budget"),
    ),
    Panel(
        title="Zoom box hits",
        caption="Zoom calls whose box contains what was asked for: better looking, not luckier guessing.",
        keys=("zoom/box_hit_rate",),
        is_fraction=True,
    ),
    Panel(title="Response length", caption="Tokens after the prompt, mean.", keys=("length/response_mean",)),
    Panel(title="Loss", caption="Mean over the step's updates.", keys=("train/loss",)),
    Panel(title="KL", caption="Nats per token from the initial checkpoint.", keys=("train/kl",)),
    Panel(
        title="Engine against trainer",
        caption="Mean |Δ log-prob| of the same tokens, in nats: must stay small.",
        keys=("engine/logprob_gap_mean",),
        is_log=True,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawn panel."""

    panel: Panel
    svg: str


def draw_charts(arms: Sequence[Arm], panels: Sequence[Panel] = PANELS) -> tuple[Chart, ...]:
    """Draw the panels for which at least one run has a value. Arm i is drawn in the CSS colour `--arm-i`."""
    charts = ((panel, _draw(panel, arms, salt=str(index))) for index, panel in enumerate(panels))
    return tuple(Chart(panel=panel, svg=svg) for panel, svg in charts if svg is not None)


def series(arm: Arm, key: str, *, above: float | None = None) -> list[list[tuple[int, float]]]:
    """(step, value) of each run of an arm, values not `above` left out.

    GRPO has no resampling curves, and a surrogate's value says nothing: only fine-tuning has a loss curve.
    """
    if (key.startswith("resample/") and arm.method != "AXPO") or (key == "train/loss" and arm.method != "SFT"):
        return []
    curves = [
        [
            (record["step"], float(record[key]))
            for record in run.train_records
            if record.get(key) is not None and (above is None or record[key] > above)
        ]
        for run in arm.runs
    ]
    return [curve for curve in curves if curve]


def smooth_mean(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean over runs at each step, then a centred moving average over the neighbouring steps."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    means = [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]
    half = SMOOTHING_STEPS // 2 if len(means) > 3 * SMOOTHING_STEPS else 0
    windows = [means[max(0, index - half) : index + half + 1] for index in range(len(means))]
    return [
        (step, sum(value for _, value in window) / len(window))
        for (step, _), window in zip(means, windows, strict=True)
    ]


def _draw(panel: Panel, arms: Sequence[Arm], *, salt: str) -> str | None:
    drawn = [
        (index, dashes, curves)
        for index, arm in enumerate(arms)
        for dashes, key in zip(("solid", "dashed"), panel.keys, strict=False)
        if (curves := series(arm, key, above=0.0 if panel.is_log else None))
        and (dashes == "solid" or arm.method == "AXPO")
    ]
    if not drawn:
        return None
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "text.parse_math": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for index, dashes, curves in drawn:
            color = _ARM % index
            if dashes == "solid":
                for curve in curves:
                    axes.plot(*zip(*curve, strict=True), color=color, linewidth=0.7, alpha=0.35)
            axes.plot(*zip(*smooth_mean(curves), strict=True), color=color, linewidth=2, linestyle=dashes)
        _style_axes(axes, panel)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue())


def _style_axes(axes: object, panel: Panel) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

    assert isinstance(axes, Axes)
    axes.set_facecolor("none")
    axes.figure.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.is_fraction:
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "25 %", "50 %", "75 %", "100 %"])
    elif panel.is_log:
        low, high = axes.dataLim.intervaly
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** decades[0], 10.0 ** decades[-1])
        axes.set_yticks([10.0**d for d in decades], labels=[f"1e{d}" for d in decades], minor=False)
        axes.minorticks_off()
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if axes.dataLim.intervaly[0] >= 0:
            axes.set_ylim(bottom=0)


def _inline(svg: str) -> str:
    """Without XML prologue, fixed size and group ids; colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(_INK, "var(--muted)").replace(_GRID, "var(--line)")
    return re.sub(r"#0a0b([0-9a-f]{2})", lambda match: f"var(--arm-{int(match[1], 16)})", svg)

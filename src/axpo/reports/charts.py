"""What a chart shows: metrics of runs, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from axpo.reports.runs import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart: a metric, or several drawn in different dashes."""

    title: str
    caption: str
    keys: tuple[str, ...]
    is_fraction: bool = False
    is_log: bool = False


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

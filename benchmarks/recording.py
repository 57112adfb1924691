"""The part of a record that all benchmarks share: machine, commit and versions, and the file that it is kept in."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import axpo

HERE = Path(__file__).parent


def describe_machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, commit, and the versions of Python, axpo and `packages`; None for one that is not installed."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE)
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit.stdout.strip() or None,
        "axpo": axpo.__version__,
        "python": platform.python_version(),
        **{package: _installed(package) for package in packages},
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_record(result: Mapping[str, Any]) -> None:
    """Write a result as the record of its benchmark and of today."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    path = HERE / "records" / f"{today}-{result['benchmark']}.json"
    path.write_text(json.dumps(result) + "\n", encoding="utf-8")

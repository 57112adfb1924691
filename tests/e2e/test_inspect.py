"""The benchmarks as tasks of inspect_ai, found by their registered name and run with its mock model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("inspect_mock.py")


def test_inspect_runs_a_benchmark_with_our_agent_tools_and_scorer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "logs")],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, "INSPECT_LOG_LEVEL": "error"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["task"] == "axpo/mini_count"
    # the mock always answers 3: it is right where the gold answer is 3, in every sample
    assert 0 < found["right"] < 1
    assert found["metrics"] == {
        "verdict/mean": found["right"],
        "verdict/pass_at_2": found["right"],
        "tool_use/mean": 1.0,
        "tool_use/pass_at_2": 1.0,
    }
    assert found["roles"] == ["user", "assistant", "tool", "assistant"]
    assert found["calls"] == ["image_zoom_in"] and found["crop"]
    # a server without a reasoning parser leaves the thinking in the content
    assert (found["thinking"], found["final_text"]) == ("I see 4 of them.", "<answer>3</answer>")
    assert found["explanation"].startswith("rule text, answer found by answer_tag")


def test_every_benchmark_is_a_task_of_the_package() -> None:
    from axpo.benchmarks.registry import BENCHMARKS

    code = "import axpo.integrations.inspect_tasks as t; print(' '.join(n for n in dir(t) if callable(getattr(t, n))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert set(BENCHMARKS) <= set(done.stdout.split())


def test_a_protocol_that_does_not_exist_is_named() -> None:
    code = "import axpo.integrations.inspect_tasks as t; t.mini_count(protocol='nope')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "ConfigError: mini_count: expected preset axpo or full and protocol axpo or qwen" in done.stderr

"""`axpo serve`: the shipped checkpoint behind an endpoint, evaluated through it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from axpo.cli.main import main
from axpo.evaluation.folder import read_results

MIXED = Path(__file__).parents[2] / "recipes" / "mini_cpu" / "mixed.toml"


def test_a_served_checkpoint_is_evaluated_through_its_endpoint_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "axpo.cli.main", "serve", "--model", "mini", "--port", "0", "--run.device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"serving mini at (http://127\.0\.0\.1:\d+/v1)", server.stdout.readline())
            assert found is not None
            with urllib.request.urlopen(f"{found[1]}/models", timeout=30) as models:
                assert b'"mini"' in models.read()
            out = tmp_path / "out"
            asked = ["eval", str(MIXED), "--benchmarks", "mini_lookup", "--limit", "8", "--eval.num_samples", "3"]
            assert main([*asked, "--endpoint", found[1], "--model", "mini", "--out", str(out)]) == 0
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    _, (result,) = read_results(out)
    transcripts = [judged.rollout.transcript for judged in result.rollouts]
    assert len(transcripts) == 24 and all(transcripts)
    calls = [r for t in transcripts if t for r in t.tool_results]
    assert calls and {r.call.name for r in calls} == {"search"}  # the small model calls about every third time
    assert any(r.failure is None for r in calls)


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--model", "mini", "--port", str(port), "--run.device", "cpu"]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err

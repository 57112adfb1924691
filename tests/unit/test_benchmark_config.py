"""The protocols, the presets and the table of benchmarks against the paper's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.benchmarks.hub import PATTERNS
from axpo.benchmarks.registry import BENCHMARKS, find_benchmark
from axpo.cli.benchmark_config import PROTOCOLS, BenchmarkConfig
from axpo.cli.overrides import lay_over
from axpo.errors import ConfigError, DataError

NINE = {  # arXiv:2605.28774 and the sizes its printed numbers fit
    "mathvision": ("Reasoning", 304),
    "dynamath": ("Reasoning", 501),
    "mathvr": ("Reasoning", 2500),
    "vstar": ("Perception", 191),
    "visualprobe": ("Perception", 106),
    "hrbench_4k": ("Perception", 200),
    "hrbench_8k": ("Perception", 200),
    "hrmmsearch": ("Search", 305),
    "mmsearch": ("Search", 300),
}


def test_the_nine_benchmarks_stand_in_the_papers_order_with_its_sizes() -> None:
    found = {name: (b.area, b.sizes["axpo"]) for name, b in BENCHMARKS.items() if b.hub_id}
    assert list(found.items()) == list(NINE.items())
    assert set(PATTERNS) == set(NINE)


def test_the_papers_protocol() -> None:
    axpo = PROTOCOLS["axpo"]
    assert (axpo["num_samples"], axpo["temperature"], axpo["top_p"], axpo["top_k"]) == (4, 0.7, 0.8, 20)
    assert (axpo["presence_penalty"], axpo["max_tool_turns"], axpo["max_response_tokens"]) == (1.5, 5, 32768)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_a_valid_table_of_eval_options(name: str) -> None:
    config = lay_over(None, {"model.path": "m"}, kind=BenchmarkConfig, defaults={"eval": PROTOCOLS[name]})
    assert config.eval.model_dump() == PROTOCOLS[name]


def test_benchmarks_that_rules_cannot_decide_have_a_judge() -> None:
    assert all(benchmark.judge is not None for benchmark in BENCHMARKS.values() if benchmark.needs_judge)
    assert {b.name for b in BENCHMARKS.values() if b.needs_tool} == {"hrmmsearch", "mmsearch", "mini_lookup"}


def test_a_name_is_found_or_the_nearest_is_told(tmp_path: Path) -> None:
    assert find_benchmark("vstar").title == "V*"
    with pytest.raises(ConfigError, match="Did you mean hrbench_4k"):
        find_benchmark("HR-Bench-4K")
    with pytest.raises(ConfigError, match="There are mathvision"):
        find_benchmark("???")
    own = tmp_path / "mine.jsonl"
    with pytest.raises(DataError, match="no such file"):
        find_benchmark(str(own))
    own.write_text('{"id": "a", "question": "2+2?", "answer": "4", "answer_kind": "math"}\n')
    assert find_benchmark(str(own)).name == "mine"


def test_training_knows_no_endpoint(tmp_path: Path) -> None:
    from axpo.trainer.config import parse_config

    with pytest.raises(ConfigError, match="endpoint: unknown option"):
        parse_config({"model": {"path": "m"}, "endpoint": {"url": "http://x"}}, origin="c.toml")


def test_a_dialogue_has_time_for_all_its_tokens(tmp_path: Path) -> None:
    from axpo.cli.benchmark_eval import read_request
    from axpo.cli.main import _build_parser  # pyright: ignore[reportPrivateUsage]

    words = ["eval", "--benchmarks", "mini_count", "--model", "m", "--endpoint", "http://127.0.0.1:1/v1"]
    arguments = _build_parser()[0].parse_args(words)
    arguments.overrides = {}
    config = read_request(arguments).config
    slowest = config.eval.max_response_tokens / config.rollout.time_limit_s
    assert slowest < 10 and config.endpoint.timeout_s >= config.rollout.time_limit_s

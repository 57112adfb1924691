"""The benchmarks by name: a literal table, in the order of the paper's columns."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from axpo.benchmarks import judge_prompts
from axpo.benchmarks.benchmark import Benchmark, Official
from axpo.benchmarks.loaders import (
    dynamath as dynamath_files,
)
from axpo.benchmarks.loaders import (
    hrbench as hrbench_files,
)
from axpo.benchmarks.loaders import (
    hrmmsearch as hrmmsearch_files,
)
from axpo.benchmarks.loaders import (
    mathvision as mathvision_files,
)
from axpo.benchmarks.loaders import (
    mathvr as mathvr_files,
)
from axpo.benchmarks.loaders import (
    mmsearch as mmsearch_files,
)
from axpo.benchmarks.loaders import (
    visualprobe as visualprobe_files,
)
from axpo.benchmarks.loaders import (
    vstar as vstar_files,
)
from axpo.benchmarks.own import SUFFIXES, mini_benchmark, own_benchmark
from axpo.benchmarks.scorers import dynamath, letters, mathvision, mathvision_official, mathvr, mmsearch, short_answers
from axpo.errors import ConfigError

_HRBENCH_4K = Benchmark(
    name="hrbench_4k",
    title="HR-Bench-4K",
    area="Perception",
    hub_id="DreamMr/HR-Bench",
    licence="not stated",
    load=hrbench_files.load_4k,
    score=letters.score,
    official=Official(
        score=letters.score_hrbench_official,
        leaves_out=(
            "the authors' exact prompt and their judge, a local model that is asked about every "
            "reply, and, unless --preset full is given, three of the four rotations of each "
            "question"
        ),
    ),
    judge=judge_prompts.CHOICE,
    sizes={"axpo": 200, "full": 800},
    breakdowns=("category", "rotation"),
)
_PUBLISHED = (
    Benchmark(
        name="mathvision",
        title="MathVision",
        area="Reasoning",
        hub_id="MathLLMs/MathVision",
        licence="MIT",
        load=mathvision_files.load,
        score=mathvision.score,
        official=Official(
            score=mathvision_official.score_official,
            leaves_out="the authors' exact words and sampling options",
        ),
        sizes={"axpo": 304, "full": 3040},
        breakdowns=("subject", "level"),
    ),
    Benchmark(
        name="dynamath",
        title="DynaMath",
        area="Reasoning",
        hub_id="DynaMath/DynaMath_Sample",
        licence="Apache-2.0",
        load=dynamath_files.load,
        score=dynamath.score,
        official=Official(
            score=dynamath.score_official,
            leaves_out="the authors' exact words, temperature 0 and the JSON mode of the service",
        ),
        sizes={"axpo": 501, "full": 5010},
        breakdowns=("subject", "level", "answer_type"),
    ),
    Benchmark(
        name="mathvr",
        title="Math-VR",
        area="Reasoning",
        hub_id="gogoduan/Math-VR-bench",
        licence="Apache-2.0",
        load=mathvr_files.load,
        score=mathvr.score,
        official=Official(
            score=mathvr.score_official,
            needs_judge=True,
            leaves_out=(
                "GPT-4.1 as the judge, its exact prompt, and leaving out solutions on which the judge "
                "fails (they count as wrong)"
            ),
        ),
        judge=judge_prompts.MATHVR,
        needs_judge=True,
        sizes={"axpo": 2500, "full": 2500},
        breakdowns=("category",),
    ),
    Benchmark(
        name="vstar",
        title="V*",
        area="Perception",
        hub_id="craigwu/vstar_bench",
        licence="not stated",
        load=vstar_files.load,
        score=letters.score,
        official=Official(
            score=letters.score_vstar_official,
            leaves_out="the likelihood of each option, which the authors compare for open models",
        ),
        judge=judge_prompts.CHOICE,
        sizes={"axpo": 191, "full": 191},
        breakdowns=("category",),
    ),
    Benchmark(
        name="visualprobe",
        title="VisualProbe",
        area="Perception",
        hub_id="Mini-o3/VisualProbe_Hard",
        licence="CC-BY-NC-4.0",
        load=visualprobe_files.load,
        score=short_answers.score,
        official=Official(
            score=short_answers.score_visualprobe_official,
            needs_judge=True,
            leaves_out=(
                "the authors' grounding tool and system prompt, 32 samples at temperature 1, GPT-4o "
                "as the judge, and leaving out questions on which the judge fails (they count as "
                "wrong)"
            ),
            reads_all_turns=True,
        ),
        judge=judge_prompts.VISUALPROBE,
        needs_judge=True,
        sizes={"axpo": 106, "full": 515},
        breakdowns=("difficulty",),
    ),
    _HRBENCH_4K,
    replace(_HRBENCH_4K, name="hrbench_8k", title="HR-Bench-8K", load=hrbench_files.load_8k),
    Benchmark(
        name="hrmmsearch",
        title="HR-MMSearch",
        area="Search",
        hub_id="sensenova/HR-MMSearch",
        licence="MIT",
        load=hrmmsearch_files.load,
        score=short_answers.score,
        official=Official(
            score=short_answers.score_hrmmsearch_official,
            needs_judge=True,
            leaves_out=(
                "the authors' tools (image search among them) and system prompt, and GPT-4o as the "
                "judge, asked once for each right answer"
            ),
        ),
        judge=judge_prompts.HRMMSEARCH,
        needs_judge=True,
        needs_tool="search",
        sizes={"axpo": 305, "full": 305},
        breakdowns=("category", "difficulty"),
    ),
    Benchmark(
        name="mmsearch",
        title="MMSearch",
        area="Search",
        hub_id="CaraJ/MMSearch",
        licence="not stated",
        load=mmsearch_files.load,
        score=mmsearch.score,
        official=Official(
            score=mmsearch.score_official,
            leaves_out=(
                "the authors' search pipeline and its scores for requery, rerank and summarization "
                "(the score here is their end-to-end F1 alone)"
            ),
        ),
        judge=judge_prompts.MMSEARCH,
        needs_judge=True,
        needs_tool="search",
        sizes={"axpo": 300, "full": 300},
        breakdowns=("area", "has_image"),
    ),
)
_MINI = (
    mini_benchmark("mini_distance", "Mini distances", "Reasoning", "distance_eval"),
    mini_benchmark("mini_count", "Mini dots", "Perception", "eval"),
    mini_benchmark("mini_lookup", "Mini look-ups", "Search", "lookup_eval"),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in (*_PUBLISHED, *_MINI)}


def find_benchmark(name: str) -> Benchmark:
    """By its name, or a data file of the user's own by its path. Raises `ConfigError` with the nearest name."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if Path(name).suffix.lower() in SUFFIXES:
        return own_benchmark(Path(name))
    nearest = difflib.get_close_matches(name.lower().replace("-", "_"), BENCHMARKS, n=1)
    hint = f"Did you mean {nearest[0]}?" if nearest else f"There are {', '.join(BENCHMARKS)}."
    raise ConfigError(f"--benchmarks: {name!r} is unknown. {hint} Your own questions: a .jsonl or .parquet file.")

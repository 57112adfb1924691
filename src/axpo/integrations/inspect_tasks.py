"""The benchmarks as tasks of inspect_ai: `inspect eval axpo/mathvision -T data=FOLDER --model ...`.

Our agent loop with our tools and our scorers; inspect brings the models, the logs, the retries and the viewer. inspect
finds this module through the entry point `inspect_ai` of the package.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import GenerateConfig, ModelOutput, get_model
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from axpo.benchmarks.benchmark import Benchmark, Preset, folder_of
from axpo.benchmarks.hub import resolve
from axpo.benchmarks.judge import Judge
from axpo.benchmarks.registry import BENCHMARKS
from axpo.cli.benchmark_config import PROTOCOLS
from axpo.cli.tools import build_tools, check_tools
from axpo.codec import from_json, to_json
from axpo.dialogue import Transcript, Verdict
from axpo.errors import ConfigError
from axpo.files import temporary_folder
from axpo.images import ContentImageStore
from axpo.integrations.inspect_model import InspectChatModel, MessageBridge
from axpo.rollout.chat import ChatSetup, run_chat
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.loop import RolloutLimits
from axpo.rollout.seeding import derive_seed
from axpo.types import Problem, SamplingParams

TRANSCRIPT = "axpo_transcript"
"""Where the whole dialogue lies in the store of a sample's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    benchmark: Benchmark
    problems: Mapping[str, Problem]
    store: ContentImageStore
    pictures: Path
    bridge: MessageBridge
    executor: ToolExecutor
    limits: RolloutLimits


def _make_task(benchmark: Benchmark) -> Callable[..., Task]:
    def build(
        data: str = "",
        preset: Preset = "axpo",
        protocol: str = "axpo",
        limit: int | None = None,
        samples: int | None = None,
        tools: str = "image_zoom_in,python",
        judge: str | None = None,
    ) -> Task:
        if protocol not in PROTOCOLS or preset not in ("axpo", "full"):
            raise ConfigError(
                f"{benchmark.name}: expected preset axpo or full and protocol {' or '.join(PROTOCOLS)}, got preset "
                f"{preset!r} and protocol {protocol!r}."
            )
        options = PROTOCOLS[protocol]
        num_samples = options["num_samples"] if samples is None else samples
        parts = _load(benchmark, data=data, preset=preset, limit=limit, tools=tools, options=options)
        return Task(
            dataset=MemoryDataset([_to_sample(problem, parts) for problem in parts.problems.values()]),
            solver=agent(parts),
            scorer=[verdict(parts, judge), tool_use()],
            epochs=Epochs(num_samples, ["mean", f"pass_at_{num_samples}"] if num_samples > 1 else ["mean"]),
            config=GenerateConfig(
                temperature=options["temperature"],
                top_p=options["top_p"],
                top_k=options["top_k"],
                presence_penalty=options["presence_penalty"],
            ),
            metadata={"preset": preset, "protocol": protocol, "tools": tools, "questions": len(parts.problems)},
        )

    build.__name__ = build.__qualname__ = benchmark.name
    build.__doc__ = f"{benchmark.title} with our agent loop, tools and scorer."
    return build


def _load(
    benchmark: Benchmark, *, data: str, preset: Preset, limit: int | None, tools: str, options: Mapping[str, Any]
) -> _Parts:
    pictures = temporary_folder("axpo-inspect-")
    store = ContentImageStore(pictures)
    source = str(folder_of(Path(data), benchmark.name)) if data and Path(data).is_dir() else data or benchmark.hub_id
    found = resolve(source, benchmark.name).folder if source else pictures
    problems = benchmark.load(found, preset=preset, store=store, limit=limit)
    executor = ToolExecutor(tools=build_tools([name for name in tools.split(",") if name], {}))
    atexit.register(executor.close)
    check_tools(executor)
    return _Parts(
        benchmark=benchmark,
        problems={problem.id: problem for problem in problems},
        store=store,
        pictures=pictures,
        bridge=MessageBridge(store, pictures),
        executor=executor,
        limits=RolloutLimits(
            max_tool_turns=options["max_tool_turns"], max_response_tokens=options["max_response_tokens"]
        ),
    )


def _to_sample(problem: Problem, parts: _Parts) -> Sample:
    return Sample(
        id=problem.id,
        input=[parts.bridge.to_inspect(message, by_path=True) for message in problem.messages],
        target=problem.answer,
        metadata={"cluster": problem.metadata["cluster"], **problem.metadata["categories"]},
    )


@solver
def agent(parts: _Parts) -> Solver:
    """Our agent loop around the model that inspect evaluates."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = InspectChatModel(get_model(), parts.bridge)
        setup = ChatSetup(
            model=model,
            executor=parts.executor,
            store=parts.store,
            limits=parts.limits,
            sampling=SamplingParams(),
        )
        rollout_id = f"{parts.benchmark.name}/{state.sample_id}/{state.epoch}"
        problem = parts.problems[str(state.sample_id)]
        transcript = await run_chat(problem, setup=setup, rollout_id=rollout_id, seed=derive_seed(0, rollout_id))
        state.messages = [parts.bridge.to_inspect(message) for message in transcript.messages]
        state.output = ModelOutput.from_content(str(state.model), transcript.final_text)
        state.store.set(TRANSCRIPT, to_json(transcript))
        state.completed = True
        return state

    return solve


@scorer(metrics=[mean(), stderr(cluster="cluster")])
def verdict(parts: _Parts, judge: str | None) -> Scorer:
    """Our scorer's verdict; the judge, a model's name, decides what no rule can."""
    asked: list[Judge] = []

    async def score(state: TaskState, target: Target) -> Score:
        problem = parts.problems[str(state.sample_id)]
        text = state.output.completion
        found = parts.benchmark.score(problem, text) if text.strip() else Verdict(is_correct=False, rule="no_answer")
        prompt = parts.benchmark.judge
        if not found.is_decided and judge is not None and prompt is not None:
            if not asked:
                model = InspectChatModel(get_model(judge), parts.bridge)
                asked.append(Judge(model, model_name=judge, cache_path=parts.pictures / "judge.jsonl"))
            found = await asked[0].settle(prompt, problem, found, text)
        return Score(
            value=float(found.is_correct),
            answer=found.answer,
            explanation=f"rule {found.rule}, answer found by {found.extraction}. {found.note}".strip(),
            metadata=dict(found.scores),
        )

    return score


@scorer(metrics=[mean(), stderr(cluster="cluster")])
def tool_use() -> Scorer:
    """1 where the dialogue opened a tool call: the mean is the share of rollouts, pass_at_k that of questions."""

    async def score(state: TaskState, target: Target) -> Score:
        transcript = from_json(Transcript, state.store.get(TRANSCRIPT))
        return Score(value=float(transcript.uses_tool))

    return score


for _benchmark in BENCHMARKS.values():
    globals()[_benchmark.name] = task(name=_benchmark.name)(_make_task(_benchmark))

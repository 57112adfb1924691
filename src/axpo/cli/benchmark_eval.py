"""`axpo eval --benchmarks`: any tool-using model on published benchmarks, resumable at every rollout.

eval.json               what was asked; the same command goes on where an earlier one stopped
config.toml run.json    options, machine, versions
problems/NAME.jsonl     the questions as they were asked
rollouts/NAME.jsonl     every dialogue, appended as it ends
endpoint.json           what the check before the run found (endpoints only)
journal.jsonl           answered turns of unfinished dialogues (endpoints only)
judge.jsonl             every reply of the judge
verdicts/NAME.jsonl     what the rules, and the judge, made of the dialogues
summary.json table.md report.html
images/
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from axpo.benchmarks.benchmark import Benchmark, Preset, folder_of
from axpo.benchmarks.hub import resolve
from axpo.benchmarks.judge import Judge
from axpo.benchmarks.registry import find_benchmark
from axpo.cli.benchmark_config import MINI_TOOLS, PROTOCOLS, BenchmarkConfig
from axpo.cli.benchmark_results import write_results
from axpo.cli.build import MINI
from axpo.cli.console import RunConsole
from axpo.cli.folders import check_not_taken, check_unchanged, hold_folder
from axpo.cli.overrides import lay_over
from axpo.cli.samplers import open_chat_model, open_sampler
from axpo.diagnostics.recorder import RunRecorder
from axpo.dialogue import Transcript, Verdict
from axpo.errors import ConfigError, DataError
from axpo.evaluation.folder import Manifest, read_manifest, write_manifest, write_problems, write_verdicts
from axpo.evaluation.log import RolloutLog, drop_lost, read_log
from axpo.evaluation.sampling import Effort, sample_missing
from axpo.evaluation.scorecard import BenchmarkInfo
from axpo.evaluation.scoring import AskJudge, judge_all
from axpo.files import write_atomically
from axpo.images import ContentImageStore
from axpo.trainer.checkpoint import find_model
from axpo.trainer.config import format_toml
from axpo.types import Content, Message, Problem

DEFAULT_TOOLS = ["image_zoom_in", "python"]
"""Without a configuration file. Search needs a backend of the user's choice."""

DEFAULT_TIME_LIMIT_S = 3600.0
"""Of a dialogue, without a configuration file: 32,768 tokens at 10 a second. Training's ten minutes would lose them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    benchmarks: tuple[Benchmark, ...]
    sources: Mapping[str, str]
    """Where a benchmark's files are: a path, or a hub id with or without @revision."""
    preset: Preset
    limit: int | None
    is_official: bool
    """Ask, read and judge as each benchmark's authors do."""
    label: str
    folder: Path
    config: BenchmarkConfig
    retries_lost: bool
    """Try again what earlier runs lost to faults."""


# -- the command line -------------------------------------------------------------------------------------------------


def read_request(arguments: argparse.Namespace) -> Request:
    """The command line's words, checked. Raises `ConfigError`."""
    names = [name.strip() for name in arguments.benchmarks.split(",") if name.strip()]
    benchmarks = tuple(find_benchmark(name) for name in names)
    if not benchmarks or len({benchmark.name for benchmark in benchmarks}) != len(benchmarks):
        raise ConfigError(
            f"--benchmarks: expected names, each once, with commas between; got {arguments.benchmarks!r}."
        )
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit: expected at least one question, got {arguments.limit}.")
    config = _read_config(arguments)
    label = arguments.label or _name_of(config.model.path)
    return Request(
        benchmarks=benchmarks,
        sources=_read_sources(arguments.data, benchmarks),
        preset=arguments.preset,
        limit=arguments.limit,
        is_official=arguments.official,
        label=label,
        folder=arguments.out or Path("runs/eval") / re.sub(r"[^\w.-]+", "-", label),
        config=config,
        retries_lost=arguments.retry_lost,
    )


def _name_of(model: str) -> str:
    """The last part of a path or a hub id; of a run's checkpoint the run's.

    >>> _name_of("Qwen/Qwen3-VL-2B-Thinking"), _name_of("/runs/mine/checkpoints/step-000060/model")
    ('Qwen3-VL-2B-Thinking', 'mine')
    """
    in_run = re.search(r"([^/]+)/checkpoints/step-\d+(/model)?/*$", model)
    return in_run[1] if in_run else re.sub(r".*/(?=[^/])", "", model.rstrip("/"))


def _read_config(arguments: argparse.Namespace) -> BenchmarkConfig:
    """A protocol named on the command line beats the file; single options beat both."""
    defaults: dict[str, dict[str, Any]] = {}
    if arguments.config is None:
        ships = is_mini(arguments.model)
        defaults = {
            "eval": PROTOCOLS["mini" if ships else "axpo"],
            "data": MINI_TOOLS if ships else {"tools": DEFAULT_TOOLS},
            "rollout": {"time_limit_s": DEFAULT_TIME_LIMIT_S},
            "endpoint": {"timeout_s": DEFAULT_TIME_LIMIT_S},
        }
    given = {} if arguments.protocol is None else PROTOCOLS[arguments.protocol]
    overrides = {f"eval.{name}": str(value) for name, value in given.items()}
    if arguments.model is not None:
        path = arguments.model if arguments.endpoint else model_path(arguments.model)
        overrides["model.path"] = json.dumps(path)
    if arguments.endpoint is not None:
        overrides["endpoint.url"] = json.dumps(arguments.endpoint)
    if arguments.no_tools:
        overrides |= {"data.tools": "[]", "data.tool_options": "{}", "data.tool_limits": "{}"}
    overrides |= arguments.overrides
    if arguments.config is None and "model.path" not in overrides:
        raise ConfigError("axpo eval: --model is missing: a folder, a hub id, or the endpoint's name of the model.")
    return lay_over(arguments.config, overrides, kind=BenchmarkConfig, defaults=defaults)


def is_mini(name: str | None) -> bool:
    """True for the checkpoints that ship with the package."""
    return name is not None and (name == MINI or name.startswith(f"{MINI}:"))


def model_path(name: str) -> str:
    """The model folder of a run or a checkpoint; hub ids and `mini` as they are. Raises `CheckpointError`."""
    is_folder = not is_mini(name) and Path(name).is_dir()
    return str(find_model(Path(name)).resolve()) if is_folder else name


def _read_sources(words: Sequence[str], benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """`--data FOLDER`, `--data NAME=SOURCE`, any number of them; the hub for what none of them names."""
    sources: dict[str, str] = {}
    shared = [word for word in words if "=" not in word]
    if len(shared) > 1:
        raise ConfigError(f"--data: one folder for all, others as NAME=SOURCE; got {', '.join(shared)}.")
    named = dict(word.split("=", 1) for word in words if "=" in word)
    known = {benchmark.name for benchmark in benchmarks}
    if stray := sorted(set(named) - known):
        raise ConfigError(f"--data: {stray[0]} is not among --benchmarks, which are {', '.join(sorted(known))}.")
    for benchmark in benchmarks:
        if benchmark.name in named:
            sources[benchmark.name] = named[benchmark.name]
        elif shared:
            sources[benchmark.name] = str(folder_of(Path(shared[0]), benchmark.name))
        else:
            sources[benchmark.name] = benchmark.hub_id
    return sources


# -- the run ----------------------------------------------------------------------------------------------------------


def run_benchmarks(request: Request, *, console: RunConsole) -> None:
    """Sample what is missing, judge everything, write the results. Raises what a user has to mend before any of it."""
    known = read_manifest(request.folder)
    if known is None:
        check_not_taken(request.folder)
    else:
        _check_same(known, request)
    store = ContentImageStore(request.folder / "images")
    commits, problems = _load_problems(request, store)
    with hold_folder(request.folder):
        for name in problems:
            _check_asked(request.folder / "rollouts" / f"{name}.jsonl", problems[name])
        manifest = _manifest(request, commits, known)
        write_manifest(request.folder, manifest)
        write_atomically(request.folder / "config.toml", [format_toml(request.config).rstrip("\n")])
        RunRecorder(request.folder, store=store, device=request.config.endpoint.url or request.config.run.device)
        for benchmark in request.benchmarks:
            write_problems(request.folder, benchmark.name, problems[benchmark.name])
        asyncio.run(_sample_and_judge(request, problems, store, console))
        write_results(request.folder, console=console)


def _load_problems(
    request: Request, store: ContentImageStore
) -> tuple[dict[str, str | None], dict[str, tuple[Problem, ...]]]:
    commits: dict[str, str | None] = {}
    problems: dict[str, tuple[Problem, ...]] = {}
    for benchmark in request.benchmarks:
        folder, commits[benchmark.name] = Path(), None
        if request.sources[benchmark.name]:
            found = resolve(request.sources[benchmark.name], benchmark.name)
            folder, commits[benchmark.name] = found.folder, found.commit
        loaded = benchmark.load(
            folder, preset=request.preset, store=store, limit=request.limit, is_official=request.is_official
        )
        prompt = request.config.data.system_prompt
        problems[benchmark.name] = tuple(_with_system(problem, prompt) for problem in loaded)
    return commits, problems


def _with_system(problem: Problem, prompt: str | None) -> Problem:
    if prompt is None or problem.messages[0].role == "system":
        return problem
    return replace(problem, messages=(Message(role="system", content=(Content(text=prompt),)), *problem.messages))


async def _sample_and_judge(
    request: Request, problems: Mapping[str, tuple[Problem, ...]], store: ContentImageStore, console: RunConsole
) -> None:
    async with _open_judge(request, store) as judge:  # first: what is wrong with it shows before anything is sampled
        await _sample(request, problems, store, console)
        await _judge(request, problems, judge, console)


async def _sample(
    request: Request, problems: Mapping[str, tuple[Problem, ...]], store: ContentImageStore, console: RunConsole
) -> None:
    config, folder = request.config, request.folder
    logs = {benchmark.name: _open_log(request, benchmark) for benchmark in request.benchmarks}
    effort = Effort(
        num_samples=config.eval.num_samples,
        seed=config.run.seed,
        max_running=config.endpoint.max_concurrent if config.endpoint.url else config.rollout.max_batch_size,
        max_fault_retries=config.rollout.max_fault_retries,
    )
    num_missing = {
        name: sum((p.id, i) not in logs[name].done for p in problems[name] for i in range(effort.num_samples))
        for name in logs
    }
    try:
        if any(num_missing.values()):
            asked = [problem for name in logs for problem in problems[name]]
            async with open_sampler(config, folder=folder, store=store, problems=asked, say=console.say) as sampler:
                for benchmark in request.benchmarks:
                    name = benchmark.name
                    console.start_rollouts(benchmark.title, num_missing[name])
                    await sample_missing(
                        name,
                        problems[name],
                        sampler=sampler,
                        log=logs[name],
                        effort=effort,
                        on_done=lambda record: console.on_rollout(),
                        persist=lambda transcript: _persist(transcript, store),
                    )
    finally:
        for log in logs.values():
            log.close()


def _open_log(request: Request, benchmark: Benchmark) -> RolloutLog:
    path = request.folder / "rollouts" / f"{benchmark.name}.jsonl"
    if request.retries_lost:
        drop_lost(path)
    return RolloutLog(path)


def _persist(transcript: Transcript, store: ContentImageStore) -> None:
    for block in (block for result in transcript.tool_results for block in result.content):
        if block.image is not None:
            store.persist(block.image)


@contextlib.asynccontextmanager
async def _open_judge(request: Request, store: ContentImageStore) -> AsyncGenerator[Judge | None]:
    """The judge that the configuration names; None without. Raises `ConfigError`."""
    config = request.config.judge
    if config.url is None or config.model is None:
        yield None
        return
    model = open_chat_model(config.url, config.model, config, store=store)
    try:
        yield Judge(
            model,
            model_name=config.model,
            cache_path=request.folder / "judge.jsonl",
            max_concurrent=config.max_concurrent,
        )
    finally:
        await model.close()


async def _judge(
    request: Request, problems: Mapping[str, tuple[Problem, ...]], judge: Judge | None, console: RunConsole
) -> None:
    for benchmark in request.benchmarks:
        wanted = {
            (problem.id, i) for problem in problems[benchmark.name] for i in range(request.config.eval.num_samples)
        }
        log = read_log(request.folder / "rollouts" / f"{benchmark.name}.jsonl")
        rollouts = [rollout for rollout in log if (rollout.problem_id, rollout.sample) in wanted]
        console.start_rollouts(f"judging {benchmark.title}", len(rollouts))
        official = benchmark.official if request.is_official else None
        judged = await judge_all(
            problems[benchmark.name],
            rollouts,
            score=benchmark.score if official is None else official.score,
            reads_all_turns=official is not None and official.reads_all_turns,
            ask_judge=_ask(judge, benchmark),
            on_done=console.on_rollout,
        )
        write_verdicts(request.folder, benchmark.name, judged)


def _ask(judge: Judge | None, benchmark: Benchmark) -> AskJudge | None:
    prompt = benchmark.judge
    if judge is None or prompt is None:
        return None

    async def ask(problem: Problem, undecided: Verdict, final_text: str) -> Verdict:
        return await judge.settle(prompt, problem, undecided, final_text)

    return ask


# -- what was asked ---------------------------------------------------------------------------------------------------


def _manifest(request: Request, commits: Mapping[str, str | None], known: Manifest | None) -> Manifest:
    """Benchmarks of earlier commands in the same folder stay."""
    infos = {info.name: info for info in (known.benchmarks if known else ())}
    sources = dict(known.sources if known else {})
    for benchmark in request.benchmarks:
        infos[benchmark.name] = _info(request, benchmark)
        commit = commits[benchmark.name]
        sources[benchmark.name] = request.sources[benchmark.name] + (f"@{commit}" if commit else "")
    return Manifest(
        label=request.label,
        benchmarks=tuple(infos.values()),
        sources=sources,
        preset=request.preset,
        limit=request.limit,
        is_official=request.is_official,
        num_samples=request.config.eval.num_samples,
        seed=request.config.run.seed,
        has_judge=request.config.judge.url is not None,
        tools=tuple(request.config.data.tools),
    )


def _info(request: Request, benchmark: Benchmark) -> BenchmarkInfo:
    official = benchmark.official if request.is_official else None
    return BenchmarkInfo(
        name=benchmark.name,
        title=benchmark.title,
        area=benchmark.area,
        breakdowns=benchmark.breakdowns,
        needs_judge=benchmark.needs_judge if official is None else official.needs_judge,
        needs_tool=benchmark.needs_tool,
        preset=request.preset,
        expected_size=None if request.limit else benchmark.sizes.get(request.preset),
        is_official=official is not None,
        leaves_out="" if official is None else official.leaves_out,
        judge=request.config.judge.model or "",
    )


def _words(name: str, value: object) -> str:
    return f"without --{name}" if value is None else f"with --{name} {value}"


def _check_same(known: Manifest, request: Request) -> None:
    """Raise `ConfigError` unless the command asks what earlier ones in the folder asked."""
    mine = {"preset": request.preset, "limit": request.limit}
    for name, value in mine.items():
        if getattr(known, name) != value:
            raise ConfigError(
                f"{request.folder}: contains an evaluation {_words(name, getattr(known, name))}, not "
                f"{_words(name, value)}. Continue with that, or choose another folder with --out."
            )
    rules = {info.name: info.is_official for info in known.benchmarks}
    for benchmark in request.benchmarks:
        is_official = _info(request, benchmark).is_official
        if rules.get(benchmark.name, is_official) != is_official:  # the authors' prompt is another question
            raise ConfigError(
                f"{request.folder}: {benchmark.name} was evaluated there {'without' if is_official else 'with'} "
                f"--official, which asks in other words. Choose another folder with --out."
            )
    check_unchanged(request.folder, request.config)


def _check_asked(log: Path, problems: Sequence[Problem]) -> None:
    """Raise `DataError` when a recorded dialogue began with another question than the one that has its id now.

    Answers may change: they are judged anew. Questions that are gone are not counted, new ones are sampled.
    """
    by_id = {problem.id: problem for problem in problems}
    for rollout in read_log(log):
        problem = by_id.get(rollout.problem_id)
        transcript = rollout.transcript
        if problem is not None and transcript is not None and transcript.prompt != problem.messages:
            raise DataError(
                f"{log}: the dialogues with question {problem.id} began with other words or images than the data "
                "have under this id now. Put the question back, give the new one an id of its own, or choose another "
                "folder with --out."
            )

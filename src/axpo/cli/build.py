"""The only wiring place: a configuration becomes objects."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from axpo.cli.console import RunConsole, counting
from axpo.cli.folders import check_folder, has_files, hold_folder
from axpo.cli.names import build_reward
from axpo.cli.rows import check_conversations, check_questions, context_length
from axpo.cli.tools import build_executor, check_tools
from axpo.diagnostics.health import HealthMonitor
from axpo.diagnostics.recorder import RunRecorder, read_metrics, rollout_lines
from axpo.dialogue import Conversation
from axpo.engines.hf import HfEngine
from axpo.errors import ConfigError, DataError
from axpo.evaluation.run import evaluate
from axpo.files import write_atomically
from axpo.images import ContentImageStore
from axpo.integrations.trackers import build_tracker
from axpo.integrations.tracking import Tracking
from axpo.models.loading import load_model, resolve_device
from axpo.models.preprocessing import ImagePreprocessor
from axpo.protocols import InferenceEngine, RewardFn, Tool
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.loop import RolloutLimits, RolloutSetup
from axpo.rollout.rendering import QwenRenderer
from axpo.tasks import mini
from axpo.tasks.jsonl import load_conversations, load_problems
from axpo.trainer.checkpoint import TrainerState, find_model, recover_checkpoint, restore_checkpoint
from axpo.trainer.config import Config, EvalConfig, RolloutConfig, format_toml
from axpo.trainer.loop import Evaluate, Observer, Observers, Run, peak_memory_bytes, timed
from axpo.trainer.policy import Policy
from axpo.trainer.sources import DemonstrationSource, Lines, RolloutSource, check_resampling
from axpo.trainer.step import Metrics
from axpo.trainer.weight_sync import WeightSync
from axpo.types import Message, Problem, SamplingParams

MINI = "mini"
"""`model.path = "mini"`, `data.train = "mini:train"`: what ships with the package."""


@contextlib.contextmanager
def open_training(config: Config, *, is_demonstration: bool, resume: bool, console: RunConsole) -> Generator[Run]:
    """A run in `run.output_dir`, ready to start, or to go on where its last checkpoint stands.

    Nothing is written before everything that a user can get wrong has been loaded.
    """
    folder = config.run.output_dir
    check_folder(folder, config, resume=resume)
    trackers = {name: build_tracker(name) for name in config.run.trackers}
    parts = build_parts(config, store=ContentImageStore(folder / "images"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(parts.executor))
        eval_problems = load_eval_problems(parts) if config.data.eval else ()
        train_problems = () if is_demonstration else load_train_problems(parts)
        if train_problems:
            check_resampling(config, num_questions=len(train_problems))
        sync = evaluation = engine = None
        policy = build_policy(parts, has_reference=not is_demonstration and config.algorithm.kl_coef > 0)
        if probed := train_problems or eval_problems:
            check_tools(parts.executor)
            engine = stack.enter_context(contextlib.closing(build_engine(parts)))
            sync = build_sync(parts, policy, engine, probed[0])
        if engine is not None and eval_problems:
            evaluation = build_evaluation(parts, engine, eval_problems, console=console)
        if engine is not None and train_problems:
            source = build_rollouts(parts, engine, train_problems, console=console)
        else:
            source = build_demonstrations(parts)
        optimizer = build_optimizer(policy, config)
        stack.enter_context(hold_folder(folder))
        last = recover_checkpoint(folder / "checkpoints") if resume else None
        state = restore_checkpoint(last, policy=policy, optimizer=optimizer) if last is not None else TrainerState()
        recorder = open_folder(parts, folder)
        if resume:
            recorder.truncate_after(state.step, is_eval_pending=state.is_eval_pending)
            found = f"resuming {folder} after step {state.step}"
            console.say(f"{folder} has no checkpoint: starting at step 1" if last is None else found)
        observer: Observer = console
        if trackers:
            options = config.model_dump(mode="json", exclude_none=True)
            tracking = Tracking(trackers, folder=folder, config=options, first_step=state.step + 1)
            observer = Observers(console, stack.enter_context(tracking))
        yield Run(
            config=config,
            policy=policy,
            optimizer=optimizer,
            source=source,
            sync=sync,
            evaluate=evaluation,
            recorder=recorder,
            observer=observer,
            checkpoints=folder / "checkpoints",
            state=state,
            health=HealthMonitor(read_metrics(folder)),
        )


def run_evaluation(config: Config, *, folder: Path, checkpoint: Path | None, console: RunConsole) -> None:
    """Evaluate a checkpoint into a run folder of its own. Raises `ConfigError` when that is taken."""
    if has_files(folder):
        raise ConfigError(f"{folder} is not empty. Choose another folder with --out.")
    if checkpoint is not None:
        model = config.model.model_copy(update={"path": str(find_model(checkpoint))})
        config = config.model_copy(update={"model": model})
    parts = build_parts(config, store=ContentImageStore(folder / "images"))
    with contextlib.closing(parts.executor), contextlib.ExitStack() as stack:
        problems = load_eval_problems(parts)
        check_tools(parts.executor)
        engine = stack.enter_context(contextlib.closing(build_engine(parts)))
        stack.enter_context(hold_folder(folder))
        metrics: Metrics = {}
        with timed(metrics, "seconds/eval"):
            found, lines = build_evaluation(parts, engine, problems, console=console)(0)
        metrics |= {**found, "memory/peak_bytes": peak_memory_bytes()}
        # not before: after an interrupt the same command starts again in the same folder
        open_folder(parts, folder).record_eval(0, metrics, lines)
    console.on_eval(0, metrics)
    console.say(f"recorded in {folder}")


def open_folder(parts: Parts, folder: Path) -> RunRecorder:
    """Create the run's folder, save the resolved configuration in it and start recording."""
    write_atomically(folder / "config.toml", [format_toml(parts.config).rstrip("\n")])
    return RunRecorder(folder, store=parts.store, device=str(parts.device))


# -- parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What training and evaluation share."""

    config: Config
    model_path: Path | str
    device: torch.device
    store: ContentImageStore
    preprocessor: ImagePreprocessor
    renderer: QwenRenderer
    executor: ToolExecutor
    reward_for: Callable[[Problem], RewardFn]


def build_parts(config: Config, *, store: ContentImageStore) -> Parts:
    """Everything but models and data."""
    _prepare_torch(config)
    model_path = resolve_model_path(config.model.path)
    preprocessor = ImagePreprocessor.from_pretrained(model_path, max_pixels=config.model.max_image_px)
    renderer = QwenRenderer.from_pretrained(model_path, preprocessor=preprocessor)
    reward_for = build_reward(config.data.reward)
    return Parts(
        config=config,
        model_path=model_path,
        device=resolve_device(config.run.device),
        store=store,
        preprocessor=preprocessor,
        renderer=renderer,
        executor=build_executor(config, shorten=renderer.shorten),
        reward_for=reward_for,
    )


def resolve_model_path(path: str) -> Path | str:
    """A folder or hub id; `mini` and `mini:NAME` are the checkpoints that ship with the package."""
    if path == MINI or path.startswith(f"{MINI}:"):
        name = path.partition(":")[2]
        return mini.checkpoint_path(name) if name else mini.checkpoint_path()
    return path


def build_engine(parts: Parts) -> HfEngine:
    """The in-process engine with its own copy of the weights in the compute precision."""
    model = load_model(
        parts.model_path,
        dtype=parts.config.model.dtype,
        attn_implementation=parts.config.model.attn_implementation,
        device=parts.device,
    )
    return HfEngine(
        model,
        preprocessor=parts.preprocessor,
        store=parts.store,
        banned_token_ids=parts.renderer.banned_token_ids,
        stop_token_ids=parts.renderer.stop_token_ids,
        max_batch_size=parts.config.rollout.max_batch_size,
    )


def build_policy(parts: Parts, *, has_reference: bool) -> Policy:
    """The model that learns."""
    reference_path = parts.config.model.reference_path
    return Policy(
        parts.config.model,
        path=parts.model_path,
        reference_path=resolve_model_path(reference_path) if reference_path is not None else None,
        preprocessor=parts.preprocessor,
        store=parts.store,
        device=parts.device,
        temperature=parts.config.rollout.temperature,
        banned_token_ids=parts.renderer.banned_token_ids,
        has_reference=has_reference,
    )


def build_optimizer(policy: Policy, config: Config) -> torch.optim.Optimizer:
    """AdamW over what learns; the learning rate is set at each step."""
    return torch.optim.AdamW(
        policy.trainable_parameters().values(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
    )


def build_sync(parts: Parts, policy: Policy, engine: InferenceEngine, problem: Problem) -> WeightSync:
    """Weight hand-over whose canary continues the prompt of `problem`."""
    setup = build_rollout_setup(parts, engine)
    return WeightSync(
        policy,
        engine,
        probe=parts.renderer.render_prompt(problem.messages, setup.specs_for(problem)),
        sampling=setup.sampling,
        dtype=parts.config.model.dtype,
    )


def build_rollouts(
    parts: Parts, engine: InferenceEngine, problems: Sequence[Problem], *, console: RunConsole
) -> RolloutSource:
    """The source of reinforcement learning."""
    setup = build_rollout_setup(parts, engine)
    return RolloutSource(
        problems,
        setup=setup,
        config=parts.config,
        seen_px=parts.preprocessor.num_pixels,
        on_rollout=console.on_rollout,
        on_total=console.on_total,
    )


def build_demonstrations(parts: Parts) -> DemonstrationSource:
    """The source of supervised fine-tuning."""
    config = parts.config
    if config.data.train is None:
        raise ConfigError("data.train: required here: a JSONL or Parquet file of conversations, or mini:train.")
    return DemonstrationSource(
        load_demonstrations(parts, config.data.train, max_rows=config.data.max_train_rows),
        renderer=parts.renderer,
        tools={name: tool.spec for name, tool in parts.executor.tools.items()},
        rows_per_step=config.train.rows_per_step,
        seed=config.run.seed,
    )


def build_evaluation(
    parts: Parts, engine: InferenceEngine, problems: Sequence[Problem], *, console: RunConsole
) -> Evaluate:
    """Held-out evaluation as a function of the step. Its random choices are the same at every step."""
    config = parts.config
    setup = RolloutSetup(
        engine=engine,
        renderer=parts.renderer,
        executor=parts.executor,
        reward_for=parts.reward_for,
        store=parts.store,
        limits=limits_of(parts, config.eval),
        sampling=eval_sampling(config),
        max_fault_retries=config.rollout.max_fault_retries,
        max_running=config.rollout.max_batch_size,
    )

    def evaluate_step(step: int) -> tuple[Metrics, Lines]:
        console.start_rollouts("evaluation", len(problems) * config.eval.num_samples)
        result = evaluate(
            problems,
            setup=setup,
            num_samples=config.eval.num_samples,
            seed=config.run.seed,
            on_rollout=console.on_rollout,
        )
        lines = rollout_lines(
            step=step, phase="eval", groups=result.groups, problems=problems, decode=parts.renderer.decode
        )
        return result.metrics, lines

    return evaluate_step


def load_train_problems(parts: Parts) -> tuple[Problem, ...]:
    """The questions of `data.train`. Raises `ConfigError` without, `DataError` on a bad one."""
    data = parts.config.data
    if data.train is None:
        raise ConfigError("data.train: required here: a JSONL or Parquet file of questions, or mini:train.")
    return load_questions(parts, data.train, max_rows=data.max_train_rows)


def load_eval_problems(parts: Parts) -> tuple[Problem, ...]:
    """The questions of `data.eval`. Raises `ConfigError` without, `DataError` on a bad one."""
    data = parts.config.data
    if data.eval is None:
        raise ConfigError("data.eval: required here: a JSONL or Parquet file of questions, or mini:eval.")
    return load_questions(parts, data.eval, max_rows=data.max_eval_rows)


def build_rollout_setup(parts: Parts, engine: InferenceEngine) -> RolloutSetup:
    """How dialogues are sampled in training."""
    rollout = parts.config.rollout
    return RolloutSetup(
        engine=engine,
        renderer=parts.renderer,
        executor=parts.executor,
        reward_for=parts.reward_for,
        store=parts.store,
        limits=limits_of(parts, rollout),
        sampling=SamplingParams(temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k),
        max_fault_retries=rollout.max_fault_retries,
        max_running=rollout.max_batch_size,
    )


def eval_sampling(config: Config) -> SamplingParams:
    """How evaluation samples."""
    return SamplingParams(
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        top_k=config.eval.top_k,
        presence_penalty=config.eval.presence_penalty,
    )


def limits_of(parts: Parts, phase: RolloutConfig | EvalConfig) -> RolloutLimits:
    """What ends a dialogue in training (`config.rollout`) or in evaluation (`config.eval`)."""
    return RolloutLimits(
        max_tool_turns=phase.max_tool_turns,
        max_response_tokens=phase.max_response_tokens,
        max_context_tokens=context_length(parts.model_path),
        time_limit_s=parts.config.rollout.time_limit_s,
        reward_timeout_s=parts.config.data.reward_timeout_s if parts.config.data.reward else None,
    )


def _prepare_torch(config: Config) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    random.seed(config.run.seed)
    torch.manual_seed(config.run.seed)
    # On a GPU it would refuse kernels that have no deterministic form; on a CPU it costs little.
    torch.use_deterministic_algorithms(config.run.device == "cpu" or not torch.cuda.is_available())


# -- data -------------------------------------------------------------------------------------------------------------


def load_questions(parts: Parts, source: str, *, max_rows: int | None) -> tuple[Problem, ...]:
    """Questions of a file or of the mini task, checked against the tools and rewards of the run. Raises `DataError`."""
    if source.startswith(f"{MINI}:"):
        problems = mini.problems(source.removeprefix(f"{MINI}:"), store=parts.store, num_questions=max_rows)
    else:
        with counting(f"rows of {Path(source).name} read") as progress:
            problems = load_problems(
                Path(source),
                store=parts.store,
                system_prompt=parts.config.data.system_prompt,
                max_rows=max_rows,
                progress=progress,
            )
    if not problems:
        raise DataError(f"{source}: holds no questions.")
    for problem in problems:
        _check_tools(f"question {problem.id}", problem.tools, parts.executor.tools)
        _check_images(f"question {problem.id}", problem.messages, parts.preprocessor)
        parts.reward_for(problem)
    specs = {name: tool.spec for name, tool in parts.executor.tools.items()}
    check_questions(problems, renderer=parts.renderer, tools=specs, max_tokens=context_length(parts.model_path))
    return problems


def load_demonstrations(parts: Parts, source: str, *, max_rows: int | None) -> tuple[Conversation, ...]:
    """Conversations of a file or of the mini task, checked against the tools of the run. Raises `DataError`."""
    if source.startswith(f"{MINI}:"):
        build = functools.partial(mini.conversations, source.removeprefix(f"{MINI}:"), store=parts.store)
        conversations = build() if max_rows is None else build(num_rows=max_rows)
    else:
        with counting(f"rows of {Path(source).name} read") as progress:
            conversations = load_conversations(Path(source), store=parts.store, max_rows=max_rows, progress=progress)
    if not conversations:
        raise DataError(f"{source}: holds no conversations.")
    for conversation in conversations:
        _check_tools(f"conversation {conversation.id}", conversation.tools, parts.executor.tools)
        _check_images(f"conversation {conversation.id}", conversation.messages, parts.preprocessor)
    specs = {name: tool.spec for name, tool in parts.executor.tools.items()}
    check_conversations(
        conversations, renderer=parts.renderer, tools=specs, max_tokens=context_length(parts.model_path)
    )
    return conversations


def _check_tools(owner: str, names: Iterable[str] | None, tools: Mapping[str, Tool]) -> None:
    unknown = [name for name in names or () if name not in tools]
    if unknown:
        raise DataError(
            f"{owner}: asks for the tool {unknown[0]!r}, but data.tools offers {', '.join(tools) or 'none'}. "
            "Add it there or take it out of the row."
        )


def _check_images(owner: str, messages: Sequence[Message], preprocessor: ImagePreprocessor) -> None:
    for image in (image for message in messages for image in message.images):
        try:
            preprocessor.grid_thw(image)
        except DataError as error:
            raise DataError(f"{owner}: {error}") from error

"""What plays the dialogues of a benchmark: a checkpoint in this process, or a model behind an endpoint."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from axpo.cli.benchmark_config import BenchmarkConfig, EndpointConfig, JudgeConfig
from axpo.cli.build import build_engine, build_parts, eval_sampling, limits_of, resolve_model_path
from axpo.cli.endpoint_check import TIMEOUT_S as CHECK_TIMEOUT_S
from axpo.cli.endpoint_check import CheckedEndpoint, check_endpoint
from axpo.cli.rows import check_questions, context_length
from axpo.cli.tools import build_executor, check_tools
from axpo.dialogue import Transcript
from axpo.engines.connections import check_reachable
from axpo.engines.http import HttpChatModel
from axpo.engines.wire import WireOptions
from axpo.evaluation.sampling import Sampler
from axpo.files import write_atomically
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.rollout.bounds import shorten_by_bytes
from axpo.rollout.calls import read_call
from axpo.rollout.chat import ChatSetup, run_chat
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.journal import TurnJournal
from axpo.rollout.loop import RolloutLimits, RolloutSetup, run_rollout
from axpo.rollout.rendering import QwenRenderer
from axpo.rollout.transcripts import transcript_of
from axpo.types import Problem


@contextlib.asynccontextmanager
async def open_sampler(
    config: BenchmarkConfig,
    *,
    folder: Path,
    store: ContentImageStore,
    problems: Sequence[Problem],
    say: Callable[[str], None],
) -> AsyncGenerator[Sampler]:
    """The sampler that `config` names, checked against the questions or by a request to the endpoint.

    `say` is told what the user should know about the endpoint. Raises `ConfigError`, `DataError`, `EngineFault`.
    """
    if config.endpoint.url is None:
        async with _open_checkpoint(config, store=store, problems=problems) as checkpoint:
            yield checkpoint
    else:
        async with _open_endpoint(config, config.endpoint.url, folder=folder, store=store, say=say) as endpoint:
            yield endpoint


# -- a checkpoint -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSampler:
    """Dialogues in tokens, by the loop that training uses."""

    setup: RolloutSetup
    preprocessor: ImagePreprocessor

    async def sample(self, problem: Problem, *, rollout_id: str, seed: int) -> Transcript:
        """One whole dialogue."""
        rollout = await run_rollout(problem, setup=self.setup, rollout_id=rollout_id, seed=seed)
        return transcript_of(rollout, problem, renderer=self.setup.renderer)

    def effective_px(self, problem: Problem, transcript: Transcript) -> int | None:
        """Exactly: the pixels of the pictures as the model's processor scales them."""
        grids = [self.preprocessor.grid_thw(image) for image in problem.images]
        return sum(height * width for _, height, width in grids) * self.preprocessor.patch_size**2

    def cost_usd(self, transcript: Transcript) -> float | None:
        """Nothing that anybody billed."""
        return None

    def forget(self, rollout_id: str) -> None:
        """Nothing was kept."""


@contextlib.asynccontextmanager
async def _open_checkpoint(
    config: BenchmarkConfig, *, store: ContentImageStore, problems: Sequence[Problem]
) -> AsyncGenerator[CheckpointSampler]:
    parts = build_parts(config, store=store)
    with contextlib.closing(parts.executor):
        check_tools(parts.executor)
        specs = {name: tool.spec for name, tool in parts.executor.tools.items()}
        check_questions(problems, renderer=parts.renderer, tools=specs, max_tokens=context_length(parts.model_path))
        with contextlib.closing(build_engine(parts)) as engine:
            setup = RolloutSetup(
                engine=engine,
                renderer=parts.renderer,
                executor=parts.executor,
                reward_for=lambda problem: lambda final_text, problem: 0.0,  # judged in a pass of its own
                store=store,
                limits=limits_of(parts, config.eval),
                sampling=eval_sampling(config),
                max_running=config.rollout.max_batch_size,
            )
            yield CheckpointSampler(setup=setup, preprocessor=parts.preprocessor)


# -- an endpoint ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSampler:
    """Dialogues in messages, with a model behind an OpenAI-compatible service."""

    setup: ChatSetup
    model: HttpChatModel
    endpoint: EndpointConfig

    async def sample(self, problem: Problem, *, rollout_id: str, seed: int) -> Transcript:
        """One whole dialogue; turns that were answered before the process died are not asked again."""
        return await run_chat(problem, setup=self.setup, rollout_id=rollout_id, seed=seed)

    def effective_px(self, problem: Problem, transcript: Transcript) -> int | None:
        """A bound: what was sent, and all tokens of the first prompt as if every one of them stood for a picture."""
        sent_px = self.model.effective_px(problem.images)
        tokens = transcript.first_prompt_tokens
        return sent_px if tokens is None else min(sent_px, tokens * self.endpoint.px_per_token)

    def cost_usd(self, transcript: Transcript) -> float | None:
        """By the prices of the configuration; None without."""
        prices = (self.endpoint.usd_per_million_prompt_tokens, self.endpoint.usd_per_million_completion_tokens)
        if prices[0] is None or prices[1] is None:
            return None
        usage = transcript.usage
        return (usage.prompt_tokens * prices[0] + usage.completion_tokens * prices[1]) / 1e6

    def forget(self, rollout_id: str) -> None:
        """Its turns leave the journal."""
        if self.setup.journal is not None:
            self.setup.journal.forget(rollout_id)


@contextlib.asynccontextmanager
async def _open_endpoint(
    config: BenchmarkConfig, url: str, *, folder: Path, store: ContentImageStore, say: Callable[[str], None]
) -> AsyncGenerator[EndpointSampler]:
    endpoint = config.endpoint
    executor = build_executor(config, shorten=shorten_by_bytes)
    journal = TurnJournal(folder / "journal.jsonl", store=store, pictures=folder / "images")
    with contextlib.closing(executor), contextlib.closing(journal):
        check_tools(executor)
        await check_reachable(url)
        options = WireOptions(dialect="openai" if endpoint.dialect == "openai" else "vllm")
        if endpoint.check:
            checked = await _check(config, url, executor, store)
            record = {name: getattr(checked, name) for name in ("prompt_tokens", "expected_prompt_tokens", "notes")}
            record |= {"dialect": checked.options.dialect, "has_open_thinking": checked.options.has_open_thinking}
            write_atomically(folder / "endpoint.json", [json.dumps(record)])
            for note in checked.notes:
                say(note)
            options = checked.options
        model = open_chat_model(url, config.model.path, endpoint, store=store, options=options)
        setup = ChatSetup(
            model=model,
            executor=executor,
            store=store,
            limits=RolloutLimits(
                max_tool_turns=config.eval.max_tool_turns,
                max_response_tokens=config.eval.max_response_tokens,
                time_limit_s=config.rollout.time_limit_s,
            ),
            sampling=eval_sampling(config),
            journal=journal,
        )
        try:
            yield EndpointSampler(setup=setup, model=model, endpoint=endpoint)
        finally:
            await model.close()


async def _check(
    config: BenchmarkConfig, url: str, executor: ToolExecutor, store: ContentImageStore
) -> CheckedEndpoint:
    endpoint, renderer = config.endpoint, None
    if endpoint.checkpoint is not None:
        path = resolve_model_path(endpoint.checkpoint)
        renderer = QwenRenderer.from_pretrained(path, preprocessor=ImagePreprocessor.from_pretrained(path))
    # no retries: the user learns within seconds that a server is down or broken
    hasty = endpoint.model_copy(update={"max_retries": 0, "timeout_s": min(endpoint.timeout_s, CHECK_TIMEOUT_S)})
    return await check_endpoint(
        lambda options: open_chat_model(url, config.model.path, hasty, store=store, options=options),
        dialect=endpoint.dialect,
        tools=[tool.spec for tool in executor.tools.values()],
        sampling=eval_sampling(config),
        max_tokens=config.eval.max_response_tokens,
        max_image_px=endpoint.max_image_px,
        store=store,
        renderer=renderer,
    )


def open_chat_model(
    url: str,
    model: str,
    service: EndpointConfig | JudgeConfig,
    *,
    store: ContentImageStore,
    options: WireOptions | None = None,
) -> HttpChatModel:
    """The client of the service that plays dialogues or judges. Raises `ConfigError`."""
    return HttpChatModel(
        url,
        model,
        store=store,
        read_call=read_call,
        api_key_env=service.api_key_env,
        timeout_s=service.timeout_s,
        max_retries=service.max_retries,
        max_concurrent=service.max_concurrent,
        max_image_px=service.max_image_px if isinstance(service, EndpointConfig) else None,
        options=options,
        extra_body=service.extra_body,
        omit=service.omit,
    )

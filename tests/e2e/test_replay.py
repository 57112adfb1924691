"""A run's searches, recorded against a service, replayed without it: the same rollouts at the same seed."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.cli.tools import build_tools
from axpo.engines.hf import HfEngine
from axpo.images import ContentImageStore
from axpo.models.loading import load_model
from axpo.models.preprocessing import ImagePreprocessor
from axpo.rewards import REWARDS
from axpo.rollout.collect import sample_groups
from axpo.rollout.executor import ToolExecutor
from axpo.rollout.loop import RolloutLimits, RolloutSetup
from axpo.rollout.rendering import QwenRenderer
from axpo.tasks import mini
from axpo.tools.search import SearchTool
from axpo.types import Rollout, SamplingParams, ToolResult
from search_servers import KEY, Reply, Request, Server, serving


def answer(request: Request) -> Reply:
    """Tavily, if it knew the rules of the games."""
    query = request.json["query"]
    results = [
        {"title": row["title"], "url": f"https://games.example/{row['id']}", "content": row["text"]}
        for row in mini.corpus()
        if row["title"] == query
    ]
    return Reply(body={"results": results[: request.json["max_results"]]})


def sample(server: Server, cache: Path, mode: Any) -> tuple[Rollout, ...]:
    """Four rollouts of four questions about games."""
    checkpoint = mini.checkpoint_path()
    store = ContentImageStore()
    preprocessor = ImagePreprocessor.from_pretrained(checkpoint)
    renderer = QwenRenderer.from_pretrained(checkpoint, preprocessor=preprocessor)
    tool = SearchTool(backend="tavily", url=server.url, cache=str(cache), cache_mode=mode)
    engine = HfEngine(
        load_model(checkpoint, dtype="float32", device=torch.device("cpu")),
        preprocessor=preprocessor,
        store=store,
        banned_token_ids=renderer.banned_token_ids,
        stop_token_ids=renderer.stop_token_ids,
    )
    setup = RolloutSetup(
        engine=engine,
        renderer=renderer,
        executor=ToolExecutor(tools={**build_tools(["image_zoom_in", "python"], {}), "search": tool}),
        reward_for=lambda problem: REWARDS[problem.answer_kind],
        store=store,
        limits=RolloutLimits(max_tool_turns=2, max_response_tokens=160),
        sampling=SamplingParams(),
    )
    problems = mini.problems("lookup_train", store=store, num_questions=4)
    try:
        groups = asyncio.run(sample_groups(problems, setup=setup, group_size=4, seed=3, tag="test")).groups
    finally:
        engine.close()
        setup.executor.close()
    return tuple(rollout for group in groups for rollout in group.rollouts)


def timeless(rollout: Rollout) -> Rollout:
    """Without what a clock or the cache decides."""

    def strip(result: ToolResult) -> ToolResult:
        return dataclasses.replace(result, wall_time_s=0.0, queue_time_s=0.0, is_cached=False)

    results = tuple(strip(result) for result in rollout.tool_results)
    logprobs = (0.0,) * len(rollout.token_ids)
    return dataclasses.replace(rollout, tool_results=results, wall_time_s=0.0, behavior_logprobs=logprobs)


def test_a_recorded_run_repeats_without_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", KEY)
    cache = tmp_path / "searches.sqlite"
    with serving(answer) as server:
        recorded = sample(server, cache, "record")
        num_requests = len(server.requests)
    assert num_requests > 0, "the mini model searches"
    monkeypatch.delenv("TAVILY_API_KEY")
    replayed = sample(server, cache, "replay")
    assert len(server.requests) == num_requests
    assert [timeless(rollout) for rollout in replayed] == [timeless(rollout) for rollout in recorded]
    for again, once in zip(replayed, recorded, strict=True):  # which rollouts share a batch differs
        assert again.behavior_logprobs == pytest.approx(once.behavior_logprobs, abs=1e-4)
    results = [result for rollout in replayed for result in rollout.tool_results if result.failure is None]
    searches = [result for result in results if result.call.name == "search"]
    assert searches and all(result.is_cached for result in searches)

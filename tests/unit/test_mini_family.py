"""Distances and look-ups of the mini family: what a demonstration says is what the tool answers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import ConfigError
from axpo.images import ContentImageStore
from axpo.protocols import Tool, ToolContext
from axpo.rewards import REWARDS
from axpo.tasks import mini
from axpo.tasks.mini import distances, lookups
from axpo.tasks.mini.questions import SPLITS
from axpo.tasks.mini.scenes import sample_scene
from axpo.tools.python_exec import PythonTool
from axpo.tools.search import SearchTool, build_index


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Tool]]:
    folder = tmp_path_factory.mktemp("mini")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mini.corpus()))
    build_index(folder / "corpus.jsonl", folder / "index")
    made: dict[str, Any] = {"search": SearchTool(index=str(folder / "index")), "python": PythonTool()}
    yield made
    for tool in made.values():
        tool.close()


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_asks_what_its_reward_can_judge(split: str) -> None:
    problems = mini.problems(split, store=ContentImageStore(), num_questions=3)
    assert len({problem.id for problem in problems}) == 3
    for problem in problems:
        reward = REWARDS[problem.answer_kind]
        assert reward(f"<answer>{problem.answer}</answer>", problem) == 1.0
        assert reward("<answer>nothing</answer>", problem) == 0.0


def test_mixed_questions_take_the_categories_in_turn() -> None:
    problems = mini.problems("mixed_eval", store=ContentImageStore(), num_questions=6)
    assert [problem.metadata["category"] for problem in problems] == ["perception", "reasoning", "search"] * 2


def test_held_out_questions_ask_about_games_that_training_never_names() -> None:
    learnt, held_out = set(lookups.games(held_out=False)), set(lookups.games(held_out=True))
    assert not learnt & held_out
    for problem in mini.problems("lookup_eval", store=ContentImageStore(), num_questions=5):
        assert problem.metadata["game"] in held_out


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ConfigError, match="mini:evil: there is no such split; there are train, eval"):
        mini.problems("evil", store=ContentImageStore())
    with pytest.raises(ConfigError, match=r"mini:mixed_eval: there are demonstrations for mini:train"):
        mini.conversations("mixed_eval", store=ContentImageStore())


def test_demonstrated_results_are_what_the_tools_return(tools: Mapping[str, Tool]) -> None:
    conversations = mini.conversations("mixed_train", store=ContentImageStore(), num_rows=120)
    pairs = [
        (turn.tool_calls[0], result)
        for conversation in conversations
        for turn, result in zip(conversation.messages, conversation.messages[1:], strict=False)
        if turn.tool_calls and turn.tool_calls[0].name in tools
    ]
    assert {call.name for call, _ in pairs} == {"python", "search"}

    async def answers() -> list[Any]:
        context = ToolContext(rollout_id="r", images=[], store=ContentImageStore())
        return [await tools[call.name].run(call, context) for call, _ in pairs]

    assert asyncio.run(answers()) == [result.content for _, result in pairs]


def test_precise_points_measure_the_right_distance() -> None:
    right = 0
    for seed in range(200):
        rng = random.Random(seed)
        first, second, _ = sample_scene(rng, held_out=False).cards
        messages = distances.demonstrate(first, second, rng, tool_frac=1.0, jitter=0.0)
        right += f"<answer>{distances.distance(first, second)}</answer>" == messages[-1].text
    assert right > 180, "coordinates are multiples of ten thousandths: a few distances lie at the edge of a tenth"


def test_a_guess_by_colour_is_right_about_half_the_time() -> None:
    games = lookups.games(held_out=True)
    favourite = dict(zip(sorted(lookups.COLORS), lookups.PLAYERS, strict=True))
    hits = [lookups.player(game, color) == favourite[color] for game in games for color in favourite]
    assert 0.45 < sum(hits) / len(hits) < 0.65


def test_the_corpus_holds_the_rule_behind_every_answer(tmp_path: Path) -> None:
    rules = {row["id"]: row["text"] for row in mini.corpus()}
    for problem in mini.problems("lookup_train", store=ContentImageStore(), num_questions=20):
        rule = rules[f"{problem.metadata['game']}-{problem.metadata['color']}"]
        assert rule == f"The {problem.answer} plays the {problem.metadata['color']} card."

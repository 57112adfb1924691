"""Probes: what is sampled, what is counted, and what is said about it."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axpo.algo.example import build_group
from axpo.algo.prefixes import thinking_prefixes
from axpo.engines.scripted import ScriptedEngine
from axpo.errors import DataError, EngineFault, QuotaError
from axpo.evaluation.call_judge import CallJudge
from axpo.evaluation.probe_numbers import (
    MALFORMED,
    CallCluster,
    FreshOutcome,
    PrefixOutcome,
    ProbeNumbers,
    measure,
)
from axpo.evaluation.probe_text import ProbeCounts, render, verdict
from axpo.evaluation.probes import (
    choose_prefixes,
    fresh_outcomes,
    judge_outcomes,
    prefix_outcomes,
    probed_problems,
    sample_fresh,
    sample_prefixes,
)
from axpo.evaluation.rank_correlation import clustered_spearman, spearman
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.protocols import ChatReply, ChatRequest
from axpo.rollout.executor import ToolExecutor, ToolLimits
from axpo.rollout.loop import RolloutLimits, RolloutSetup
from axpo.rollout.rendering import QwenRenderer
from axpo.rollout.seeding import derive_seed
from axpo.tools.fakes import EchoTool
from axpo.types import Content, GenerationRequest, Message, Problem, SamplingParams

CALL = "hm\n</think>\n\n<tool_call>\n{}\n</tool_call><|im_end|>"
ANSWER = "so\n</think>\n\n<answer>{}</answer><|im_end|>"


def echo(text: str) -> str:
    return f'{{"name": "echo", "arguments": {{"text": "{text}"}}}}'


# -- sampling ---------------------------------------------------------------------------------------------------------


class World:
    """A policy whose calls are scripted by rollout id, and who is right when the tool says gold."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoTokenizer

        preprocessor = ImagePreprocessor.from_pretrained(checkpoint)
        self.renderer = QwenRenderer.from_pretrained(checkpoint, preprocessor=preprocessor)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def setup(self, first_turns: Mapping[str, str], *, lost: Sequence[str] = ()) -> RolloutSetup:
        by_seed = {derive_seed(derive_seed(0, name, 0), 0): (name, turn) for name, turn in first_turns.items()}
        opening = self.encode("<tool_call>")[0]

        def reply(request: GenerationRequest) -> str:
            if request.seed not in by_seed:  # a later turn
                # the last result decides
                result = self.renderer.decode(request.token_ids).rpartition("<tool_response>")[2]
                return ANSWER.format("right" if "gold" in result else "wrong")
            name, turn = by_seed[request.seed]
            if name in lost:
                raise EngineFault("gone")
            return turn.split("<tool_call>")[1] if request.token_ids[-1] == opening else turn

        return RolloutSetup(
            engine=ScriptedEngine(reply, encode=self.encode),
            renderer=self.renderer,
            executor=ToolExecutor(tools={"echo": EchoTool()}, default_limits=ToolLimits(backoff_s=0.0)),
            reward_for=lambda problem: lambda text, _: float("right" in text),
            store=ContentImageStore(),
            limits=RolloutLimits(max_tool_turns=3, max_response_tokens=2000),
            sampling=SamplingParams(),
            max_fault_retries=0,
        )


@pytest.fixture(scope="session")
def world(tiny_checkpoint: Path) -> World:
    return World(tiny_checkpoint)


def problem(name: str, **metadata: Any) -> Problem:
    message = Message(role="user", content=(Content(text=f"Which, {name}?"),))
    return Problem(id=name, messages=(message,), answer="right", metadata=metadata)


def script() -> dict[str, str]:
    """q0: one tool-using sibling of two, wrong. q1: its tool-using sibling is right. q2: calls badly, wrong."""
    turns = {
        "step-0/q0/0": CALL.format(echo("lead bar")),
        "step-0/q0/1": ANSWER.format("right"),
        "step-0/q1/0": CALL.format(echo("gold")),
        "step-0/q1/1": ANSWER.format("wrong"),
        "step-0/q2/0": CALL.format("{"),
        "step-0/q2/1": ANSWER.format("wrong"),
    }
    bodies = (echo("gold bar"), "{", echo("the bar of gold"), echo("silver bar"))
    for source in ("step-0/q0/0", "step-0/q2/0"):
        turns |= {f"{source}+{k}": CALL.format(body) for k, body in enumerate(bodies)}
    fresh = (CALL.format(echo("gold")), CALL.format(echo("lead")), ANSWER.format("right"), ANSWER.format("wrong"))
    for name in ("q0", "q2"):
        turns |= {f"fresh/{name}/{k}": turn for k, turn in enumerate(fresh)}
    return turns


PROBLEMS = (problem("q0", cluster="picture"), problem("q1"), problem("q2"))


def sample(setup: RolloutSetup, **options: Any) -> Any:
    given = {"group_size": 2, "num_continuations": 4, "max_prefixes": 8, "seed": 0} | options
    return sample_prefixes(PROBLEMS, setup=setup, **given)


def test_failed_prefixes_are_continued_and_their_calls_clustered(world: World) -> None:
    setup = world.setup(script())
    totals: list[int] = []
    step = sample(setup, on_total=totals.append)
    assert totals == [6, 14]
    assert (step.plan.num_triggered, step.plan.num_candidates, step.num_dropped) == (2, 2, 0)
    assert [p.id for p in probed_problems(step, PROBLEMS)] == ["q0", "q2"]
    outcomes = prefix_outcomes(step.continuations, PROBLEMS, setup=setup, num_continuations=4)
    [first, second] = sorted(outcomes, key=lambda outcome: outcome.problem_id)
    assert (first.tool, first.question_cluster, first.num_lost) == ("echo", "picture", 0)
    assert (second.tool, second.question_cluster) == (MALFORMED, "q2")
    for outcome in (first, second):
        assert outcome.confidence == pytest.approx(math.exp(-0.5))
        assert [(c.num_calls, c.num_correct, c.is_malformed) for c in outcome.clusters] == [
            (2, 2, False),
            (1, 0, True),
            (1, 0, False),
        ]
        assert outcome.clusters[0].example == echo("gold bar")
        assert (outcome.num_continuations, outcome.num_correct) == (4, 2)


def test_fresh_rollouts_are_counted_with_and_without_a_tool(world: World) -> None:
    setup = world.setup(script(), lost=["fresh/q2/1"])
    sampled = sample_fresh([PROBLEMS[0], PROBLEMS[2]], setup=setup, num_rollouts=4, seed=0)
    fresh = fresh_outcomes(sampled.groups, num_rollouts=4)
    assert fresh["q0"] == FreshOutcome(
        problem_id="q0", num_rollouts=4, num_tool=2, num_correct=2, num_correct_tool=1, num_lost=0
    )
    assert fresh["q2"] == FreshOutcome(
        problem_id="q2", num_rollouts=3, num_tool=1, num_correct=2, num_correct_tool=1, num_lost=1
    )


def test_a_continuation_that_was_lost_is_counted_and_is_neither_right_nor_wrong(world: World) -> None:
    setup = world.setup(script(), lost=["step-0/q0/0+1"])
    step = sample(setup)
    outcomes = prefix_outcomes(step.continuations, PROBLEMS, setup=setup, num_continuations=4)
    first = next(outcome for outcome in outcomes if outcome.problem_id == "q0")
    assert step.num_dropped == 1
    assert (first.num_lost, first.num_continuations, first.num_correct) == (1, 3, 2)


@pytest.mark.parametrize(
    "turn",
    [CALL.format(echo("x" * 4000)), CALL.replace("\n</tool_call>", "").format(echo("gold bar"))],
    ids=["by the token limit", "by its turn's end"],
)
def test_a_call_that_was_never_closed_is_malformed(world: World, turn: str) -> None:
    turns = script() | {"step-0/q0/0+0": turn}
    setup = world.setup(turns)
    outcomes = prefix_outcomes(sample(setup).continuations, PROBLEMS, setup=setup, num_continuations=4)
    first = next(outcome for outcome in outcomes if outcome.problem_id == "q0")
    assert [(c.num_calls, c.is_malformed) for c in first.clusters] == [(2, True), (1, False), (1, False)]


def test_no_questions_and_questions_of_one_id_are_refused(world: World) -> None:
    setup = world.setup(script())
    for problems in ((), (PROBLEMS[0], PROBLEMS[0])):
        with pytest.raises(DataError, match="unique ids"):
            sample_prefixes(problems, setup=setup, group_size=2, num_continuations=4, max_prefixes=1, seed=0)


def test_prefixes_are_chosen_breadth_first_at_random_and_in_no_order_of_theirs() -> None:
    groups = [build_group(f"q{n}", tool=[0.0] * size) for n, size in enumerate((4, 1, 4, 0))]
    candidates = [thinking_prefixes(group) for group in groups]

    def chosen(given: Sequence[Any], number: int, seed: int) -> list[str]:
        return [p.source.id for p in choose_prefixes(given, max_prefixes=number, seed=seed)]

    assert {name.split("/")[0] for name in chosen(candidates, 3, 0)} == {"q0", "q1", "q2"}
    assert sorted(chosen(candidates, 99, 0)) == sorted(p.source.id for of in candidates for p in of)
    assert chosen([of[::-1] for of in candidates[::-1]], 5, 0) == chosen(candidates, 5, 0)
    firsts = {name for seed in range(40) for name in chosen(candidates, 3, seed)}
    assert len(firsts) == 9, "not the least confident of a question only"


# -- numbers ----------------------------------------------------------------------------------------------------------


def outcome(
    name: str, clusters: Sequence[tuple[int, int]], *, confidence: float = 0.5, question: str = "", **more: Any
) -> PrefixOutcome:
    question = question or name.split("/")[0]
    return PrefixOutcome(
        source_id=name,
        problem_id=question,
        question_cluster=question,
        confidence=confidence,
        num_tokens=7,
        num_lost=0,
        clusters=tuple(
            CallCluster(num_calls=calls, num_correct=right, is_malformed=False, example=f"{name}.{index}")
            for index, (calls, right) in enumerate(clusters)
        ),
        **({"tool": "zoom"} | more),
    )


def fresh_of(name: str, *, tool_right: int, right: int, number: int = 4) -> FreshOutcome:
    return FreshOutcome(
        problem_id=name, num_rollouts=number, num_tool=2, num_correct=right, num_correct_tool=tool_right, num_lost=0
    )


THREE = (
    outcome("q0/a", [(2, 2), (2, 0)]),
    outcome("q0/b", [(4, 0)]),
    outcome("q1/a", [(1, 1), (1, 0), (1, 0), (1, 0)]),
)
FRESH = {"q0": fresh_of("q0", tool_right=1, right=3), "q1": fresh_of("q1", tool_right=0, right=0)}


def test_recovery_of_hand_made_outcomes() -> None:
    recovery = measure(THREE, FRESH, num_continuations=4).recovery
    assert recovery.prefixes.estimate == pytest.approx(2 / 3)
    assert (recovery.questions.estimate, recovery.questions.num_groups) == (1.0, 2)
    expected = {
        # continued: (1/2 + 0 + 1/4) / 3; fresh: each prefix against its own question, 1/4 twice and 0
        1: (1 / 4, 1 / 6, 1 / 2),
        2: ((5 / 6 + 1 / 2) / 3, (1 / 2 + 1 / 2) / 3, 2 / 3),
        4: (2 / 3, 2 / 3, 2 / 3),
    }
    assert {
        row.k: (row.continued.estimate, row.fresh_tool.estimate, row.fresh_any.estimate) for row in recovery.pass_at
    } == {k: pytest.approx(values) for k, values in expected.items()}
    for row in recovery.pass_at:
        assert row.difference.estimate == pytest.approx(expected[row.k][0] - expected[row.k][1])
        assert row.difference.low is not None and row.difference.high is not None
        assert row.difference.low <= row.difference.estimate <= row.difference.high


def test_pass_at_more_than_there_are_is_left_out_not_guessed() -> None:
    short = outcome("q0/c", [(2, 2)])
    rows = {row.k: row for row in measure((*THREE, short), FRESH, num_continuations=4).recovery.pass_at}
    assert (rows[2].continued.denominator, rows[4].continued.denominator) == (4, 3)
    without = measure(THREE, {}, num_continuations=4).recovery
    assert without.pass_at[0].difference.estimate is None
    assert without.prefixes.denominator == 3


def test_diversity_of_hand_made_outcomes() -> None:
    of = measure(THREE, FRESH, num_continuations=4).diversity
    assert of.num_prefixes == 3
    assert of.clusters.estimate == pytest.approx((2 + 1 + 4) / 3)
    assert of.single_cluster.estimate == pytest.approx(1 / 3)
    assert of.largest_share.estimate == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert of.entropy.estimate == pytest.approx((0.5 + 0 + 1) / 3)
    assert of.clusters.num_groups == 2, "the question is the unit"


def test_numbers_by_tool_and_without_anything() -> None:
    numbers = measure((*THREE, outcome("q2/a", [(4, 4)], tool=MALFORMED)), FRESH, num_continuations=4)
    assert {tool: of.num_prefixes for tool, of in numbers.by_tool.items()} == {"malformed": 1, "zoom": 3}
    empty = measure((), {}, num_continuations=4)
    assert (empty.diversity.num_prefixes, empty.terciles, empty.by_tool) == (0, (), {})
    assert empty.recovery.prefixes.estimate is None
    nothing = measure((outcome("q0/a", []),), FRESH, num_continuations=4)
    assert (nothing.diversity.num_prefixes, nothing.recovery.num_prefixes) == (0, 0)


def test_malformed_calls_are_a_share_of_all_continuations() -> None:
    bad = CallCluster(num_calls=3, num_correct=0, is_malformed=True, example="{")
    first = replace(THREE[0], clusters=(*THREE[0].clusters, bad))
    assert measure((first, THREE[2]), FRESH, num_continuations=4).malformed.estimate == 3 / 11


def test_terciles_part_by_confidence_and_the_middle_takes_the_rest() -> None:
    prefixes = [outcome(f"q{n}/a", [(4, n)], confidence=n / 10) for n in (4, 1, 3, 0, 2)]
    thirds = measure(prefixes, {}, num_continuations=4).terciles
    assert [(t.name, t.min_confidence, t.max_confidence, t.recovery.num_prefixes) for t in thirds] == [
        ("least sure", 0.0, 0.0, 1),
        ("middle", 0.1, 0.3, 3),
        ("surest", 0.4, 0.4, 1),
    ]
    assert [t.recovery.prefixes.estimate for t in thirds] == [0.0, 1.0, 1.0]
    assert measure(prefixes[:2], {}, num_continuations=4).terciles == ()


def test_confidence_against_entropy_is_a_rank_correlation_over_prefixes() -> None:
    surer = [[(1, 0)] * 4, [(2, 0), (1, 0), (1, 0)], [(2, 0), (2, 0)], [(4, 0)]]
    prefixes = [outcome(f"q{n}/a", clusters, confidence=0.2 + n / 10) for n, clusters in enumerate(surer)]
    of = measure(prefixes, {}, num_continuations=4).correlation
    assert (of.interval.estimate, of.num_prefixes, of.num_questions) == (pytest.approx(-1.0), 4, 4)
    assert measure(prefixes[:2], {}, num_continuations=4).correlation.interval.low is None


def test_spearman_of_known_ranks() -> None:
    assert spearman([1, 2, 3], [1, 4, 9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(8 / math.sqrt(10 * 9.5))
    assert spearman([1, 2, 3], [2, 2, 2]) is None
    assert spearman([], []) is None
    with pytest.raises(DataError, match="one length"):
        spearman([1, 2], [1])


def test_the_interval_of_spearman_is_clustered() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=30)
    second = first + rng.normal(size=30)
    alone = clustered_spearman(list(first), list(second), [str(n) for n in range(30)])
    copied = clustered_spearman([*first] * 4, [*second] * 4, [str(n) for n in range(30)] * 4)
    assert (alone.low, alone.high) == (pytest.approx(copied.low), pytest.approx(copied.high)), "copies add nothing"
    assert alone.low is not None and alone.estimate is not None and alone.high is not None
    assert alone.low < alone.estimate < alone.high
    assert clustered_spearman([1, 2, 3], [1, 2, 3], ["a", "b", "b"]).low is None
    with pytest.raises(DataError, match="2 cluster labels for 3"):
        clustered_spearman([1, 2, 3], [1, 2, 3], ["a", "b"])


# -- words ------------------------------------------------------------------------------------------------------------


def counts_of(**given: int) -> ProbeCounts:
    usual = {
        "questions": 24, "siblings": 192, "siblings_lost": 0, "group_size": 8, "tool_using": 60,
        "questions_with_tool": 20, "triggered": 10, "candidates": 30, "prefixes": 30, "probed_questions": 10,
        "continuations": 480, "continuations_lost": 0, "num_continuations": 16, "fresh": 160, "fresh_lost": 0,
    }  # fmt: skip
    return ProbeCounts(**(usual | given))


def many(right: int, *, tool_right: int, kinds: int = 4) -> ProbeNumbers:
    sizes = [16 - kinds + 1, *[1] * (kinds - 1)]
    clusters = [(size, 0) for size in sizes]
    prefixes = [outcome(f"q{n}/a", [(sizes[0], right), *clusters[1:]], confidence=0.1 + n / 50) for n in range(30)]
    fresh = {f"q{n}": fresh_of(f"q{n}", tool_right=tool_right, right=8, number=16) for n in range(30)}
    return measure(prefixes, fresh, num_continuations=16)


@pytest.mark.parametrize(
    ("counts", "numbers", "words"),
    [
        ({"triggered": 0, "questions_with_tool": 0, "tool_using": 0}, (0, 0, 4), ["none of 192 rollouts calls a tool"]),
        ({"triggered": 0}, (0, 0, 4), ["every question on which a tool was called (20) has a right"]),
        ({}, (1, 0, 4), ["the call varies: 16 calls are of 4.0 kinds", "Continuing finds right tool use more often"]),
        ({}, (0, 1, 1), ["the call hardly varies", "Starting over finds right tool use more often"]),
        ({}, (0, 0, 4), ["0 % of 30 prefixes give one kind only", "cannot be told apart"]),
    ],
)
def test_the_verdict_says_what_was_found(
    counts: dict[str, int], numbers: tuple[int, int, int], words: list[str]
) -> None:
    right, tool_right, kinds = numbers
    text = verdict(counts_of(**counts), many(right, tool_right=tool_right, kinds=kinds))
    assert all(word in text for word in words), text
    assert text.count(". ") <= 1 and text.endswith(".")


def test_the_verdict_on_nothing_says_why() -> None:
    empty = measure((), {}, num_continuations=16)
    assert "leaves anything to sample" in verdict(counts_of(candidates=0, prefixes=0), empty)
    assert "all 480 continuations were lost" in verdict(counts_of(continuations=0, continuations_lost=480), empty)


def test_tables_show_every_number_and_no_markup_of_names() -> None:
    from rich.console import Console

    prefixes = [outcome(f"q{n}/a", [(12, 1), (4, 0)], confidence=n / 40, tool="[red]x") for n in range(20)]
    prefixes += [outcome("q9/b", [(16, 0)], tool=MALFORMED, judged_sizes=(16,))]
    fresh = {f"q{n}": fresh_of(f"q{n}", tool_right=1, right=8, number=16) for n in range(20)}
    shown = io.StringIO()
    console = Console(width=200, file=shown)
    for part in render(counts_of(continuations_lost=3), measure(prefixes, fresh, num_continuations=16)):
        console.print(part)
    text = shown.getvalue()
    words = "[red]x", "malformed", "joined by the judge", "Pass@16", "least sure", "rank correlation", "3 continuations"
    assert [word for word in words if word not in text] == []


# -- judge ------------------------------------------------------------------------------------------------------------


class FakeJudge:
    """Calls are the same when `same` says so; anything else of `replies` by the pair."""

    def __init__(self, replies: Mapping[tuple[str, str], str | Exception]) -> None:
        self.requests: list[str] = []
        self._replies = replies

    async def reply(self, request: ChatRequest) -> ChatReply:
        text = request.messages[0].text
        self.requests.append(text)
        pair = next((pair for pair in self._replies if f"A\n{pair[0]}\n" in text and f"B\n{pair[1]}\n" in text), None)
        reply = self._replies[pair] if pair else "DIFFERENT"
        if isinstance(reply, Exception):
            raise reply
        finish = "length" if reply.startswith("...") else "stop"
        return ChatReply(
            message=Message(role="assistant", content=(Content(text=reply[3 * (finish == "length") :]),)),
            finish_reason=finish,
        )

    async def close(self) -> None:
        pass


def judged(replies: Mapping[tuple[str, str], str | Exception], *examples: str) -> tuple[Any, CallJudge]:
    judge = CallJudge(FakeJudge(replies))
    return asyncio.run(judge.join("which {one}?", examples)), judge


def test_the_judge_joins_what_it_calls_the_same() -> None:
    groups, judge = judged({("a", "c"): " SAME\n"}, "a", "b", "c", "d{0}")
    assert groups == ((0, 2), (1,), (3,))
    assert (judge.counts.asked, judge.counts.failed) == (4, 0)  # ab, ac, ad, bd


@pytest.mark.parametrize("reply", ["same", "SAME.", "It is SAME", "", "...SAME", EngineFault("x"), QuotaError("x")])
def test_a_judge_that_does_not_keep_to_the_format_joins_nothing(reply: str | Exception) -> None:
    groups, judge = judged({("a", "b"): reply}, "a", "b")
    assert groups == ((0,), (1,))
    assert (judge.counts.asked, judge.counts.failed) == (1, 1)


def test_judged_numbers_stand_beside_ours_and_malformed_calls_stay_apart() -> None:
    bad = CallCluster(num_calls=1, num_correct=0, is_malformed=True, example="{")
    first = replace(THREE[2], clusters=(*THREE[2].clusters, bad))
    judge = CallJudge(FakeJudge({("q1/a.0", "q1/a.2"): "SAME"}))
    [joined] = asyncio.run(judge_outcomes([first], {"q1": "?"}, judge=judge))
    assert joined.judged_sizes == (2, 1, 1, 1)
    numbers = measure([joined], {}, num_continuations=5)
    assert numbers.judged_diversity is not None
    assert (numbers.diversity.clusters.estimate, numbers.judged_diversity.clusters.estimate) == (5.0, 4.0)

"""A run directory as training leaves it, made of real records and no model: for tests of what reads it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from axpo.algo import assign_credit, plan_resampling
from axpo.diagnostics.metrics import rollout_metrics
from axpo.diagnostics.recorder import RunRecorder, rollout_lines
from axpo.evaluation.outcomes import outcome_metrics, question_outcome
from axpo.images import ContentImageStore
from axpo.types import (
    Content,
    ContinuationGroup,
    FailureKind,
    ImageRef,
    Message,
    PrefixRef,
    Problem,
    Rollout,
    RolloutGroup,
    Segment,
    SegmentKind,
    StopReason,
    ThinkingPrefix,
    ToolCall,
    ToolFailure,
    ToolResult,
)

Part = tuple[SegmentKind, str]
LETTERS = "AEHKTX"
COLOURS = ("red", "green", "blue", "yellow")


@dataclass
class World:
    """Questions about small tags on big pictures, and a vocabulary that grows as texts come."""

    store: ContentImageStore
    vocabulary: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def encode(self, text: str) -> list[int]:
        words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
        for word in words:
            if word not in self.vocabulary:
                self.vocabulary.append(word)
        return [self.vocabulary.index(word) for word in words]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.vocabulary[index] for index in token_ids)

    def add_problem(self, rng: random.Random, *, question: str | None = None) -> Problem:
        colour, letter, index = rng.choice(COLOURS), rng.choice(LETTERS), len(self.problems)
        x, y = rng.randrange(120, 820), rng.randrange(120, 820)
        picture = self.store.add_image(draw_scene(rng, x, y, colour, letter))
        text = question or f"Which letter is on the {colour} tag?"
        problem = Problem(
            id=f"q{index}",
            messages=(Message(role="user", content=(Content(image=picture), Content(text=text))),),
            answer=letter,
            metadata={"target_box": [x, y, x + 55, y + 55], "cluster": f"picture-{index // 2}"},
        )
        self.problems.append(problem)
        return problem


def draw_scene(rng: random.Random, x: int, y: int, colour: str, letter: str, size: int = 640) -> Image.Image:
    """Soft hills with a small lettered tag; `x`, `y` in 0-1000."""
    scene = Image.new("RGB", (size, size), (rng.randrange(120, 200), rng.randrange(150, 210), 230))
    draw = ImageDraw.Draw(scene)
    for layer in range(5):
        base = size * (0.3 + 0.14 * layer)
        shade = (90 - 12 * layer, 140 - 18 * layer + rng.randrange(20), 80 - 10 * layer)
        ridge = [(px, base + 40 * math.sin(px / (50 + 20 * layer) + rng.random())) for px in range(0, size + 20, 20)]
        draw.polygon([(0, size), *ridge, (size, size)], fill=shade)
    scene = scene.filter(ImageFilter.GaussianBlur(2))
    left, top, side = x * size // 1000, y * size // 1000, 55 * size // 1000
    draw = ImageDraw.Draw(scene)
    draw.rectangle((left, top, left + side, top + side), fill=colour, outline="white", width=2)
    draw.text((left + side // 3, top + side // 5), letter, fill="white", font_size=side // 2)
    return scene


def crop(world: World, picture: ImageRef, box: Sequence[int]) -> ImageRef:
    image = world.store.load(picture)
    width, height = image.size
    pixels = [
        round(box[0] * width / 1000),
        round(box[1] * height / 1000),
        round(box[2] * width / 1000),
        round(box[3] * height / 1000),
    ]
    return world.store.add_image(image.crop(tuple(pixels)).resize((256, 256)))


def build_rollout(
    world: World,
    problem: Problem,
    rollout_id: str,
    parts: Sequence[Part],
    *,
    reward: float,
    results: Sequence[ToolResult] = (),
    prefix: PrefixRef | None = None,
    confidence: float = 0.5,
    stop_reason: StopReason = StopReason.ANSWERED,
) -> Rollout:
    tokens: list[int] = []
    logprobs: list[float] = []
    segments: list[Segment] = []
    for kind, text in parts:
        ids = world.encode(text)
        segments.append(Segment(kind=kind, start=len(tokens), stop=len(tokens) + len(ids)))
        tokens += ids
        logprobs += [math.log(confidence) if kind.is_sampled else 0.0] * len(ids)
    crops = [block.image for result in results for block in result.content if block.image is not None]
    return Rollout(
        id=rollout_id,
        problem_id=problem.id,
        token_ids=tuple(tokens),
        behavior_logprobs=tuple(logprobs),
        segments=tuple(segments),
        images=(*problem.images, *crops),
        stop_reason=stop_reason,
        final_text=parts[-1][1],
        reward=reward,
        tool_results=tuple(results),
        prefix=prefix,
        wall_time_s=0.4,
    )


def prompt_part(problem: Problem) -> Part:
    return SegmentKind.PROMPT, f"<|im_start|>user <|image_pad|> <|image_pad|> {problem.messages[0].text} <think>"


def direct_rollout(world: World, problem: Problem, rollout_id: str, rng: random.Random, accuracy: float) -> Rollout:
    is_right = rng.random() < accuracy
    letter = problem.answer if is_right else next(x for x in LETTERS if x != problem.answer)
    parts = [prompt_part(problem), (SegmentKind.THINKING, "I can tell from the colour alone. </think>")]
    parts.append((SegmentKind.ANSWER, f"<answer> {letter} </answer> <|im_end|>"))
    return build_rollout(world, problem, rollout_id, parts, reward=float(is_right))


def zoom_rollout(
    world: World,
    problem: Problem,
    rollout_id: str,
    rng: random.Random,
    jitter: float,
    *,
    prefix: ThinkingPrefix | None = None,
) -> Rollout:
    """Look, then answer: right exactly when the crop shows the tag."""
    x1, y1, x2, y2 = problem.metadata["target_box"]
    dx, dy = rng.gauss(0, jitter), rng.gauss(0, jitter)
    box = [max(0, min(1000, round(v))) for v in (x1 - 50 + dx, y1 - 50 + dy, x2 + 50 + dx, y2 + 50 + dy)]
    is_hit = box[0] <= x1 and box[1] <= y1 and box[2] >= x2 and box[3] >= y2
    call = ToolCall(id="call-0", name="image_zoom_in", arguments={"bbox_2d": box, "label": "tag"})
    if box[2] - box[0] < 60 or box[3] - box[1] < 60:
        failure = ToolFailure(kind=FailureKind.BAD_ARGUMENTS, message="bbox_2d must lie inside the picture.")
        result, seen = ToolResult(call=call, failure=failure), "Error: bbox_2d must lie inside the picture."
        is_hit = False
    else:
        shown = crop(world, problem.images[0], box)
        result, seen = ToolResult(call=call, content=(Content(image=shown),), wall_time_s=0.02), "<|image_pad|>"
    thought = f"The tag is small, I should zoom in on it ({rollout_id}). </think>"
    if prefix is not None:
        thought = world.decode(prefix.source.token_ids[slice(*_span(prefix.source, SegmentKind.THINKING))])
    letter = problem.answer if is_hit else "none"
    reading = "The crop shows it clearly. </think>" if is_hit else "It is not in the crop. </think>"
    parts: list[Part] = [
        prompt_part(problem),
        (SegmentKind.THINKING, thought),
        (SegmentKind.TOOL_OPEN, "<tool_call>"),
        (SegmentKind.TOOL_CALL, f'{{"name": "image_zoom_in", "arguments": {{"bbox_2d": {box}, "label": "tag"}}}}'),
        (SegmentKind.TOOL_CLOSE, "</tool_call>"),
        (SegmentKind.TEXT, "<|im_end|>"),
        (SegmentKind.TOOL_RESULT, f"<|im_start|>user <tool_response> {seen} </tool_response> <|im_start|>assistant"),
        (SegmentKind.THINKING, reading),
        (SegmentKind.ANSWER, f"<answer> {letter} </answer> <|im_end|>"),
    ]
    reference = PrefixRef(source_id=prefix.source.id, num_tokens=prefix.num_tokens) if prefix is not None else None
    return build_rollout(
        world,
        problem,
        rollout_id,
        parts,
        reward=float(is_hit),
        results=[result],
        prefix=reference,
        confidence=rng.uniform(0.3, 0.95),
    )


def _span(rollout: Rollout, kind: SegmentKind) -> tuple[int, int]:
    return next((segment.start, segment.stop) for segment in rollout.segments if segment.kind is kind)


def sample_group(
    world: World, problem: Problem, tag: str, rng: random.Random, *, size: int, tool_rate: float, jitter: float
) -> RolloutGroup:
    rollouts = [
        zoom_rollout(world, problem, f"{tag}-{problem.id}-{index}", rng, jitter)
        if rng.random() < tool_rate
        else direct_rollout(world, problem, f"{tag}-{problem.id}-{index}", rng, 0.45)
        for index in range(size)
    ]
    return RolloutGroup(problem_id=problem.id, rollouts=tuple(rollouts))


def write_run(
    folder: Path,
    *,
    method: str = "axpo",
    seed: int = 0,
    num_steps: int = 12,
    num_questions: int = 6,
    eval_steps: Sequence[int] = (0, 12),
    question: str | None = None,
) -> World:
    """Write a whole run directory. `method`: `axpo` or `grpo`; tool use rises or falls accordingly."""
    rng = random.Random(f"{method}-{seed}")
    world = World(store=ContentImageStore(folder / "images"))
    scenes = random.Random(1)
    problems = [world.add_problem(scenes, question=question) for _ in range(num_questions)]
    recorder = RunRecorder(folder, store=world.store, device="cpu")
    budget_frac = 0.25 if method == "axpo" else 0.0
    (folder / "config.toml").write_text(
        f'[run]\nseed = {seed}\noutput_dir = "{folder.name}"\n\n[model]\npath = "models/tiny"\n\n'
        f"[rollout]\nquestions_per_step = {num_questions}\ngroup_size = 8\n\n"
        f"[algorithm]\nresample_budget_frac = {budget_frac}\n\n[train]\nsteps = {num_steps}\n"
    )
    for step in range(num_steps + 1):
        progress = step / num_steps
        tool_rate = 0.28 + 0.7 * progress if method == "axpo" else max(0.0, 0.28 * (1 - 2.5 * progress))
        jitter = 75 - 40 * progress
        if step > 0:
            _write_step(recorder, world, problems, rng, step, tool_rate, jitter, budget_frac)
        if step in eval_steps:
            _write_eval(recorder, world, problems, rng, step, tool_rate, jitter)
    return world


def _write_step(
    recorder: RunRecorder,
    world: World,
    problems: Sequence[Problem],
    rng: random.Random,
    step: int,
    tool_rate: float,
    jitter: float,
    budget_frac: float,
) -> None:
    by_id = {problem.id: problem for problem in problems}
    groups = [
        sample_group(world, problem, f"s{step}", rng, size=8, tool_rate=tool_rate, jitter=jitter)
        for problem in problems
    ]
    plan = plan_resampling(groups, budget_frac=budget_frac, num_continuations=4)
    continuations = [
        ContinuationGroup(
            prefix=prefix,
            rollouts=tuple(
                zoom_rollout(
                    world, by_id[prefix.source.problem_id], f"{prefix.source.id}+{k}", rng, jitter, prefix=prefix
                )
                for k in range(4)
            ),
        )
        for prefix in plan.prefixes
    ]
    rows = assign_credit(groups, continuations)
    metrics = rollout_metrics(groups, continuations, plan, 0, problems=problems) | {
        "train/kl": 0.0004 * step * rng.uniform(0.8, 1.2),
        "engine/logprob_gap_mean": 2e-5 * rng.uniform(0.5, 1.5),
        "seconds/rollout": 0.6 + 0.2 * tool_rate,
        "seconds/resample": 0.25 * len(continuations) / 3,
        "seconds/train": 0.9,
    }
    lines = rollout_lines(
        step=step,
        phase="train",
        groups=groups,
        problems=problems,
        decode=world.decode,
        continuations=continuations,
        rows=rows,
    )
    recorder.record_step(step, metrics, lines)


def _write_eval(
    recorder: RunRecorder,
    world: World,
    problems: Sequence[Problem],
    rng: random.Random,
    step: int,
    tool_rate: float,
    jitter: float,
) -> None:
    groups = [
        sample_group(world, problem, f"e{step}", rng, size=4, tool_rate=tool_rate, jitter=jitter)
        for problem in problems
    ]
    outcomes = [
        question_outcome(problem.id, group.rollouts, metadata=problem.metadata, num_samples=4)
        for problem, group in zip(problems, groups, strict=True)
    ]
    lines = rollout_lines(step=step, phase="eval", groups=groups, problems=problems, decode=world.decode)
    recorder.record_eval(step, outcome_metrics(outcomes), lines)

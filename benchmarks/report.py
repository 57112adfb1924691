"""The report's numbers: how long it takes to write, how large it is, how fast it opens and filters in a browser.

    python benchmarks/report.py [--steps 200] [--repeats 5] [--keep DIR] [--record FILE]

Makes three runs (two seeds of one method, one of another) of 16 questions x 8 rollouts a step with resampling, pictures
of 1024 px, crops, some 300 tokens a rollout and two evaluations: 3 MB of records a step, 1.8 GB in all, in a temporary
folder. Writes their report, opens it in headless Chromium (`pip install playwright`, no download of a browser;
`--chromium PATH`), and prints what was measured beside each target, then one JSON object. About five minutes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from axpo.codec import to_json
from axpo.diagnostics.recorder import RolloutRecord
from axpo.images import ContentImageStore
from axpo.reports.html import write_report
from axpo.types import (
    Content,
    FailureKind,
    ImageRef,
    PrefixRef,
    Rollout,
    RowRole,
    Segment,
    SegmentKind,
    StopReason,
    ToolCall,
    ToolFailure,
    ToolResult,
)
from recording import describe_machine

METHODS = (("axpo", 0), ("axpo", 1), ("grpo", 0))
NUM_PROBLEMS = 480
QUESTIONS_PER_STEP, GROUP_SIZE, NUM_CONTINUATIONS = 16, 8, 4
CROPS_PER_PROBLEM = 8
NUM_SAMPLES = 4
WORDS = ("the", "small", "tag", "on", "left", "of", "picture", "shows", "a", "letter", "that", "I", "look", "closely")


def main() -> None:
    """Make the runs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="make the runs and the report here and leave them")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        runs = [folder / f"{method}-{seed}" for method, seed in METHODS]
        if not runs[-1].exists():
            make_runs(folder, args.steps)
        seconds = [timed(runs, folder / "report.html") for _ in range(args.repeats)]
        numbers = {
            "runs_mb": sum(path.stat().st_size for run in runs for path in run.rglob("*") if path.is_file()) / 1e6,
            "write_s": statistics.median(seconds),
            "page_mb": (folder / "report.html").stat().st_size / 1e6,
            **browse(folder / "report.html", args.chromium, args.repeats),
        }
    print_table(numbers)
    setting = {"steps": args.steps, "repeats": args.repeats, **describe_machine()}
    text = json.dumps({"benchmark": "report", **numbers, "setting": setting})
    print(text)
    if args.record is not None:
        args.record.write_text(text + "\n", encoding="utf-8")


def print_table(numbers: dict[str, Any]) -> None:
    """What was measured, and what was asked for."""
    rows = (
        ("report written, s", "write_s", 20),
        ("size of the page, MB", "page_mb", 15),
        ("opens, s", "open_s", 3),
        ("rollouts usable after opening, s", "rollouts_s", 3),
        ("slowest filter, ms", "filter_ms", 100),
    )
    for name, key, target in rows:
        met = numbers[key] < target
        print(f"{name:<40} {numbers[key]:>10,.2f}   below {target:,}{'' if met else '   NOT MET'}")


def timed(runs: list[Path], out: Path) -> float:
    """Seconds to write the report, the pictures beside it included."""
    started_s = time.perf_counter()
    write_report(runs, out)
    return time.perf_counter() - started_s


def browse(page_path: Path, chromium: str, repeats: int) -> dict[str, float]:
    """Seconds until the page and its rollouts can be used, milliseconds from a choice to the new list on screen."""
    from playwright.sync_api import sync_playwright

    opened: list[float] = []
    rollouts: list[float] = []
    filters: list[list[float]] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        for _ in range(repeats):
            page = browser.new_page()
            started_s = time.perf_counter()
            page.goto(page_path.resolve().as_uri())
            page.wait_for_selector("html[data-ready]")
            opened.append(time.perf_counter() - started_s)
            page.goto(f"{page_path.resolve().as_uri()}#rollouts")
            page.wait_for_selector(".talk")
            rollouts.append(time.perf_counter() - started_s)
            filters.append([page.evaluate(_CHOOSE, choice) for choice in _CHOICES])
            page.close()
        browser.close()
    return {
        "open_s": statistics.median(opened),
        "rollouts_s": statistics.median(rollouts),
        "filter_ms": max(statistics.median(times) for times in zip(*filters, strict=True)),
    }


_CHOICES = (
    ["reward", "right"],
    ["tool", "any"],
    ["failure", "bad_arguments"],
    ["state", "recovered"],
    ["state", "quiet"],
    ["state", ""],
    ["failure", ""],
    ["tool", ""],
    ["reward", ""],
    ["text", "letter"],
    ["run", "1"],
    ["from", "100"],
)
_CHOOSE = """([name, value]) => new Promise((done) => {
  const field = document.querySelector(`#filters [name=${name}]`);
  const started = performance.now();
  field.value = value;
  field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input", { bubbles: true }));
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)));
})"""


# -- runs -------------------------------------------------------------------------------------------------------------


def make_runs(folder: Path, num_steps: int) -> None:
    """Run folders with the records, the pictures and the metrics that training writes."""
    stores = [ContentImageStore(folder / f"{method}-{seed}" / "images") for method, seed in METHODS]
    pictures = [draw(number, stores) for number in range(min(NUM_PROBLEMS, num_steps * QUESTIONS_PER_STEP))]
    for method, seed in METHODS:
        run = folder / f"{method}-{seed}"
        (run / "rollouts").mkdir(parents=True)
        rng = random.Random(f"{method}{seed}")
        (run / "config.toml").write_text(_CONFIG.format(seed=seed, frac=0.25 if method == "axpo" else 0.0))
        with (run / "metrics.jsonl").open("w") as metrics:
            for step in range(1, num_steps + 1):
                lines = step_lines(step, method, rng, pictures)
                path = run / "rollouts" / f"train-{step:06d}.jsonl"
                path.write_text("".join(json.dumps(line) + "\n" for line in lines))
                metrics.write(json.dumps(step_metrics(step, num_steps, method, rng)) + "\n")
            for step in (0, num_steps):
                write_eval(run, step, rng, pictures)
                metrics.write(json.dumps({"kind": "eval", "step": step, "eval/samples": NUM_SAMPLES}) + "\n")


def draw(number: int, stores: Sequence[ContentImageStore]) -> tuple[ImageRef, ...]:
    """A picture of 1024 px with grain, and crops of it; into every store."""
    rng = random.Random(number)
    scene = Image.effect_noise((1024, 1024), 24).convert("RGB")
    shapes = ImageDraw.Draw(scene)
    for _ in range(60):
        x, y, side = rng.randrange(1000), rng.randrange(1000), rng.randrange(20, 260)
        shapes.ellipse((x, y, x + side, y + side), fill=tuple(rng.randrange(256) for _ in range(3)))
    corners = [(rng.randrange(750), rng.randrange(750)) for _ in range(CROPS_PER_PROBLEM)]
    images = [scene, *(scene.crop((x, y, x + 256, y + 256)) for x, y in corners)]
    refs: tuple[ImageRef, ...] = ()
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=85)
        found = [store.add_bytes(buffer.getvalue()) for store in stores]
        for store, ref in zip(stores, found, strict=True):
            store.persist(ref)
        refs = (*refs, found[0])
    return refs


def write_eval(run: Path, step: int, rng: random.Random, pictures: Sequence[tuple[ImageRef, ...]]) -> None:
    """An evaluation of 200 questions, 4 samples each."""
    path = run / "rollouts" / f"eval-{step:06d}.jsonl"
    with path.open("w") as file:
        for number in range(min(200, len(pictures))):
            for index in range(NUM_SAMPLES):
                line = build_record(step, number, index, rng, pictures[number], False, uses_tool=index % 2 == 0)
                file.write(json.dumps(line | {"phase": "eval", "credit": []}) + "\n")


def step_metrics(step: int, num_steps: int, method: str, rng: random.Random) -> dict[str, Any]:
    """What one step logs, roughly."""
    progress, noise = step / num_steps, lambda: rng.uniform(-0.03, 0.03)
    rate = 0.3 + (0.5 * progress if method == "axpo" else -0.25 * progress)
    shares = {
        "rollout/tool_use_rate": rate,
        "rollout/all_wrong_tool": 0.6 - 0.3 * progress,
        "rollout/all_wrong_tool_post": 0.4 - 0.3 * progress,
        "rollout/all_wrong_no_tool": 0.3,
        "reward/mean": 0.3 + 0.4 * progress,
        "reward/tool": 0.3 + 0.4 * progress,
        "reward/no_tool": 0.35 + 0.2 * progress,
        "resample/restore_rate": 0.5,
        "groups/zero_signal": 0.3,
        "tools/failure_rate": 0.1,
        "tools/image_zoom_in/use_rate": rate,
    }
    others = {
        "resample/used": 32,
        "resample/budget": 32,
        "length/response_mean": 300 + 50 * progress,
        "train/kl": 0.02 * progress,
        "engine/logprob_gap_mean": 2e-5,
        "seconds/rollout": 20.0,
        "seconds/resample": 5.0,
        "seconds/train": 30.0,
        "seconds/step": 56.0,
        "tools/image_zoom_in/calls": 50,
    }
    return {"kind": "train", "step": step, **{k: max(0, v + noise()) for k, v in shares.items()}, **others}


def step_lines(
    step: int, method: str, rng: random.Random, pictures: Sequence[tuple[ImageRef, ...]]
) -> Iterator[dict[str, Any]]:
    """The records of one step: siblings of each question, then continuations of every fourth."""
    continuations: list[dict[str, Any]] = []
    for place in range(QUESTIONS_PER_STEP):
        number = (step * QUESTIONS_PER_STEP + place) % len(pictures)
        is_triggered = place % 4 == 0
        for index in range(GROUP_SIZE):
            uses_tool = index % 2 == 0
            yield build_record(step, number, index, rng, pictures[number], is_triggered, uses_tool=uses_tool)
        if is_triggered and method == "axpo":
            continuations += [
                build_record(
                    step, number, k, rng, pictures[number], True, uses_tool=True, source=f"s{step}/q{number}/0"
                )
                for k in range(NUM_CONTINUATIONS)
            ]
    yield from continuations


def build_record(
    step: int,
    number: int,
    index: int,
    rng: random.Random,
    pictures: Sequence[ImageRef],
    is_triggered: bool,
    *,
    uses_tool: bool,
    source: str | None = None,
) -> dict[str, Any]:
    """One line of a rollouts file: 350 tokens of prompt, some 300 after it."""
    prompt = f"<|im_start|>system\n{' '.join(WORDS * 20)}<|im_end|>\n<|im_start|>user\n{'<|image_pad|>' * 64}"
    parts: list[tuple[SegmentKind, list[str]]] = [(SegmentKind.PROMPT, [prompt, *["x"] * 350])]
    parts.append((SegmentKind.THINKING, [f" {rng.choice(WORDS)}" for _ in range(120)]))
    results: list[ToolResult] = []
    if uses_tool:
        x, y = rng.randrange(700), rng.randrange(700)
        call = (
            f'{{"name": "image_zoom_in", "arguments": {{"bbox_2d": [{x}, {y}, {x + 200}, {y + 200}], "label": "tag"}}}}'
        )
        parts += [(SegmentKind.TOOL_OPEN, ["<tool_call>"]), (SegmentKind.TOOL_CALL, re.findall(r".{1,4}", call))]
        parts += [(SegmentKind.TOOL_CLOSE, ["</tool_call>"]), (SegmentKind.TOOL_RESULT, ["<|image_pad|>"] * 40)]
        parts.append((SegmentKind.THINKING, [f" {rng.choice(WORDS)}" for _ in range(80)]))
        asked = ToolCall(id="c0", name="image_zoom_in", arguments={"bbox_2d": [x, y, x + 200, y + 200], "label": "tag"})
        failure = ToolFailure(kind=FailureKind.BAD_ARGUMENTS, message="bbox_2d lies outside.")
        seen = (Content(image=rng.choice(pictures[1:])),)
        is_failed = rng.random() < 0.1
        results = [ToolResult(call=asked, failure=failure) if is_failed else ToolResult(call=asked, content=seen)]
    parts.append((SegmentKind.ANSWER, ["\n\n", "<answer>", rng.choice("ABCD"), "</answer>", "<|im_end|>"]))
    bounds = [0, *itertools.accumulate(len(tokens) for _, tokens in parts)]
    segments = [
        Segment(kind=kind, start=start, stop=stop)
        for (kind, _), (start, stop) in zip(parts, itertools.pairwise(bounds), strict=True)
    ]
    crops = [block.image for result in results for block in result.content if block.image is not None]
    rollout = Rollout(
        id=f"s{step}/q{number}/{index}" + ("+" if source else ""),
        problem_id=f"q{number}",
        token_ids=tuple(rng.randrange(150_000) for _ in range(bounds[-1])),
        behavior_logprobs=tuple(
            -rng.expovariate(3) if segment.kind.is_sampled else 0.0 for segment in segments for _ in range(len(segment))
        ),
        segments=tuple(segments),
        images=(pictures[0], *crops),
        stop_reason=StopReason.ANSWERED,
        final_text="".join(parts[-1][1]),
        reward=float(rng.random() < (0.6 if source or not uses_tool or not is_triggered else 0.0)),
        tool_results=tuple(results),
        prefix=PrefixRef(source_id=source, num_tokens=bounds[3]) if source else None,
        wall_time_s=3.0,
    )
    record = RolloutRecord(
        step=step,
        phase="resample" if source else "train",
        rollout=rollout,
        role=RowRole.CONTINUATION if source else RowRole.ROLLOUT,
        credit=((bounds[3] if source else bounds[1], bounds[-1], rng.gauss(0, 1)),),
        confidence=0.6 if uses_tool else None,
        is_triggered=is_triggered,
        segment_texts=tuple("".join(tokens) for _, tokens in parts),
        question=f"Which letter is on tag {number}?",
        answer="A",
        metadata={"target_box": [300, 300, 360, 360]},
        token_chars=tuple(len(token) for _, tokens in parts[1:] for token in tokens),
    )
    return to_json(record)


_CONFIG = """[run]
seed = {seed}

[rollout]
questions_per_step = 16
group_size = 8

[algorithm]
resample_budget_frac = {frac}
"""


if __name__ == "__main__":
    main()

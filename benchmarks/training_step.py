"""What AXPO costs over GRPO, and the agent loop over raw generation, on the mini task from its supervised checkpoint.

    python benchmarks/training_step.py [--repeats 5]

Prints one JSON object. `axpo_over_grpo`: a whole step (rollouts, continuations, update) at equal B, N and weights, in
turn: wall clock and generated tokens, targets at most 1.35 and 1.25. `loop_over_generate`: tokens per second of a
batch of dialogues (turns, tools, rewards) over those of `model.generate` on the same prompts and as many rows, target
at least 0.8; and pictures passed through the vision tower over distinct pictures, target 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from axpo.cli.build import open_training
from axpo.cli.console import RunConsole
from axpo.cli.overrides import load_config
from axpo.rollout.collect import sample_groups
from axpo.rollout.seeding import derive_seed
from axpo.trainer.loop import Run
from axpo.trainer.step import train_step
from axpo.types import GenerationRequest, SamplingParams
from engine import banned_ids, describe, raw_generate

RECIPES = Path(__file__).parents[1] / "recipes" / "mini_cpu"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with ExitStack() as stack:
        runs = {name: open_run(name, stack) for name in ("grpo", "axpo")}
        for run in runs.values():
            assert run.sync is not None
            run.sync.push(0)
        steps = [{name: measure_step(run, step) for name, run in runs.items()} for step in range(1, args.repeats + 2)]
        steps = steps[1:]  # the first one warms up
        loop = measure_loop(runs["axpo"], args.repeats)
        # the benchmark looks inside: these parts are nobody's business otherwise
        setting = describe(runs["axpo"].sync._engine._model, namespace(args))  # type: ignore[union-attr]
    ratios = {
        key: round(statistics.median(step["axpo"][key] / step["grpo"][key] for step in steps), 3)
        for key in ("seconds", "tokens")
    }
    medians = {
        name: {key: round(statistics.median(step[name][key] for step in steps), 2) for key in steps[0][name]}
        for name in runs
    }
    report = {"benchmark": "training_step", "axpo_over_grpo": ratios, "medians": medians, "loop_over_generate": loop}
    print(json.dumps(report | {"setting": setting}))


def open_run(name: str, stack: ExitStack) -> Run:
    """A run of the recipe whose weights stay as they are."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    options = {"run.output_dir": f"{folder}/run", "train.learning_rate": "0.0", "data.max_train_rows": "128"}
    config = load_config(RECIPES / f"{name}.toml", {**options, "data.eval": '""'})
    console = RunConsole(columns=(), num_steps=0)
    return stack.enter_context(open_training(config, is_demonstration=False, resume=False, console=console))


def measure_step(run: Run, step: int) -> dict[str, float]:
    """One step as `train` makes it, without records."""
    started_s = time.perf_counter()
    data = run.source.collect(step)
    rows = run.source.assign_credit(data)
    train_step(run.policy, run.optimizer, rows, config=run.config, step=step, num_questions=run.source.items_per_step)
    seconds = time.perf_counter() - started_s
    rollouts = [r for group in (*data.rollouts.groups, *data.rollouts.continuations) for r in group.rollouts]
    return {
        "seconds": seconds,
        "tokens": sum(rollout.num_sampled_tokens for rollout in rollouts),
        "rollouts": len(rollouts),
        "continuations": sum(len(group.rollouts) for group in data.rollouts.continuations),
    }


def measure_loop(run: Run, repeats: int) -> dict[str, float]:
    """Dialogues against one long batch of `generate`, in turn."""
    # inside again: what the source of rollouts was wired with
    setup = run.source._setup  # type: ignore[attr-defined]
    problems = run.source._problems[:16]  # type: ignore[attr-defined]
    engine: Any = setup.engine
    model, preprocessor = engine._model, engine._preprocessor
    specs = [tool.spec for tool in setup.executor.tools.values()]
    rates: list[tuple[float, float]] = []
    encoded: list[float] = []
    for repeat in range(repeats + 1):
        engine.update_weights(model.named_parameters(), repeat)  # forgets the pictures
        num_encoded = engine.num_encoded_images
        started_s = time.perf_counter()
        sampled = asyncio.run(sample_groups(problems, setup=setup, group_size=8, seed=repeat, tag="bench"))
        loop_s = time.perf_counter() - started_s
        rollouts = [rollout for group in sampled.groups for rollout in group.rollouts]
        num_tokens = sum(rollout.num_sampled_tokens for rollout in rollouts)
        distinct = {image for rollout in rollouts for image in rollout.images}
        encoded.append((engine.num_encoded_images - num_encoded) / len(distinct))
        length = max(1, round(num_tokens / len(rollouts)))
        requests = [
            GenerationRequest(
                token_ids=prompt.token_ids,
                images=prompt.images,
                max_new_tokens=length,
                sampling=SamplingParams(),
                seed=derive_seed(repeat, index),
            )
            for prompt in (setup.renderer.render_prompt(problem.messages, specs) for problem in problems)
            for index in range(8)
        ]
        started_s = time.perf_counter()
        generate(model, preprocessor, setup.store, requests)
        rates.append((num_tokens / loop_s, length * len(requests) / (time.perf_counter() - started_s)))
    loop, raw = zip(*rates[1:], strict=True)
    return {
        "ratio": round(statistics.median(a / b for a, b in rates[1:]), 3),
        "loop_tokens_per_s": round(statistics.median(loop)),
        "generate_tokens_per_s": round(statistics.median(raw)),
        "images_encoded_over_distinct": max(encoded[1:]),
    }


@torch.no_grad()
def generate(model: Any, preprocessor: Any, store: Any, requests: list[GenerationRequest]) -> None:
    """Rows of equal length go together: raw `generate` takes a rectangle of prompts."""
    by_length: dict[int, list[GenerationRequest]] = {}
    for request in requests:
        by_length.setdefault(len(request.token_ids), []).append(request)
    for group in by_length.values():
        raw_generate(model, preprocessor, store, group, banned_ids(model))


def namespace(args: argparse.Namespace) -> argparse.Namespace:
    """What `describe` of the engine benchmark wants to know."""
    return argparse.Namespace(dtype="float32", batch=128, new_tokens=None, repeats=args.repeats)


if __name__ == "__main__":
    main()

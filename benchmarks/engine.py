"""Tokens per second of `HfEngine` over those of raw `model.generate`, same prompts, pictures, batch and length.

    python benchmarks/engine.py [--checkpoint FOLDER] [--dtype bfloat16] [--device cuda] [--batch 32] [--repeats 5]

Prints one JSON object: per case the median of the paired ratios and both medians in tokens/s. `distinct` gives every
row a prompt of its own, `siblings` eight rows to a prompt as a training step does. Without `--checkpoint` it measures a
random model of some 7 million parameters. The target is a ratio of at least 0.8.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from axpo.engines.hf import HfEngine
from axpo.images import ContentImageStore
from axpo.models.loading import load_model, resolve_device
from axpo.models.preprocessing import ImagePreprocessor
from axpo.models.scratch import save_scratch_checkpoint
from axpo.types import GenerationRequest, SamplingParams
from recording import describe_machine

TEXT = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10]},
}
VISION = {"hidden_size": 192, "intermediate_size": 384, "depth": 3, "num_heads": 3, "deepstack_visual_indexes": [0, 1]}
IMAGE_PX = 256
NUM_WORDS = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or save_scratch_checkpoint(
            folder, text=TEXT, vision=VISION, max_pixels=IMAGE_PX**2
        )
        model = load_model(checkpoint, dtype=args.dtype, device=resolve_device(args.device))
        preprocessor = ImagePreprocessor.from_pretrained(checkpoint)
    cases = {
        name: measure(model, preprocessor, num_prompts=max(1, args.batch // siblings), args=args)
        for name, siblings in (("distinct", 1), ("siblings", 8))
    }
    print(json.dumps({"benchmark": "engine", "cases": cases, "setting": describe(model, args)}))


def measure(
    model: Any, preprocessor: ImagePreprocessor, *, num_prompts: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Both ways in turn, so that a busy machine slows both; the first round only warms up."""
    store = ContentImageStore()
    requests = make_requests(model, preprocessor, store, num_prompts=num_prompts, args=args)
    banned = banned_ids(model)
    engine = HfEngine(model, preprocessor=preprocessor, store=store, banned_token_ids=banned, stop_token_ids=())
    num_tokens = len(requests) * args.new_tokens
    rates: list[tuple[float, float]] = []
    for version in range(args.repeats + 1):
        engine.update_weights(model.named_parameters(), version)  # forgets the pictures
        start_s = time.perf_counter()
        raw_generate(model, preprocessor, store, requests, banned)
        middle_s = time.perf_counter()
        asyncio.run(engine_generate(engine, requests))
        end_s = time.perf_counter()
        rates.append((num_tokens / (end_s - middle_s), num_tokens / (middle_s - start_s)))
    engine.close()
    ours, raw = zip(*rates[1:], strict=True)
    return {
        "ratio": round(statistics.median(a / b for a, b in rates[1:]), 3),
        "engine_tokens_per_s": round(statistics.median(ours)),
        "generate_tokens_per_s": round(statistics.median(raw)),
    }


def make_requests(
    model: Any, preprocessor: ImagePreprocessor, store: ContentImageStore, *, num_prompts: int, args: argparse.Namespace
) -> list[GenerationRequest]:
    """One picture between two texts per prompt."""
    rng = np.random.default_rng(0)
    prompts: list[tuple[tuple[int, ...], Any]] = []
    for _ in range(num_prompts):
        ref = store.add_image(Image.fromarray(rng.integers(0, 256, (IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)))
        picture = [model.config.image_token_id] * preprocessor.num_tokens(ref)
        words = rng.integers(30, 200, 2 * NUM_WORDS).tolist()
        prompts.append(((*words[:NUM_WORDS], *picture, *words[NUM_WORDS:]), ref))
    return [
        GenerationRequest(
            token_ids=prompts[row % num_prompts][0],
            images=(prompts[row % num_prompts][1],),
            max_new_tokens=args.new_tokens,
            sampling=SamplingParams(),
            seed=row,
        )
        for row in range(args.batch)
    ]


def banned_ids(model: Any) -> list[int]:
    """Ids that would break a prompt, and those that would end a row early in `generate`."""
    config, ends = model.config, model.generation_config.eos_token_id
    vision = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    return [*vision, *([ends] if isinstance(ends, int) else ends or [])]


async def engine_generate(engine: HfEngine, requests: list[GenerationRequest]) -> None:
    """All requests at once."""
    await asyncio.gather(*(engine.generate(request) for request in requests))


def raw_generate(
    model: Any,
    preprocessor: ImagePreprocessor,
    store: ContentImageStore,
    requests: list[GenerationRequest],
    banned: list[int],
) -> None:
    """The same as one batch of transformers, image preprocessing included."""
    token_ids = torch.tensor([request.token_ids for request in requests], device=model.device)
    refs = [ref for request in requests for ref in request.images]
    model.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        mm_token_type_ids=(token_ids == model.config.image_token_id).int(),
        pixel_values=torch.cat([preprocessor.pixel_values(ref, store) for ref in refs]).to(model.device),
        image_grid_thw=torch.tensor([preprocessor.grid_thw(ref) for ref in refs], device=model.device),
        max_new_tokens=requests[0].max_new_tokens,
        do_sample=True,
        top_k=0,
        suppress_tokens=banned,
    ).cpu()


def describe(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Model, options, machine and versions."""
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": args.dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "batch": args.batch,
        "new_tokens": args.new_tokens,
        "repeats": args.repeats,
        **describe_machine("torch", "transformers"),
    }


if __name__ == "__main__":
    main()

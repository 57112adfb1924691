"""Make a real dump of TRL's GRPOTrainer with a tool, on the looking-up questions of the mini task. CPU, half a minute.

    pip install trl trackio
    python recipes/dumps/trl_mini.py runs/trl_mini --trackio
    axpo diagnose runs/trl_mini/completions

The model is the checkpoint that ships with the package; TRL samples, runs the tool, rewards and trains by itself. Its
completions are written to `OUTPUT/completions/completions_NNNNN.parquet`, one file a step, and with `--trackio` to a
trackio database in `OUTPUT/trackio` too. The tool answers with text: with TRL 1.16 a tool that answers with pictures
(`environment_factory`) trains, but its completions cannot be written as Parquet.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRACKIO_DIR", "runs/trl_mini/trackio")  # trackio reads it when TRL imports it

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from axpo.images import ContentImageStore
from axpo.rewards.answers import extract_answer
from axpo.tasks.mini import checkpoint_path, corpus, problems

RULES = {document["title"].lower(): document for document in corpus()}


class Pictures(Qwen2VLImageProcessorPil):
    """Pictures as tensors, which TRL takes for granted; the processor without torchvision makes arrays by default."""

    def preprocess(self, images: Any, *args: Any, **options: Any) -> Any:
        """As without torchvision, but tensors."""
        return super().preprocess(images, *args, **{**options, "return_tensors": "pt"})


class PictureProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor without its half for videos, which needs torchvision; the signature says what it has."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])


def search(query: str, max_results: int = 5) -> str:
    """
    Search for information. Returns titles, addresses and passages.

    Args:
        query: What to look for.
        max_results: How many results, 1 to 20.
    """
    rule = RULES.get(query.lower())
    if rule is None:
        raise ValueError(f"nothing was found for {query!r}")
    return f"1. {rule['title']}\nlocal:{rule['id']}\n{rule['text']}"


def accuracy(completions: Sequence[Any], solution: Sequence[str], **_: Any) -> list[float]:
    """1 for the right player, else 0."""
    texts = [str(completion[-1].get("content") or "") for completion in completions]
    return [float(extract_answer(text)[0] == right) for text, right in zip(texts, solution, strict=True)]


def questions(num_questions: int) -> Dataset:
    """Questions with their pictures, in TRL's columns."""
    store = ContentImageStore()
    rows: list[dict[str, Any]] = []
    for problem in problems("lookup_train", store=store, num_questions=num_questions):
        picture, text = problem.messages[0].content
        row = {"prompt": [{"role": "user", "content": text.text}], "solution": problem.answer}
        rows.append({**row, "image": store.load(picture.image)})
    return Dataset.from_list(rows)


def processor() -> PictureProcessor:
    """The checkpoint's processor, with a chat template that TRL accepts.

    The model is tiny: it knows its tools only in the words it was trained on, which are one token, its longest. And
    TRL wants turns that read the same whatever follows them.
    """
    folder = checkpoint_path()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = qwen3_template
    listing = max((tokenizer.decode([index]) for index in range(len(tokenizer))), key=len)
    template = tokenizer.chat_template.replace("~ tool_listing()", f"~ {json.dumps(listing)}")
    template = template.replace("(loop.last or thinking)", "true")
    return PictureProcessor(Pictures.from_pretrained(folder), tokenizer, chat_template=template)


def main() -> None:
    """Train for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--trackio", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = GRPOConfig(
        output_dir=str(options.output),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_generations=8,
        max_completion_length=128,
        max_tool_calling_iterations=3,
        max_steps=options.steps,
        learning_rate=2e-4,
        logging_steps=1,
        log_completions=True,
        num_completions_to_print=0,
        report_to=["trackio"] if options.trackio else [],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        seed=0,
    )
    GRPOTrainer(
        model=Qwen3VLForConditionalGeneration.from_pretrained(checkpoint_path(), dtype=torch.float32),
        processing_class=processor(),
        reward_funcs=[accuracy],
        args=config,
        train_dataset=questions(64),
        tools=[search],
    ).train()


if __name__ == "__main__":
    main()

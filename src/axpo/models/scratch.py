"""Builds small Qwen3-VL checkpoints from nothing, in the layout of a published one.

The files are those of a published Qwen3-VL-Thinking checkpoint: `config.json`, `generation_config.json`,
`model.safetensors`, `tokenizer.json` with Qwen's special tokens in Qwen's order, `chat_template.jinja`,
`preprocessor_config.json`. The same code reads both, so a test or a laptop run exercises what a 2B model will.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TEMPLATE_PATH = Path(__file__).with_name("qwen3_vl_thinking.jinja")

# Qwen3-VL's own order; the first fourteen are "special" in the tokenizer's sense, the rest are ordinary added tokens.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)

SMALL_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
    "tie_word_embeddings": True,
}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 100,
    "deepstack_visual_indexes": [0],
}


def train_merges(corpus: Iterable[str], *, num_merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE vocabulary and merges over `corpus`, with Qwen's pre-tokenisation (every digit by itself)."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    split = words + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + num_merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def build_tokenizer(*, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], phrases: Sequence[str] = ()) -> Any:
    """A `Qwen2Tokenizer` with Qwen3-VL's special tokens after `vocab`, then `phrases`, each a single token.

    `phrases` lets a small model read long constant passages (the tool listing of the system prompt, say) as one token.
    """
    import transformers
    from tokenizers import AddedToken

    first = SPECIAL_TOKENS[0]
    # eos, pad and unk would otherwise be added first and shift every id (Qwen's order matters to other programs)
    tokenizer: Any = transformers.Qwen2Tokenizer(
        vocab=dict(vocab), merges=_pairs(merges), eos_token=first, pad_token=first, unk_token=first
    )
    special = [AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in (*ADDED_TOKENS, *phrases)])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.unk_token = None
    tokenizer.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8")
    return tokenizer


def _pairs(merges: Sequence[tuple[str, str]]) -> Any:
    """Merges as the tokenizer takes them; its annotation knows only their older, textual form."""
    return [tuple(pair) for pair in merges]


def build_model(tokenizer: Any, *, text: Mapping[str, Any], vision: Mapping[str, Any], seed: int = 0) -> Any:
    """A randomly initialised `Qwen3VLForConditionalGeneration` that fits the tokenizer."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {**SMALL_TEXT, **text}
    vision = {**SMALL_VISION, **vision, "out_hidden_size": text["hidden_size"]}
    tie = bool(text.pop("tie_word_embeddings"))
    ids = tokenizer.convert_tokens_to_ids
    vocab_size = -(-len(tokenizer) // 32) * 32
    config = Qwen3VLConfig(
        text_config={**text, "vocab_size": vocab_size, "tie_word_embeddings": tie},
        vision_config=dict(vision),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=tie,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model.eval()


def save_checkpoint(
    folder: Path | str, *, model: Any, tokenizer: Any, min_pixels: int, max_pixels: int, dtype: str = "float32"
) -> Path:
    """Write model, tokenizer, template and image preprocessing as a published checkpoint lays them out."""
    import copy

    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vision = model.config.vision_config
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    return folder


def save_scratch_checkpoint(
    folder: Path | str,
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    corpus: Sequence[str] = ("Which letter is on the red card? I zoom in on the red card and answer.",),
    num_merges: int = 64,
    phrases: Sequence[str] = (),
    min_pixels: int = 64 * 64,
    max_pixels: int = 160 * 160,
    seed: int = 0,
) -> Path:
    """A small random checkpoint in the published layout; returns the folder."""
    vocab, merges = train_merges(corpus, num_merges=num_merges)
    tokenizer = build_tokenizer(vocab=vocab, merges=merges, phrases=phrases)
    model = build_model(tokenizer, text=text or {}, vision=vision or {}, seed=seed)
    return save_checkpoint(folder, model=model, tokenizer=tokenizer, min_pixels=min_pixels, max_pixels=max_pixels)

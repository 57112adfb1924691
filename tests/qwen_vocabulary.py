"""The vocabulary that Qwen publishes, as a checkpoint folder without weights.

The `dashscope` package (Apache-2.0) contains it as `qwen.tiktoken`: one line per token with its bytes and its rank.
`scripts/setup` installs the package without its dependencies, because nothing but this file is read.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from axpo.models.scratch import build_model, build_tokenizer

VOCAB_SIZE = 151_936
"""Outputs of the published models; the tokenizer has 151,669 tokens."""


def vocabulary_file() -> Path | None:
    """`qwen.tiktoken` of the installed package; None without it."""
    found = importlib.util.find_spec("dashscope")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found else []
    files = (folder / "resources" / "qwen.tiktoken" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def save_checkpoint_without_weights(folder: Path, vocabulary: Path) -> Path:
    """Tokenizer, configuration and shipped chat template with the published ids."""
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in vocabulary.read_text(encoding="ascii").splitlines())
    }
    texts = {token: "".join(_CHARACTERS[byte] for byte in token) for token in ranks}
    vocab = {texts[token]: rank for token, rank in ranks.items()}
    merges = [
        (texts[left], texts[right]) for token in ranks if len(token) > 1 for left, right in [_last_merge(token, ranks)]
    ]
    tokenizer = build_tokenizer(vocab=vocab, merges=merges)
    tokenizer.save_pretrained(folder)
    model = build_model(build_tokenizer(vocab={}, merges=[]), text={}, vision={})
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    ids |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    config = model.config.to_dict() | ids
    config["text_config"]["vocab_size"] = VOCAB_SIZE
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}), encoding="utf-8")
    return folder


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that byte-pair encoding joins last to get `token`: merge by all ranks below its own."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], VOCAB_SIZE))
        parts[best : best + 2] = [pairs[best]]
    left, right = parts
    return left, right


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_CHARACTERS = _byte_characters()

"""Reads what a renderer needs of a checkpoint: tokenizer, configuration and stop tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axpo.errors import CheckpointError

_EXPECTED = (
    "Expected a folder in the layout of a published Qwen3-VL checkpoint, or the hub id of one that is cached or can be "
    "downloaded."
)


def check_files(path: str | Path) -> None:
    """Raise `CheckpointError` for a folder that lacks a configuration; a hub id passes."""
    folder = Path(path)
    if folder.is_dir():
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{path}: no {' and no '.join(missing)} in this folder. {_EXPECTED}")


def load_part(loader: Any, path: str | Path, what: str) -> Any:
    """Call `from_pretrained` of a class of transformers. Raises `CheckpointError`."""
    try:
        return loader.from_pretrained(path)
    except Exception as error:  # broken files surface as bare exceptions of the tokenizer's native code
        where = "" if Path(path).is_dir() else "there is no such folder, and as a hub id: "
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(f"{path}: cannot load its {what}: {where}{reason}. {_EXPECTED}") from error


def generation_stops(path: str | Path) -> tuple[int, ...]:
    """Stop tokens of `generation_config.json`; none without that file. Raises `CheckpointError`."""
    from transformers import GenerationConfig

    try:
        stops: Any = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError as error:
        file = Path(path) / "generation_config.json"
        if file.is_file():
            raise CheckpointError(f"{file}: cannot be read: {error}. Expected JSON with an eos_token_id.") from error
        return ()  # a checkpoint may come without it
    return tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,)

"""Loading a checkpoint; every mistake in a path or a checkpoint becomes one sentence."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from axpo.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
_BOOKKEEPING = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}
"""Settings of a config.json that change no probability."""
HUB_CONNECT_S = 5.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that exists here. Raises `ConfigError` otherwise."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"run.device: expected auto, cpu, cuda or cuda:N, got {name!r}.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device: {name} is not here ({torch.cuda.device_count()} CUDA devices). Use auto or cpu."
        )
    return device


def load_model(
    path: str | Path,
    *,
    dtype: Literal["float32", "bfloat16"],
    attn_implementation: str = "sdpa",
    device: torch.device,
) -> Any:
    """The transformers model of a Qwen3-VL checkpoint (a folder or a hub id), in evaluation mode and without dropout.

    Raises `CheckpointError` in one sentence for everything that can be wrong with the path or the files.
    """
    _check_config(path)
    import torch
    from transformers import AutoModelForImageTextToText

    with _quiet_transformers():
        try:
            model, report = cast(
                "tuple[Any, dict[str, Any]]",
                AutoModelForImageTextToText.from_pretrained(
                    str(path),
                    dtype=getattr(torch, dtype),
                    attn_implementation=attn_implementation,
                    output_loading_info=True,
                ),
            )
        except ImportError as error:
            raise CheckpointError(
                f"{path}: attn_implementation = {attn_implementation!r} needs a package that is not installed "
                f"({_first_sentence(error)}). Install it or use sdpa."
            ) from error
        # Damaged files surface as almost anything: OSError, SafetensorError, RuntimeError, ValueError, KeyError.
        except Exception as error:
            raise CheckpointError(f"{path}: the weights cannot be loaded ({_first_sentence(error)}).") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} weights are missing, such as {missing[0]}. The checkpoint is incomplete or does "
            "not belong to its config.json."
        )
    _switch_dropout_off(model)
    return model.to(device).eval()


def check_same_model(path: str | Path, other: str | Path) -> None:
    """Raise `CheckpointError` unless checkpoint `other` has the architecture and the vocabulary of checkpoint `path`.

    Only then does it give a probability to the same tokens.
    """
    ours, theirs = (_architecture(checkpoint) for checkpoint in (path, other))
    different = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise CheckpointError(
            f"{other}: not the same model as {path}: {name} is {theirs.get(name)!r} there and {ours.get(name)!r} here. "
            "Expected a checkpoint of the same architecture and size."
        )
    vocab, other_vocab = (_vocabulary(checkpoint) for checkpoint in (path, other))
    if vocab != other_vocab:
        token = min(token for token in vocab | other_vocab if vocab.get(token) != other_vocab.get(token))
        raise CheckpointError(
            f"{other}: its tokenizer differs from that of {path}: token {token!r} has id {other_vocab.get(token)} "
            f"there and {vocab.get(token)} here. Expected a checkpoint with the same vocabulary."
        )


def _architecture(path: str | Path) -> dict[str, Any]:
    """Settings by dotted name, without those that change no probability."""
    _check_config(path)
    from transformers import AutoConfig

    def flatten(value: Any, name: str) -> Generator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, item in cast("dict[str, Any]", value).items():
                if key not in _BOOKKEEPING:
                    yield from flatten(item, f"{name}.{key}" if name else str(key))
        else:
            yield name, value

    with _quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(str(path))
        except Exception as error:  # a broken value surfaces as almost anything
            raise CheckpointError(f"{path}: config.json cannot be read ({_first_sentence(error)}).") from error
    return dict(flatten(config.to_dict(), ""))


def _vocabulary(path: str | Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    with _quiet_transformers():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
        except Exception as error:  # broken files surface as bare exceptions of the tokenizer's native code
            raise CheckpointError(f"{path}: its tokenizer cannot be loaded ({_first_sentence(error)}).") from error
    return tokenizer.get_vocab()


def find_checkpoint_file(path: str | Path, name: str) -> Path | None:
    """File `name` of a checkpoint folder or hub id; None when the checkpoint has no such file.

    Raises `CheckpointError` when the checkpoint itself is not there.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.exists():
        raise CheckpointError(f"{path}: expected a folder with a checkpoint, got a file.")
    if not _HUB_ID.fullmatch(str(path)):
        raise CheckpointError(f"{path}: no such folder, and not a hub id of the form owner/name.")
    return _find_hub_file(str(path), name)


def _find_hub_file(hub_id: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, name, local_files_only=not _is_hub_reachable()))
    except LocalEntryNotFoundError as error:
        # Offline, a file that the checkpoint lacks and a checkpoint that is not cached look alike but for its config.
        if name != "config.json" and _find_hub_file(hub_id, "config.json") is not None:
            return None
        raise CheckpointError(
            f"{hub_id}: no such folder, and as a hub id it is neither cached here nor reachable (no network, or "
            "HF_HUB_OFFLINE is set). Download it first or give a folder."
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise CheckpointError(
            f"{hub_id}: no such folder, and the hub refused it ({_first_sentence(error)})."
        ) from error


@functools.cache
def _is_hub_reachable() -> bool:
    """True when the hub takes a connection. Without this look, each file is retried for half a minute offline."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    if hub.hostname is None or hub.scheme in urllib.request.getproxies():
        return True  # a proxy answers for it
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        with socket.create_connection((hub.hostname, port), timeout=HUB_CONNECT_S):
            return True
    except OSError:
        return False


def _check_config(path: str | Path) -> None:
    file = find_checkpoint_file(path, "config.json")
    if file is None:
        raise CheckpointError(f"{path}: has no config.json, so it is not a checkpoint folder.")
    try:
        config = cast("dict[str, Any]", dict(json.loads(file.read_text())))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: config.json cannot be read ({error}).") from error
    if config.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"{path}: is a {config.get('model_type')!r} model; expected one of the Qwen3-VL family "
            f"({', '.join(MODEL_TYPES)})."
        )


def _switch_dropout_off(model: Any) -> None:
    """Old and new log-probabilities of a token must come from the same function."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _first_sentence(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return re.split(r"(?<=[.!?]) ", text)[0][:200].rstrip(". ")


@contextlib.contextmanager
def _quiet_transformers() -> Generator[None]:
    """No progress bars, log lines or warnings of transformers; the former state comes back."""
    from transformers.utils import logging

    verbosity, has_progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if has_progress_bar:
            logging.enable_progress_bar()

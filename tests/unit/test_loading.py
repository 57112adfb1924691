"""Every mistake in a path or a checkpoint is one sentence."""

from __future__ import annotations

import json
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axpo.errors import CheckpointError, ConfigError
from axpo.models.loading import find_checkpoint_file, load_model, resolve_device

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_weights_arrive_in_the_asked_precision_and_nothing_is_printed(
    tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        model = load_model(tiny_checkpoint, dtype=dtype, device=CPU)
        weights = model.state_dict()
        for name, tensor in stored.items():
            assert weights[name].dtype is getattr(torch, dtype)
            assert torch.equal(weights[name], tensor.to(weights[name].dtype))
        assert not any(module.training for module in model.modules())
    assert capfd.readouterr() == ("", "")


def test_dropout_is_off_even_in_training_mode(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    (checkpoint / "config.json").write_text(json.dumps(config))
    model = load_model(checkpoint, dtype="float32", device=CPU).train()
    token_ids = torch.arange(40, 80)[None]
    assert torch.equal(model(input_ids=token_ids).logits, model(input_ids=token_ids).logits)


def truncate_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.norm.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_model_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "config.json cannot be read"),
        (change_model_type, "is a 'llama' model; expected one of the Qwen3-VL family"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the weights cannot be loaded"),
        (truncate_weights, "the weights cannot be loaded"),
        (reshape_a_weight, "the weights cannot be loaded"),
        (drop_a_weight, r"1 weights are missing, such as model\.language_model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_damaged_checkpoints(
    checkpoint: Path, spoil: Callable[[Path], object], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(checkpoint, dtype="float32", device=CPU)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_flash_attention_that_is_not_installed(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="'flash_attention_2' needs a package that is not installed"):
        load_model(tiny_checkpoint, dtype="float32", attn_implementation="flash_attention_2", device=CPU)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no such folder, and not a hub id"),
        ("no-such-folder", "no such folder, and not a hub id"),
        ("./runs/none", "no such folder, and not a hub id"),
        ("Qwen/Qwen3-VL-2B-Thinking-not-cached", "neither cached here nor reachable"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=message):
        load_model(path, dtype="float32", device=CPU)


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(CheckpointError, match="expected a folder with a checkpoint, got a file"):
        load_model(tmp_path / "model.gguf", dtype="float32", device=CPU)


def test_hub_ids_are_read_from_the_local_cache(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_checkpoint, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    found = find_checkpoint_file("someone/tiny", "preprocessor_config.json")
    assert found is not None
    assert found.read_text() == (tiny_checkpoint / "preprocessor_config.json").read_text()
    assert find_checkpoint_file("someone/tiny", "no-such-file.json") is None


def test_a_missing_hub_id_without_a_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    from axpo.models import loading

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    loading._is_hub_reachable.cache_clear()
    started = time.monotonic()
    try:
        with pytest.raises(CheckpointError, match="neither cached here nor reachable"):
            find_checkpoint_file("nobody/nothing", "preprocessor_config.json")
    finally:
        loading._is_hub_reachable.cache_clear()
    assert time.monotonic() - started < 10


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ConfigError, match="cuda:99 is not here"):
        resolve_device("cuda:99")

"""The model that learns: float32 master weights, log-probabilities of rows, a fixed reference, the engine's weights."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from axpo.algo.losses import exact_kl
from axpo.errors import MissingExtraError
from axpo.models.loading import check_same_model, find_checkpoint_file, load_model
from axpo.models.qwen3_vl import (
    ImageFeatureCache,
    Reference,
    TokenLogprobs,
    base_model,
    scored_states,
    token_logprobs,
)
from axpo.trainer.config import ModelConfig
from axpo.types import TrainingRow

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from axpo.models.preprocessing import ImagePreprocessor
    from axpo.protocols import ImageStore

COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
"""What a published checkpoint holds beside its weights and configuration; taken over but for the bounds of images."""


class Policy:
    """A Qwen3-VL that learns.

    `model.dtype = "bfloat16"` computes under autocast; weights, gradients and optimiser state stay float32. The
    reference of the KL term shares whatever cannot change: all of the base model under LoRA, the vision tower and its
    features when that is frozen. A reference from another checkpoint shares the vision tower if its weights are equal.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        path: Path | str,
        preprocessor: ImagePreprocessor,
        store: ImageStore,
        device: torch.device,
        temperature: float,
        banned_token_ids: Sequence[int],
        has_reference: bool,
        reference_path: Path | str | None = None,
    ) -> None:
        """`reference_path`: checkpoint of the reference; None: `path`. Not read unless `has_reference`."""
        self._path = path
        self._dtype = config.dtype
        self._device = device
        self._temperature = temperature
        self._banned_token_ids = tuple(banned_token_ids)
        self._learns_vision = not config.freeze_vision
        if has_reference and reference_path is not None:
            check_same_model(path, reference_path)
        model = load_model(path, dtype="float32", attn_implementation=config.attn_implementation, device=device)
        model.requires_grad_(True)
        if config.freeze_vision:
            model.model.visual.requires_grad_(False)
        self._reference = None
        if has_reference and reference_path is not None:
            self._reference = _load_reference(reference_path, model, config, device=device)
        elif has_reference and not config.lora_rank:
            self._reference = _copy_without_gradient(model)
        self._model = _add_lora(model, config) if config.lora_rank else model
        if config.gradient_checkpointing:
            _enable_checkpointing(base_model(self._model))
        self._features = ImageFeatureCache(self._model, preprocessor, store)
        self._reference_features = self._features
        if self._reference is not None and self._reference.model.visual is not model.model.visual:
            self._reference_features = ImageFeatureCache(self._reference, preprocessor, store)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    def trainable_parameters(self) -> Mapping[str, Parameter]:
        """What learns, by name, in a fixed order."""
        return {name: parameter for name, parameter in self._model.named_parameters() if parameter.requires_grad}

    def forget_images(self) -> None:
        """Drop cached image features: at the start of a step, so that a step does not depend on the ones before it."""
        self._features.clear()
        self._reference_features.clear()

    def logprobs(
        self,
        rows: Sequence[TrainingRow],
        mask_BT: Tensor,
        *,
        is_demonstration: bool = False,
        with_exact_kl: bool = False,
    ) -> TokenLogprobs:
        """Log-probabilities and entropies at masked positions, with gradient.

        Those of the policy that the engine samples: at its temperature, banned ids excluded. Demonstrations are scored
        at temperature 1 over the whole vocabulary. `with_exact_kl` adds the divergence from the reference over the
        whole vocabulary, of the same policy.
        """
        with self._autocast():
            return self._score(
                self._model,
                rows,
                mask_BT,
                self._features,
                is_demonstration=is_demonstration,
                reference=self._compare_with_reference(rows, mask_BT) if with_exact_kl else None,
            )

    @torch.no_grad()
    def constant_logprobs(self, rows: Sequence[TrainingRow], mask_BT: Tensor) -> Tensor:
        """Log-probabilities [B, T] of the policy as it is now, without gradient."""
        logprobs_BT = self.logprobs(rows, mask_BT).logprobs_BT
        if self._learns_vision:  # features are kept where there is no gradient; the next update outdates them
            self._features.clear()
        return logprobs_BT

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequence[TrainingRow], mask_BT: Tensor) -> Tensor:
        """Log-probabilities [B, T] under the reference."""
        with self._autocast(), self._reference_model() as reference:
            return self._score(reference, rows, mask_BT, self._reference_features).logprobs_BT

    @torch.no_grad()
    def _compare_with_reference(self, rows: Sequence[TrainingRow], mask_BT: Tensor) -> Reference:
        sequences, images = [row.token_ids for row in rows], [row.images for row in rows]
        with self._reference_model() as reference:
            states_NH = scored_states(reference, sequences, images, mask_BT, features=self._reference_features)
        # Adapters change no language head, so what follows needs them neither on nor off.
        return Reference(model=reference, hidden_NH=states_NH, divergence=exact_kl)

    @contextlib.contextmanager
    def _reference_model(self) -> Generator[Any]:
        """The reference: a model of its own, or the policy without its adapters."""
        if self._reference is not None:
            yield self._reference
            return
        assert hasattr(self._model, "disable_adapter"), "policy was built without a reference"
        with self._model.disable_adapter():
            yield self._model

    @torch.no_grad()
    def engine_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, named as in the checkpoint (tied ones once); adapters are merged into copies."""
        model = base_model(self._model)
        adapted = {f"{name}.weight": module for name, module in model.named_modules() if hasattr(module, "lora_A")}
        for name, parameter in model.named_parameters():
            if ".lora_" not in name:
                name = name.replace(".base_layer.", ".")
                yield name, _merged_weight(adapted[name]) if name in adapted else parameter.detach()

    def save_pretrained(self, folder: Path) -> None:
        """Write the model as a published checkpoint lays it out, adapters merged, in the compute precision."""
        model = base_model(self._model)
        model.save_pretrained(folder, state_dict=self._published_weights(getattr(torch, self._dtype)))
        _name_dtype(folder / "config.json", self._dtype)
        for name in COPIED_FILES:
            source = find_checkpoint_file(self._path, name)
            if source is not None:
                shutil.copyfile(source, folder / name)
        self._features.preprocessor.save_bounds(folder)

    def _published_weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        merged = dict(self.engine_weights())
        cast: dict[int, Tensor] = {}  # tied weights stay one tensor
        weights: dict[str, Tensor] = {}
        state: dict[str, Tensor] = base_model(self._model).state_dict()
        for name, tensor in state.items():
            if ".lora_" not in name:
                name = name.replace(".base_layer.", ".")
                tensor = merged.get(name, tensor)
                weights[name] = cast.setdefault(tensor.data_ptr(), tensor.to("cpu", dtype))
        return weights

    def _score(
        self,
        model: Any,
        rows: Sequence[TrainingRow],
        mask_BT: Tensor,
        features: ImageFeatureCache,
        *,
        is_demonstration: bool = False,
        reference: Reference | None = None,
    ) -> TokenLogprobs:
        return token_logprobs(
            model,
            [row.token_ids for row in rows],
            [row.images for row in rows],
            mask_BT,
            features=features,
            temperature=1.0 if is_demonstration else self._temperature,
            banned_token_ids=() if is_demonstration else self._banned_token_ids,
            reference=reference,
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


def _copy_without_gradient(model: Any) -> Any:
    """A copy of what can change; frozen modules are shared."""
    frozen = [module for module in (model.model.visual,) if not any(p.requires_grad for p in module.parameters())]
    return copy.deepcopy(model, {id(module): module for module in frozen}).requires_grad_(False)


def _load_reference(path: Path | str, model: Any, config: ModelConfig, *, device: torch.device) -> Any:
    """The reference of another checkpoint; a vision tower that equals the frozen one of `model` is shared."""
    reference = load_model(path, dtype="float32", attn_implementation=config.attn_implementation, device=device)
    pairs = zip(reference.model.visual.parameters(), model.model.visual.parameters(), strict=True)
    if config.freeze_vision and all(torch.equal(theirs, ours) for theirs, ours in pairs):
        reference.model.visual = model.model.visual
    return reference.requires_grad_(False)


def _add_lora(model: Any, config: ModelConfig) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError(
            f"model.lora_rank = {config.lora_rank} needs peft, which is not installed: pip install 'axpo[lora]'"
        ) from error
    layers = [
        name
        for name, module in model.model.language_model.named_modules(prefix="model.language_model")
        if isinstance(module, torch.nn.Linear)
    ]
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers renamed
        return get_peft_model(model, lora)


def _enable_checkpointing(model: Any) -> None:
    # transformers renamed the method on the way to version 6
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()  # it recomputes in training mode only; there is no dropout to switch on


def _merged_weight(layer: Any) -> Tensor:
    (adapter,) = layer.active_adapters
    return layer.base_layer.weight.detach() + layer.get_delta_weight(adapter)


def _name_dtype(path: Path, dtype: str) -> None:
    """transformers writes the precision of the weights in memory; the file's is what a reader needs."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = dtype
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

"""Supervised fine-tuning is cross-entropy, as transformers itself computes it from labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.cli.build import build_optimizer, build_parts, build_policy
from axpo.cli.overrides import load_config, split_overrides
from axpo.dialogue import Conversation
from axpo.images import ContentImageStore
from axpo.models.loading import load_model
from axpo.models.preprocessing import ImagePreprocessor
from axpo.trainer.sources import DemonstrationSource
from axpo.trainer.step import train_step
from axpo.types import Content, Message, ToolCall, TrainingRow
from workshop import words_of

IGNORED = -100


def conversations(store: ContentImageStore, folder: Path) -> list[Conversation]:
    """A direct answer, and a tool call whose result is a picture."""
    picture = store.add_file(folder / "noise.png")
    question = Message(role="user", content=(Content(image=picture), Content(text="0?")))
    call = ToolCall(id="call-0", name="look", arguments={"at": "L"})
    return [
        Conversation(
            id="direct", messages=(question, Message(role="assistant", reasoning="so", content=(Content(text="A"),)))
        ),
        Conversation(
            id="tool",
            messages=(
                question,
                Message(role="assistant", reasoning="hm", tool_calls=(call,)),
                Message(role="tool", content=(Content(image=picture), Content(text="B"))),
                Message(role="assistant", reasoning="so", content=(Content(text="B, I see"),)),
            ),
        ),
    ]


def transformers_loss(
    model: Any, rows: tuple[TrainingRow, ...], preprocessor: ImagePreprocessor, store: ContentImageStore
) -> torch.Tensor:
    """`model(..., labels=...)` on the padded batch, with all of transformers' own positions and image handling."""
    num_columns = max(len(row.token_ids) for row in rows)
    token_ids_BT = torch.zeros(len(rows), num_columns, dtype=torch.long)
    attention_BT = torch.zeros_like(token_ids_BT)
    labels_BT = torch.full_like(token_ids_BT, IGNORED)
    for index, row in enumerate(rows):
        ids_T = torch.tensor(row.token_ids)
        token_ids_BT[index, : len(ids_T)] = ids_T
        attention_BT[index, : len(ids_T)] = 1
        labels_BT[index, : len(ids_T)] = torch.where(torch.tensor(row.loss_mask), ids_T, IGNORED)
    images = [image for row in rows for image in row.images]
    return model(
        input_ids=token_ids_BT,
        attention_mask=attention_BT,
        labels=labels_BT,
        mm_token_type_ids=(token_ids_BT == model.config.image_token_id).int(),
        pixel_values=torch.cat([preprocessor.pixel_values(image, store) for image in images]),
        image_grid_thw=torch.tensor([preprocessor.grid_thw(image) for image in images]),
    ).loss


@pytest.mark.parametrize("tokens_per_micro_batch", [100_000, 1])
def test_loss_and_gradient_are_those_of_transformers(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens_per_micro_batch: int
) -> None:
    monkeypatch.chdir(workshop)
    options = words_of(
        train__learning_rate=0, train__max_grad_norm=1e9, train__tokens_per_micro_batch=tokens_per_micro_batch
    )
    config = load_config(Path("config.toml"), split_overrides(options)[1])
    parts = build_parts(config, store=ContentImageStore(tmp_path))
    source = DemonstrationSource(
        conversations(parts.store, workshop),
        renderer=parts.renderer,
        tools={name: tool.spec for name, tool in parts.executor.tools.items()},
        rows_per_step=2,
        seed=0,
    )
    rows = source.assign_credit(source.collect(1))
    assert sorted(row.num_learning_tokens for row in rows)[0] < sorted(row.num_learning_tokens for row in rows)[1]
    policy = build_policy(parts, has_reference=False)
    metrics = train_step(policy, build_optimizer(policy, config), rows, config=config, step=1, num_questions=2)

    model = load_model(parts.model_path, dtype="float32", device=torch.device("cpu"))
    loss = transformers_loss(model, rows, parts.preprocessor, parts.store)
    torch.autograd.backward(loss)
    assert metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in policy.trainable_parameters().items():
        gradient, its_expected = parameter.grad, expected[name]
        assert gradient is not None and its_expected is not None
        torch.testing.assert_close(
            gradient, its_expected, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )

"""Trains the mini model's base checkpoint from random weights: it learns to see, to locate and to read.

    python recipes/mini_cpu/pretrain.py --mixed --out build/mini_base          # about an hour on one core

Next-token loss alone takes very long to teach a model of this size where to look. So there are three stages, and two
helpers that leave no trace in the checkpoint:

1. *see*: the vision tower alone, under linear heads on the visual tokens that say which token holds which colour's
   card, where in the picture it is (as the digits of a box), and how many dots it has;
2. *speak*: the language model alone, on features of the frozen tower, under next-token loss on scripted dialogues; one
   attention head is asked to look at the visual token of the asked card while coordinates or an answer are written
   (this fades out);
3. *join*: both, under next-token loss and the fading heads.

Boxes are precise here (wide ones appear, without loss on their digits, so that the model learns what a miss looks
like). What makes the shipped `sft` checkpoint clumsy is the next stage, `axpo sft recipes/mini_cpu/sft.toml`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from axpo.cli.tools import build_tools
from axpo.images import ContentImageStore
from axpo.models.preprocessing import ImagePreprocessor
from axpo.models.qwen3_vl import mrope_positions
from axpo.models.scratch import build_model, build_tokenizer, save_checkpoint, train_merges
from axpo.protocols import RenderedConversation
from axpo.rollout.rendering import QwenRenderer
from axpo.tasks.mini import demonstrations as demo
from axpo.tasks.mini import distances, lookups
from axpo.tasks.mini.questions import question_message, question_text, sample_clear_scene
from axpo.tasks.mini.scenes import (
    COLORS,
    COUNTS,
    CROP_PX,
    SCENE_PX,
    VIEW_PX,
    Card,
    Scene,
    dots_px,
    draw_backdrop,
    paste_cards,
    sample_scene,
)
from axpo.types import Message, SegmentKind, ToolSpec

TEXT = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
}
VISION = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "depth": 3,
    "num_heads": 4,
    "deepstack_visual_indexes": [0, 1],
}
LOOKING_LAYER, LOOKING_HEAD = 1, 0
TOOL_SETS = (("image_zoom_in",), ("image_zoom_in", "python", "search"))
"""Which tools a dialogue may list, in this order."""
POINTS_APART = "), ("
COLOR_NAMES = sorted(COLORS)
PATCH, MERGE = 16, 2
TOKEN_PX = PATCH * MERGE
VIEW_SIDE, CROP_SIDE = VIEW_PX // TOKEN_PX, CROP_PX // TOKEN_PX
VIEW_TOKENS, CROP_TOKENS = VIEW_SIDE**2, CROP_SIDE**2
HALF_CARD = 27
"""Half the side of the square around a card at its largest angle, in thousandths of the picture."""
CALL_HEAD_TOKENS = 2  # newline and the constant head of the JSON
ANSWER_FROM_END = 2  # the answer's word, </answer>, end of turn
EXTRA_CROPS = 3
"""Crops per card besides those of the dialogue."""
PIXEL_NOISE = 0.03
"""Standard deviation of the noise on training pixels (which span -1..1), against learning scenes by heart."""
IGNORE = -100


# -- checkpoint skeleton ----------------------------------------------------------------------------------------------


def build_base(folder: Path, seed: int) -> Path:
    """Tokenizer, template, preprocessing and random weights."""
    corpus = _corpus()
    vocab, merges = train_merges(corpus, num_merges=512)
    plain = build_tokenizer(vocab=vocab, merges=merges)
    tokenizer = build_tokenizer(vocab=vocab, merges=merges, phrases=_phrases(plain))
    model = build_model(tokenizer, text=TEXT, vision=VISION, seed=seed)
    return save_checkpoint(folder, model=model, tokenizer=tokenizer, min_pixels=CROP_PX**2, max_pixels=VIEW_PX**2)


def _corpus() -> list[str]:
    lines = ["system", "user", "assistant", "img_idx 1:", demo.GIVE_UP]
    thoughts = (demo.THINK_DIRECT, demo.THINK_FOUND, demo.THINK_MISSED, demo.THINK_ZOOM, demo.THINK_RETRY)
    lines += [distances.THINK_MEASURE, distances.THINK_MEASURED, lookups.THINK_LOOK_UP, lookups.THINK_FOUND]
    first, second = (sample_scene(random.Random(0), held_out=False).cards[i] for i in (0, 1))
    lines += [distances.question_text(first, second), lookups.question_text("?", "leftmost"), '", "max_results": 1']
    lines += [*lookups.PLAYERS, *(f"The {player} plays the rightmost" for player in lookups.PLAYERS)]
    lines += [f"{part.capitalize()} {part.capitalize()} of-{part}, local:-" for part in lookups.SYLLABLES]
    lines += [f'"{color}-{color}' for color in COLOR_NAMES]
    for color in COLOR_NAMES:
        lines += [question_text(color), f'"label": "{color} card"'] + [
            thought.format(color=color) for thought in thoughts
        ]
    return [line for line in lines for _ in range(4)]


def _phrases(tokenizer: Any) -> list[str]:
    """Constant passages that the small model reads or writes as one token: tool listings and the JSON of calls."""
    return [
        *(_listing(tokenizer, names) for names in TOOL_SETS),
        '{"name": "image_zoom_in", "arguments": {"bbox_2d": [',
        '], "label": "',
        '"}}',
        "<answer>",
        "</answer>",
        '{"name": "python", "arguments": {"code": "from math import dist; round(dist((',
        POINTS_APART,
        ')) / 100)"}}',
        '{"name": "search", "arguments": {"query": "',
        ' card", "max_results": 1}}',
        " card of this picture in the game of ",
        " card, in tenths of the picture's width, rounded to a whole number?",
    ]


def _listing(tokenizer: Any, names: Sequence[str]) -> str:
    """The system message of a dialogue with these tools."""
    tools = [
        {"type": "function", "function": {"name": s.name, "description": s.description, "parameters": s.parameters}}
        for s in tool_specs(names)
    ]
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tools=tools, tokenize=False)
    return prompt.split("<|im_start|>system\n")[1].split("<|im_end|>")[0]


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One dialogue. Image 0 is the view; the others are crops."""

    token_ids: np.ndarray
    learns: np.ndarray
    looks: np.ndarray
    """Which card's visual token to look at while the token is written; -1: no matter."""
    kind: str
    scene: int
    crops: list[int]
    card: int
    """The card that is asked for."""
    at_cards: np.ndarray
    """The view's visual tokens that hold the three cards."""
    positions: np.ndarray
    view_start: int
    """Where the view's visual tokens start."""


@dataclass(slots=True)
class Drawn:
    """What a worker makes of one seed."""

    view: np.ndarray
    cards: np.ndarray  # [3, 4] colour index, x and y in visual tokens, count index
    view_dots: np.ndarray  # [25] dots in each visual token
    crops: list[np.ndarray]
    crop_dots: list[np.ndarray]  # [9] each
    crop_labels: list[tuple[float, float, float, float, float]]
    rows: list[Row]
    """Scene and crop numbers counted from this scene's own."""


_worker: dict[str, Any] = {}


def tool_specs(names: Sequence[str]) -> list[ToolSpec]:
    """What the model is told about the tools."""
    options = {"search": {"index": "mini:corpus"}} if "search" in names else {}
    tools = build_tools(names, options)
    return [tool.spec for tool in tools.values()]


def _start_worker(folder: str, is_mixed: bool) -> None:
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    preprocessor = ImagePreprocessor.from_pretrained(folder)
    _worker["renderer"] = QwenRenderer.from_pretrained(folder, preprocessor=preprocessor)
    _worker["tools"] = [tool_specs(names) for names in TOOL_SETS]
    _worker["is_mixed"] = is_mixed
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, token in (("apart", POINTS_APART), ("call", "<tool_call>"), ("call_end", "</tool_call>")):
        _worker[name] = tokenizer.convert_tokens_to_ids(token)
    _worker["image_token_id"] = json.loads((Path(folder) / "config.json").read_text())["image_token_id"]


def draw(seed_and_split: tuple[int, bool]) -> Drawn:
    """One scene with three dialogues; on held-out photographs nothing is altered."""
    from PIL import Image
    from PIL.Image import Resampling

    seed, held_out = seed_and_split
    rng = random.Random(f"pretrain/{seed}")
    is_mixed = bool(_worker["is_mixed"]) and rng.random() < 0.7
    scene = (sample_clear_scene if is_mixed else sample_scene)(rng, held_out=held_out)
    backdrop = draw_backdrop(scene) if held_out else _strange_backdrop(scene, rng)
    buffer = io.BytesIO()
    paste_cards(backdrop, scene.cards).save(buffer, format="JPEG", quality=90)
    picture = Image.open(buffer).convert("RGB")
    store = ContentImageStore()
    ref = store.add_bytes(buffer.getvalue())
    scale = VIEW_PX / SCENE_PX / TOKEN_PX
    cards = np.array(
        [
            (COLOR_NAMES.index(card.color), *(scale * center for center in card.center_px), COUNTS.index(card.count))
            for card in scene.cards
        ],
        dtype=np.float32,
    )
    dots = np.array([dot for card in scene.cards for dot in dots_px(card)]) * 1000 / SCENE_PX
    drawn = Drawn(
        view=np.asarray(picture.resize((VIEW_PX, VIEW_PX), Resampling.BICUBIC)),
        cards=cards,
        view_dots=_count_dots(dots, (0, 0, 1000, 1000), VIEW_SIDE),
        crops=[],
        crop_dots=[],
        crop_labels=[],
        rows=[],
    )

    def add_crop(card: Card, box: demo.Box) -> int:
        drawn.crops.append(_cut(picture, box))
        drawn.crop_labels.append(_crop_label(card, box))
        drawn.crop_dots.append(_count_dots(dots, box, CROP_SIDE))
        return len(drawn.crops) - 1

    for index, card in enumerate(scene.cards):
        kind = ("count", "distance", "lookup")[index] if is_mixed else "count"
        dialogue = _DIALOGUES[kind](scene, index, rng, ref, store)
        all_tools = kind != "count" or (_worker["is_mixed"] and rng.random() < 0.5)
        conversation = _worker["renderer"].render_conversation(dialogue.messages, _worker["tools"][all_tools])
        crops = [add_crop(card, box) for box in dialogue.boxes]
        for _ in range(EXTRA_CROPS):
            add_crop(card, demo.sample_box(card, rng, jitter=rng.choice((8.0, 20.0, 40.0))))
        drawn.rows.append(_row(conversation, dialogue, kind, index, crops, cards))
    return drawn


def _row(
    conversation: RenderedConversation, dialogue: Dialogue, kind: str, card: int, crops: list[int], cards: np.ndarray
) -> Row:
    token_ids = np.array(conversation.token_ids, dtype=np.int32)
    learns, looks = np.zeros(len(token_ids), dtype=bool), np.full(len(token_ids), -1)
    num_calls = 0
    for segment in conversation.segments:
        span = slice(segment.start, segment.stop)
        learns[span] = segment.kind.is_sampled
        if segment.kind is SegmentKind.TOOL_CALL:
            learns[span] = dialogue.learns_call[num_calls]
            if dialogue.learns_call[num_calls]:
                part = np.cumsum(token_ids[span] == _worker["apart"])
                looks[span] = np.array(dialogue.looks)[part.clip(max=len(dialogue.looks) - 1)]
            num_calls += 1
        if segment.kind is SegmentKind.ANSWER and not dialogue.learns_call and len(dialogue.looks) == 1:
            looks[span] = dialogue.looks[0]
    at_cards = cards[:, 2].astype(int) * VIEW_SIDE + cards[:, 1].astype(int)
    return Row(token_ids, learns, looks, kind, 0, crops, card, at_cards, *_places(token_ids, len(crops)))


def _strange_backdrop(scene: Scene, rng: random.Random) -> Any:
    """The scene's photograph, turned, tinted or blended with another one: few photographs stand for many."""
    from PIL import Image, ImageEnhance
    from PIL.Image import Transpose

    picture = draw_backdrop(scene)
    if rng.random() < 0.4:
        picture = Image.blend(picture, draw_backdrop(sample_scene(rng, held_out=False)), rng.uniform(0.25, 0.75))
    if rng.random() < 0.6:
        hue, *others = picture.convert("HSV").split()
        shift = rng.randrange(256)
        picture = Image.merge("HSV", (hue.point(lambda value: (value + shift) % 256), *others)).convert("RGB")
    if rng.random() < 0.5:
        picture = picture.transpose(rng.choice((Transpose.ROTATE_90, Transpose.ROTATE_180, Transpose.ROTATE_270)))
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.4:
            picture = enhance(picture).enhance(rng.uniform(0.6, 1.5))
    return picture


def _count_dots(dots: np.ndarray, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """Dots in each of the side x side visual tokens of a box; all in thousandths of the picture."""
    cells = np.floor((dots - np.array(box[:2])) / (box[2] - box[0]) * side).astype(int)
    cells = cells[((cells >= 0) & (cells < side)).all(-1)]
    return np.bincount(cells[:, 1] * side + cells[:, 0], minlength=side * side).clip(max=len(COUNTS))


def _places(token_ids: np.ndarray, num_crops: int) -> tuple[np.ndarray, int]:
    """M-RoPE positions and where the view starts."""
    image_token_id = _worker["image_token_id"]
    grids = [(1, MERGE * VIEW_SIDE, MERGE * VIEW_SIDE)] + [(1, MERGE * CROP_SIDE, MERGE * CROP_SIDE)] * num_crops
    positions = mrope_positions(token_ids.tolist(), grids, image_token_id=image_token_id, merge_size=MERGE)
    return positions.numpy().astype(np.int32), int(np.flatnonzero(token_ids == image_token_id)[0])


@dataclass(slots=True)
class Dialogue:
    """What is said, and what of it teaches."""

    messages: list[Message]
    looks: list[int]
    """The cards that a call is about, in the order in which it names them."""
    learns_call: list[bool]
    boxes: list[demo.Box]


def _count_dialogue(scene: Scene, index: int, rng: random.Random, ref: Any, store: ContentImageStore) -> Dialogue:
    card = scene.cards[index]
    messages: list[Message] = [question_message(ref, question_text(card.color))]
    boxes: list[demo.Box] = []
    learns: list[bool] = []
    if rng.random() < 0.4:
        messages.append(demo.answer_message(demo.THINK_DIRECT, str(card.count)))
        return Dialogue(messages, [index], learns, boxes)
    thought = demo.THINK_ZOOM
    blank = store.add_image(_blank())
    while True:
        precise = rng.random() < (0.65 if not boxes else 0.9)
        boxes.append(demo.sample_box(card, rng, jitter=6.0 if precise else 50.0))
        learns.append(precise)
        messages += [
            demo.call_message(thought.format(color=card.color), boxes[-1], card.color),
            demo.result_message(blank, len(boxes)),
        ]
        if is_hit := demo.box_contains(boxes[-1], card.box):
            break
        if len(boxes) == 3 or rng.random() < 0.4:
            break
        thought = demo.THINK_RETRY
    thought, answer = (demo.THINK_FOUND, str(card.count)) if is_hit else (demo.THINK_MISSED, demo.GIVE_UP)
    messages.append(demo.answer_message(thought.format(color=card.color), answer))
    return Dialogue(messages, [index], learns, boxes)


def _distance_dialogue(scene: Scene, index: int, rng: random.Random, ref: Any, _: ContentImageStore) -> Dialogue:
    pair = [index, rng.choice([other for other in range(3) if other != index])]
    first, second = (scene.cards[i] for i in pair)
    messages = distances.demonstrate(first, second, rng, tool_frac=0.7, jitter=6.0)
    question = question_message(ref, distances.question_text(first, second))
    return Dialogue([question, *messages], pair, [True] * (len(messages) // 2), [])


def _lookup_dialogue(scene: Scene, _: int, rng: random.Random, ref: Any, __: ContentImageStore) -> Dialogue:
    game, place = rng.choice(lookups.games(held_out=False)), rng.choice(lookups.PLACES)
    messages = lookups.demonstrate(scene, game, place, rng, tool_frac=0.7, wrong_frac=0.0)
    asked = scene.cards.index(lookups.asked_card(scene, place))
    question = question_message(ref, lookups.question_text(game, place))
    return Dialogue([question, *messages], [asked], [True] * (len(messages) // 2), [])


_DIALOGUES = {"count": _count_dialogue, "distance": _distance_dialogue, "lookup": _lookup_dialogue}


def _cut(picture: Any, box: demo.Box) -> np.ndarray:
    """The box as the zoom tool returns it."""
    from PIL.Image import Resampling

    pixels = [round(value * SCENE_PX / 1000) for value in box]
    crop = picture.crop((pixels[0], pixels[1], pixels[2], pixels[3]))
    return np.asarray(crop.resize((CROP_PX, CROP_PX), Resampling.BICUBIC))


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (CROP_PX, CROP_PX))


def _crop_label(card: Card, box: demo.Box) -> tuple[float, float, float, float, float]:
    """Colour, place in the crop's visual tokens, count, and whether the whole card is in it."""
    scale = CROP_PX / TOKEN_PX / (box[2] - box[0])
    x = (card.center_px[0] * 1000 / SCENE_PX - box[0]) * scale
    y = (card.center_px[1] * 1000 / SCENE_PX - box[1]) * scale
    whole = float(demo.box_contains(box, card.box))
    return COLOR_NAMES.index(card.color), x, y, COUNTS.index(card.count), whole


@dataclass(slots=True)
class Pool:
    """All drawn scenes on the device."""

    views: Tensor  # [num_scenes, 160, 160, 3] uint8
    crops: Tensor  # [num_crops, 96, 96, 3] uint8
    cards: Tensor  # [num_scenes, 3, 4]
    crop_labels: Tensor  # [num_crops, 5]
    view_dots: Tensor  # [num_scenes, 25]
    crop_dots: Tensor  # [num_crops, 9]
    rows: list[Row]
    view_features: list[Tensor] | None = None
    crop_features: list[Tensor] | None = None


def draw_pool(
    folder: Path, seeds: range, *, num_held_out: int, is_mixed: bool, num_workers: int, device: torch.device
) -> Pool:
    """Draw scenes in parallel, the first `num_held_out` of them on held-out photographs."""
    tasks = [(seed, index < num_held_out) for index, seed in enumerate(seeds)]
    views, crops, cards, labels, rows, view_dots, crop_dots = [], [], [], [], [], [], []
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers, initializer=_start_worker, initargs=(str(folder), is_mixed)) as workers:
        for scene, drawn in enumerate(workers.imap(draw, tasks, chunksize=16)):
            for row in drawn.rows:
                rows.append(replace(row, scene=scene, crops=[len(crops) + crop for crop in row.crops]))
            views.append(drawn.view)
            cards.append(drawn.cards)
            crops += drawn.crops
            view_dots.append(drawn.view_dots)
            crop_dots += drawn.crop_dots
            labels += drawn.crop_labels
    return Pool(
        torch.from_numpy(np.stack(views)).to(device),
        torch.from_numpy(np.stack(crops)).to(device),
        torch.from_numpy(np.stack(cards)).to(device),
        torch.tensor(labels, dtype=torch.float32, device=device),
        torch.from_numpy(np.stack(view_dots)).to(device),
        torch.from_numpy(np.stack(crop_dots)).to(device),
        rows,
    )


def patches(images: Tensor, *, noise: float = 0.0) -> Tensor:
    """[n, side, side, 3] uint8 -> [n * patches, 1536], as Qwen's image processor lays them out."""
    n, side = images.shape[0], images.shape[1]
    blocks = side // TOKEN_PX
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    if noise:
        x = x + noise * torch.randn_like(x)
    x = x.reshape(n, 3, blocks, MERGE, PATCH, blocks, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(*x.shape[:6], 2, *x.shape[6:])
    return x.reshape(n * blocks * blocks * MERGE * MERGE, 3 * 2 * PATCH * PATCH)


# -- model ------------------------------------------------------------------------------------------------------------


def batch_vision_attention() -> None:
    """All images of one call are equally large here: attend in one batch instead of one call an image."""
    from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen

    def forward(
        self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any
    ) -> Tensor:
        num_tokens = hidden_states.shape[0]
        q, k, v = self.qkv(hidden_states).reshape(num_tokens, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        num_images = len(cu_seqlens) - 1
        q, k, v = (x.reshape(num_images, -1, self.num_heads, x.shape[-1]).transpose(1, 2) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(num_tokens, -1))

    qwen.Qwen3VLVisionAttention.forward = forward


class Heads(nn.Module):
    """Throw-away heads on visual tokens."""

    def __init__(self, size: int) -> None:
        super().__init__()
        num = len(COLOR_NAMES)
        self.presence = nn.Linear(size, num)
        self.dots = nn.Linear(size, len(COUNTS) * num)
        self.dots_here = nn.Linear(size, len(COUNTS) + 1)
        self.digits = nn.Linear(size, 4 * 10)  # hundreds and tens of the left and the upper edge of a precise box


def auxiliary_loss(
    heads: Heads, features: Tensor, cards: Tensor, whole: Tensor, dots_here: Tensor, side: int
) -> tuple[Tensor, dict[str, float]]:
    """Dots in each token; which token holds which card, the card's dots (if whole), its box (in views).

    features [n, side * side, d]; cards [n, c, 4] as in `Drawn.cards`; whole [n, c]; dots_here [n, side * side].
    """
    n, c = cards.shape[:2]
    color, xy, count = cards[..., 0].long(), cards[..., 1:3], cards[..., 3].long()
    cell = xy.floor().clamp(0, side - 1)
    inside = ((xy >= 0) & (xy < side)).all(-1).flatten()
    token = (cell[..., 1] * side + cell[..., 0]).long()
    presence = (
        heads.presence(features)
        .float()
        .transpose(1, 2)
        .gather(1, color[..., None].expand(n, c, side * side))
        .flatten(0, 1)
    )
    loss = nn.functional.cross_entropy(presence[inside], token.flatten()[inside])
    here = nn.functional.cross_entropy(
        heads.dots_here(features).float().flatten(0, 1), dots_here.flatten(), reduction="none"
    )
    loss = loss + 2 * (here * (dots_here.flatten() > 0).float().mul(0.8).add(0.2)).mean()
    at_card = features.gather(1, token[..., None].expand(n, c, features.shape[-1]))
    dots = heads.dots(at_card).float().view(n, c, len(COLOR_NAMES), len(COUNTS))
    dots = dots.gather(2, color[..., None, None].expand(n, c, 1, len(COUNTS)))[:, :, 0].flatten(0, 1)
    readable = inside & whole.flatten().bool()
    loss = loss + nn.functional.cross_entropy(dots[readable], count.flatten()[readable])
    seen = {
        "token": (presence.argmax(-1) == token.flatten())[inside].float().mean().item(),
        "dots": (dots.argmax(-1) == count.flatten())[readable].float().mean().item(),
    }
    if side == VIEW_SIDE:
        corner = (xy * TOKEN_PX / VIEW_PX * 1000 - demo.BOX_SIDE / 2).div(10).round().long().clamp(0, 99)
        digits = heads.digits(at_card).float().view(n, c, 2, 2, 10)
        wanted = torch.stack([corner // 10, corner % 10], -1)
        loss = loss + 2 * nn.functional.cross_entropy(digits.flatten(0, 3), wanted.flatten())
        seen["digits"] = (digits.argmax(-1) == wanted).float().mean().item()
    return loss, seen


@dataclass(slots=True)
class Batch:
    """Right-padded rows. `order` puts the tokens of [all views, all crops] into the order of the rows."""

    token_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    positions: Tensor
    looks: Tensor
    """[B, T] the token to look at while the next one is predicted; -1: no matter."""
    scenes: Tensor
    crops: Tensor
    order: Tensor


def similar_rows(rows: list[Row], num_rows: int) -> Iterator[list[Row]]:
    """Random batches for ever, each of rows of similar length: little padding."""
    while True:
        chosen = sorted(random.sample(rows, min(len(rows), 8 * num_rows)), key=lambda row: len(row.token_ids))
        groups = [chosen[start : start + num_rows] for start in range(0, len(chosen), num_rows)]
        random.shuffle(groups)
        yield from groups


def make_batch(rows: list[Row], device: torch.device) -> Batch:
    """Everything of the rows but pixels."""
    length = max(len(row.token_ids) for row in rows)
    shape = (len(rows), length)
    token_ids, mask = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    labels, looks = np.full(shape, IGNORE, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    positions = np.zeros((3, *shape), dtype=np.int64)
    order: list[np.ndarray] = []
    first_crop = len(rows) * VIEW_TOKENS
    for i, row in enumerate(rows):
        stop = len(row.token_ids)
        token_ids[i, :stop], mask[i, :stop], positions[:, i, :stop] = row.token_ids, 1, row.positions
        labels[i, : stop - 1] = np.where(row.learns, row.token_ids, IGNORE)[1:]
        at = np.where(row.looks < 0, -1, row.view_start + row.at_cards[row.looks])
        looks[i, : stop - 1] = at[1:]  # what predicts token t sits at t - 1
        order.append(np.arange(VIEW_TOKENS) + i * VIEW_TOKENS)
        num_crop_tokens = len(row.crops) * CROP_TOKENS
        order.append(np.arange(num_crop_tokens) + first_crop)
        first_crop += num_crop_tokens
    arrays = (
        token_ids,
        labels,
        mask,
        positions,
        looks,
        np.array([row.scene for row in rows]),
        np.array([crop for row in rows for crop in row.crops], dtype=np.int64),
        np.concatenate(order),
    )
    return Batch(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


def encode(model: Any, images: Tensor, side: int) -> list[Tensor]:
    """Pooled and deepstack features, each [n, side * side, d]."""
    grid = torch.tensor([[1, MERGE * side, MERGE * side]] * len(images), device=images.device)
    noise = PIXEL_NOISE if model.training else 0.0
    out = model.model.visual(patches(images, noise=noise), grid_thw=grid, return_dict=True)
    return [features.view(len(images), side * side, -1) for features in (out.pooler_output, *out.deepstack_features)]


def forward(model: Any, pool: Pool, batch: Batch, *, looking: bool) -> Any:
    """The model's output; image features come from the cache if there is one."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    if pool.view_features is None or pool.crop_features is None:
        views = encode(model, pool.views[batch.scenes], VIEW_SIDE)
        crops = encode(model, pool.crops[batch.crops], CROP_SIDE) if len(batch.crops) else []
    else:
        views = [level[batch.scenes] for level in pool.view_features]
        crops = [level[batch.crops] for level in pool.crop_features]
    levels = [level.flatten(0, 1) for level in views]
    if len(batch.crops):
        levels = [torch.cat([level, crop.flatten(0, 1)]) for level, crop in zip(levels, crops, strict=True)]
    pooled, *deep = (level[batch.order].float() for level in levels)
    features = BaseModelOutputWithDeepstackFeatures(pooler_output=(pooled,), deepstack_features=[(d,) for d in deep])
    return model(
        input_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.positions,
        mm_encoder_outputs={"image": features},
        output_attentions=looking,
        use_cache=False,
    )


def _mirror(images: Tensor, cards: Tensor, dots: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images with their cards ([n, c, 3+]: colour, x, y) and dots ([n, side * side]), mirrored at random."""
    cards, dots = cards.clone(), dots.view(-1, side, side)
    for axis, coordinate in ((2, 1), (1, 2)):  # columns move x, rows move y
        if random.random() < 0.5:
            images, dots = images.flip(axis), dots.flip(axis)
            cards[..., coordinate] = side - cards[..., coordinate]
    return images, cards, dots.flatten(1)


def see(model: Any, heads: Heads, pool: Pool, scenes: Tensor, crops: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Stage 1: auxiliary losses on views and crops."""
    views, cards, view_dots = _mirror(pool.views[scenes], pool.cards[scenes], pool.view_dots[scenes], VIEW_SIDE)
    view = encode(model, views, VIEW_SIDE)[0]
    loss, seen = auxiliary_loss(heads, view, cards, torch.ones_like(cards[..., 0]), view_dots, VIEW_SIDE)
    pixels, label, dots = _mirror(pool.crops[crops], pool.crop_labels[crops][:, None], pool.crop_dots[crops], CROP_SIDE)
    crop_loss, crop_seen = auxiliary_loss(
        heads, encode(model, pixels, CROP_SIDE)[0], label[..., :4], label[..., 4], dots, CROP_SIDE
    )
    return loss + crop_loss, seen | {f"crop_{name}": value for name, value in crop_seen.items()}


def speak(model: Any, pool: Pool, batch: Batch, *, looking: float) -> Tensor:
    """Stages 2 and 3: next-token loss, and the looking loss with weight `looking`."""
    output = forward(model, pool, batch, looking=looking > 0)
    learns = batch.labels != IGNORE
    loss = nn.functional.cross_entropy(output.logits[learns].float(), batch.labels[learns])
    if looking <= 0:
        return loss
    attention = output.attentions[LOOKING_LAYER][:, LOOKING_HEAD]  # [B, T, T]
    at_card = attention.gather(2, batch.looks.clamp_min(0)[..., None])[..., 0].float().clamp_min(1e-6)
    return loss - looking * at_card.log()[batch.looks >= 0].mean()


@torch.no_grad()
def cache_features(model: Any, pool: Pool) -> None:
    """Features of every image by the tower as it is; `encode` is not called again until they are dropped."""
    pool.view_features = _encode_all(model, pool.views, VIEW_SIDE)
    pool.crop_features = _encode_all(model, pool.crops, CROP_SIDE)


def _encode_all(model: Any, images: Tensor, side: int) -> list[Tensor]:
    model.eval()
    parts = [encode(model, chunk, side) for chunk in images.split(256)]
    model.train()
    return [torch.cat(level).to(torch.bfloat16) for level in zip(*parts, strict=True)]


# -- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(model: Any, pool: Pool, rows: list[Row], device: torch.device) -> dict[str, float]:
    """Answers without a call, answers from a crop that shows the whole card, and calls written greedily."""
    counts = [row for row in rows if row.kind == "count"]
    called = {kind: [row for row in rows if row.kind == kind and _calls(row)] for kind in _DIALOGUES}
    read = [row for row in counts if len(row.crops) == 1 and pool.crop_labels[row.crops[0], 4] > 0]
    groups = {f"direct_{kind}": [row for row in rows if row.kind == kind and not _calls(row)] for kind in _DIALOGUES}
    result = {
        name: _answer_accuracy(model, pool, group[:256], device)
        for name, group in (*groups.items(), ("read", read))
        if group
    }
    checks = {"count": ("hit", _is_hit), "distance": ("measured", _is_measured), "lookup": ("looked_up", _is_query)}
    for kind, (name, check) in checks.items():
        if chosen := called[kind][:96]:
            texts = _greedy_calls(model, pool, chosen, device)
            result[name] = sum(check(pool, row, text) for row, text in zip(chosen, texts, strict=True)) / len(chosen)
    return result


def _calls(row: Row) -> bool:
    return bool((row.token_ids == _worker["call"]).any())


def _call_span(row: Row) -> slice:
    """What the policy chooses of its first call: all but the constant head and tail of the JSON."""
    first = int(np.flatnonzero(row.token_ids == _worker["call"])[0])
    last = int(np.flatnonzero(row.token_ids == _worker["call_end"])[0])
    return slice(first + 1 + CALL_HEAD_TOKENS, last - 2)


def _answer_accuracy(model: Any, pool: Pool, rows: list[Row], device: torch.device) -> float:
    """Share of rows whose answer is the most likely token in its place."""
    batch = make_batch(rows, device)
    output = forward(model, pool, batch, looking=False)
    ends = batch.attention_mask.sum(-1) - 1
    at = ends - ANSWER_FROM_END
    picked = torch.arange(len(rows), device=device)
    return (output.logits[picked, at - 1].argmax(-1) == batch.token_ids[picked, at]).float().mean().item()


def _greedy_calls(model: Any, pool: Pool, rows: list[Row], device: torch.device) -> list[str]:
    """What the model chooses to write in the place of each row's first call, as many tokens as there are."""
    batch = make_batch(rows, device)
    spans = [_call_span(row) for row in rows]
    for offset in range(max(span.stop - span.start for span in spans)):
        going = [i for i, span in enumerate(spans) if span.start + offset < span.stop]
        at = torch.tensor([spans[i].start + offset for i in going], device=device)
        logits = forward(model, pool, batch, looking=False).logits
        batch.token_ids[going, at] = logits[going, at - 1].argmax(-1)
    decode = _worker["renderer"].decode
    return [decode(batch.token_ids[i, span].tolist()) for i, span in enumerate(spans)]


def _is_hit(pool: Pool, row: Row, text: str) -> bool:
    """The box holds the whole card."""
    numbers = [int(part) for part in text.split("]")[0].replace(" ", "").split(",") if part.isdigit()]
    center = (pool.cards[row.scene, row.card, 1:3].cpu().numpy() * TOKEN_PX / VIEW_PX * 1000).tolist()
    inner = (center[0] - HALF_CARD, center[1] - HALF_CARD, center[0] + HALF_CARD, center[1] + HALF_CARD)
    return len(numbers) == 4 and demo.box_contains(numbers, inner)


def _is_measured(_: Pool, row: Row, text: str) -> bool:
    """The two points are as far apart as the demonstration's."""
    written, wanted = (re.findall(r"\d{3}", part) for part in (text, _call_text(row)))
    if len(written) != 4:
        return False
    apart = [math.dist([int(p[0]), int(p[1])], [int(p[2]), int(p[3])]) for p in (written, wanted)]
    return round(apart[0] / 100) == round(apart[1] / 100)


def _is_query(_: Pool, row: Row, text: str) -> bool:
    return text == _call_text(row)


def _call_text(row: Row) -> str:
    return _worker["renderer"].decode(row.token_ids[_call_span(row)].tolist())


# -- training ---------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Draw, then the three stages; report and save after each."""
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    folder = build_base(args.out, args.seed)
    seeds = range(args.seed * 10**6, args.seed * 10**6 + args.scenes)
    num_held_out = args.eval_rows // 3
    pool = draw_pool(
        folder, seeds, num_held_out=num_held_out, is_mixed=args.mixed, num_workers=args.workers, device=device
    )
    _start_worker(str(folder), args.mixed)
    torch.set_num_threads(args.threads)

    def report(**numbers: float | str) -> None:
        print(json.dumps({"s": round(time.monotonic() - started), **numbers}), flush=True)

    report(scenes=args.scenes, rows=len(pool.rows), crops=len(pool.crops))
    held_out, learning = pool.rows[: args.eval_rows], pool.rows[args.eval_rows :]
    first_scene, first_crop = learning[0].scene, min(crop for row in learning for crop in row.crops)

    from transformers import Qwen3VLForConditionalGeneration

    batch_vision_attention()
    start = args.start or folder
    model = Qwen3VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32, attn_implementation="eager")
    model = model.to(device).train()
    heads = Heads(TEXT["hidden_size"]).to(device)
    if args.tower is not None:
        seeing = torch.load(args.tower, weights_only=True)
        model.model.visual.load_state_dict(seeing["tower"])
        heads.load_state_dict(seeing["heads"])
    language = [p for name, p in model.named_parameters() if ".visual." not in name]

    def some(num: int, first: int, last: int) -> Tensor:
        return torch.randint(first, last, (num,), device=device)

    batches = similar_rows(learning, args.rows_per_step)

    def see_step(_: float) -> tuple[Tensor, dict[str, float]]:
        scenes = some(args.views_per_step, first_scene, len(pool.views))
        return see(model, heads, pool, scenes, some(6 * args.views_per_step, first_crop, len(pool.crops)))

    def speak_step(progress: float) -> tuple[Tensor, dict[str, float]]:
        batch = make_batch(next(batches), device)
        loss = speak(model, pool, batch, looking=max(0.0, 1 - 1.2 * progress))
        return loss, {"loss": loss.item()}

    def join_step(progress: float) -> tuple[Tensor, dict[str, float]]:
        batch = make_batch(next(batches), device)
        loss = speak(model, pool, batch, looking=0.0)
        aux, seen = see_step(progress)
        return loss + 0.3 * (1 - progress) * aux, seen | {"loss": loss.item()}

    stages = (
        ("see", see_step, [*model.model.visual.parameters(), *heads.parameters()], args.see_steps, args.lr),
        ("speak", speak_step, language, args.speak_steps, args.lr),
        ("join", join_step, [*model.parameters(), *heads.parameters()], args.join_steps, args.lr / 3),
    )
    numbers: dict[str, float] = {}
    for name, step_fn, parameters, num_steps, peak_lr in stages:
        if name == "speak":
            cache_features(model, pool)
        if name == "join":
            pool.view_features = pool.crop_features = None
        if num_steps == 0:
            continue
        optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.02)
        for step in range(num_steps):
            progress = step / num_steps
            for group in optimizer.param_groups:
                group["lr"] = (
                    peak_lr * min(1, (step + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))
                )
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                loss, seen = step_fn(progress)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if (step + 1) % args.report_every == 0 or step + 1 == num_steps:
                numbers = {key: round(value, 3) for key, value in seen.items()}
                model.eval()
                if name == "see":
                    with torch.no_grad():
                        scenes = torch.arange(num_held_out, device=device)
                        _, unseen = see(model, heads, pool, scenes, torch.arange(first_crop, device=device))
                    numbers |= {f"held_out_{key}": round(value, 3) for key, value in unseen.items()}
                else:
                    numbers |= {key: round(value, 3) for key, value in evaluate(model, pool, held_out, device).items()}
                model.train()
                report(stage=name, step=step + 1, **numbers)
                seeing = {"tower": model.model.visual.state_dict(), "heads": heads.state_dict()}
                torch.save(seeing, args.out.with_suffix(".tower.pt"))
        save(args, model, numbers, device)


def save(args: argparse.Namespace, model: Any, numbers: dict[str, float], device: torch.device) -> None:
    """The checkpoint in bfloat16, and how it came about."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.out)
    save_checkpoint(
        args.out, model=model, tokenizer=tokenizer, min_pixels=CROP_PX**2, max_pixels=VIEW_PX**2, dtype="bfloat16"
    )
    arguments = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    record = {
        "recipe": "recipes/mini_cpu/pretrain.py",
        "arguments": arguments,
        "device": str(device),
        "torch": torch.__version__,
    }
    (args.out / "training.json").write_text(
        json.dumps(record | {"held_out": numbers}, indent=2) + "\n", encoding="utf-8"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mixed", action="store_true", help="distances and look-ups too, not only counting")
    parser.add_argument("--start", type=Path, help="checkpoint of an earlier run of this script to go on from")
    parser.add_argument("--tower", type=Path, help="OUT.tower.pt of an earlier run: what stage 1 starts from")
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--see-steps", type=int, default=7000)
    parser.add_argument("--speak-steps", type=int, default=4000)
    parser.add_argument("--join-steps", type=int, default=400)
    parser.add_argument("--views-per-step", type=int, default=8)
    parser.add_argument("--rows-per-step", type=int, default=32)
    parser.add_argument("--eval-rows", type=int, default=600)
    parser.add_argument("--report-every", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="fast where the processor has avx512_bf16")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw scenes")
    train(parser.parse_args())


if __name__ == "__main__":
    main()

"""A recorded rollout as the page reads it: short keys, numbers rounded, texts clipped, pictures by key.

What a rollout of the page holds (`build_rollout`); token positions count from the first token after the prompt:

    id, role, reward, stop    as recorded; `right` when the reward is 1
    n, from                   tokens after the prompt; of them inherited from the source `src`, an index in its group
    conf, wall                confidence of its call, seconds
    answer                    the short answer
    credit                    [[start, stop, advantage], ...] of the tokens that learn
    segs                      [{k: kind, a: start, n: tokens, t: text, c: characters per token, q: -100 ln p per token}]
                              `c` is missing where the run did not record it, `q` where nothing was sampled;
                              `more`: characters left out; `r`: the results that a result segment shows
    results                   [{tool, text, fail, secs, ..., pics: [picture], zoom: {pic, box, good}}]

Everything in it is data of a model or of a tool: the page sets it as text, never as markup.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from axpo.codec import from_json
from axpo.diagnostics.zoom import Box, is_hit, parse_box, zoom_box
from axpo.types import ImageRef, SegmentKind, ToolResult

Json = dict[str, Any]

MAX_SEGMENT_CHARS = 6000
MAX_PROMPT_CHARS = 12_000
MAX_LOGPROB_CODE = 2000
"""-100 ln p above this (p below 2e-9) is drawn as this."""

_TEMPLATE_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>")
_IMAGE_PADS = re.compile(r"(<\|image_pad\|>)(?:<\|image_pad\|>)+")


class Pictures(Protocol):
    """Takes in the pictures that are shown."""

    def add(self, image: ImageRef) -> Json:
        """What the page needs to show it: key, width and height."""
        ...


def build_prompt(record: Json, pictures: Pictures) -> Json:
    """The question that all rollouts of a group share, from any of their records."""
    images = _prompt_images(_images(record["rollout"]), record["rollout"], _results(record["rollout"]))
    texts = [
        text
        for segment, text in zip(record["rollout"]["segments"], record["segment_texts"], strict=True)
        if segment["kind"] == SegmentKind.PROMPT
    ]
    prompt = _IMAGE_PADS.sub(lambda match: f"{match[1]}×{len(match[0]) // len(match[1])}", "".join(texts))
    target = parse_box(record["metadata"].get("target_box"))
    return {
        "question": _clip(str(record["question"]).strip(), MAX_SEGMENT_CHARS),
        "answer": _clip(str(record["answer"]), 400),
        "category": _clip(str(record["metadata"].get("category", "")), 60),
        "prompt": _clip(prompt, MAX_PROMPT_CHARS),
        "pics": [pictures.add(image) for image in images],
        "target": None if target is None else _round_box(target),
    }


def build_rollout(record: Json, pictures: Pictures, index_of: Mapping[str, int]) -> Json:
    """One rollout. `index_of` gives the place of each rollout of its group.

    Raises `KeyError`, `TypeError`, `ValueError` or `RecordError` when the record is none.
    """
    rollout: Json = record["rollout"]
    results, images = _results(rollout), _images(rollout)
    prefix = cast("Json | None", rollout.get("prefix"))
    first = _prompt_length(rollout)
    reward = _finite(rollout["reward"])
    built: Json = {
        "id": str(rollout["id"]),
        "role": str(record["role"]),
        "reward": reward,
        "right": int(reward >= 1),
        "stop": str(rollout["stop_reason"]),
        "n": len(rollout["token_ids"]) - first,
        "answer": _short_answer(str(rollout["final_text"])),
        "credit": [[int(a) - first, int(b) - first, round(_finite(v), 4)] for a, b, v in record["credit"]],
        "wall": round(_finite(rollout.get("wall_time_s", 0.0)), 2),
        "segs": _segments(record, rollout, results, first),
        "results": _build_results(record, rollout, results, images, pictures),
    }
    if record.get("confidence") is not None:
        built["conf"] = round(_finite(record["confidence"]), 4)
    if prefix is not None:
        built |= {"from": int(prefix["num_tokens"]) - first, "src": index_of.get(str(prefix["source_id"]), -1)}
    return built


# -- segments ---------------------------------------------------------------------------------------------------------


def _segments(record: Json, rollout: Json, results: Sequence[ToolResult], first: int) -> list[Json]:
    chars, logprobs = record.get("token_chars") or (), rollout["behavior_logprobs"]
    unseen = iter(range(len(results)))
    num_open_calls = 0
    built: list[Json] = []
    for segment, text in zip(rollout["segments"], record["segment_texts"], strict=True):
        kind, start, stop = SegmentKind(segment["kind"]), int(segment["start"]), int(segment["stop"])
        if kind is SegmentKind.PROMPT:
            continue
        num_open_calls += kind is SegmentKind.TOOL_OPEN
        view: Json = {"k": kind.value, "a": start - first, "n": stop - start}
        if kind is SegmentKind.TOOL_RESULT:
            view["r"] = list(itertools.islice(unseen, num_open_calls))
            num_open_calls = 0
        view |= _text_of(str(text), chars[start - first : stop - first])
        if kind.is_sampled:
            shown = len(view["c"]) if "c" in view else stop - start
            view["q"] = [_logprob_code(value) for value in logprobs[start : start + shown]]
        built.append(view)
    left = list(unseen)
    return (
        [*built, {"k": "unseen", "a": built[-1]["a"] + built[-1]["n"], "n": 0, "t": "", "r": left}] if left else built
    )


def _text_of(text: str, chars: Sequence[int]) -> Json:
    """The text, clipped between two tokens, with the lengths of its tokens where they were recorded."""
    if not chars:
        return _clipped(text, MAX_SEGMENT_CHARS)
    ends = list(itertools.accumulate(chars))
    if ends[-1] != len(text) or min(chars) < 0:
        raise ValueError(f"token_chars add up to {ends[-1]} characters, the segment has {len(text)}")
    count = len(chars)
    while count and ends[count - 1] > MAX_SEGMENT_CHARS:
        count -= 1
    stop = ends[count - 1] if count else 0
    return {**_clipped(text, stop), "c": list(chars[:count])}


def _clipped(text: str, stop: int) -> Json:
    return {"t": text} if len(text) <= stop else {"t": text[:stop], "more": len(text) - stop}


def _logprob_code(logprob: float) -> int:
    """-100 ln p, for p in 2e-9..1; what is no such number is drawn as the smallest probability."""
    code = -100.0 * logprob
    return min(MAX_LOGPROB_CODE, max(0, round(code))) if math.isfinite(code) else MAX_LOGPROB_CODE


# -- results ----------------------------------------------------------------------------------------------------------


def _build_results(
    record: Json, rollout: Json, results: Sequence[ToolResult], images: Sequence[ImageRef], pictures: Pictures
) -> list[Json]:
    target = parse_box(record["metadata"].get("target_box"))
    shown = list(_prompt_images(images, rollout, results))
    is_right = _finite(rollout["reward"]) >= 1
    built: list[Json] = []
    for result in results:
        text = result.failure.message if result.failure else "".join(block.text or "" for block in result.content)
        view: Json = {"tool": _tool_name(result.call.name), "secs": round(_finite(result.wall_time_s), 4)}
        view |= _clipped_result(text)
        if result.failure is not None:
            view["fail"] = result.failure.kind.value
        if result.queue_time_s:
            view["queue"] = round(_finite(result.queue_time_s), 4)
        flags = {"tries": result.num_tries > 1, "cached": result.is_cached, "cut": result.is_cut}
        view |= {name: result.num_tries if name == "tries" else 1 for name, holds in flags.items() if holds}
        asked = zoom_box(result.call)
        if asked is not None and 0 <= asked[1] < len(shown):
            good = is_hit(asked[0], target) if target is not None and asked[1] == 0 else is_right
            view["zoom"] = {
                "pic": pictures.add(shown[asked[1]]),
                "box": _round_box(asked[0]),
                "good": int(good),
                "first": int(asked[1] == 0),
            }
        returned = _images_of(result)
        if returned:
            view["pics"] = [pictures.add(image) for image in returned]
        shown += returned
        built.append(view)
    return built


def _clipped_result(text: str) -> Json:
    clipped = _clipped(text, MAX_SEGMENT_CHARS)
    return {"text": clipped["t"], **({"more": clipped["more"]} if "more" in clipped else {})}


def _results(rollout: Json) -> list[ToolResult]:
    return [from_json(ToolResult, value) for value in rollout["tool_results"]]


def _images(rollout: Json) -> list[ImageRef]:
    return [from_json(ImageRef, value) for value in rollout["images"]]


def _images_of(result: ToolResult) -> list[ImageRef]:
    return [block.image for block in result.content if block.image is not None]


def _prompt_images(images: Sequence[ImageRef], rollout: Json, results: Sequence[ToolResult]) -> Sequence[ImageRef]:
    """The pictures that came with the question. A result that did not fit any more left no picture in the dialogue."""
    segments: list[Json] = rollout["segments"]
    last_result = max((s["start"] for s in segments if s["kind"] == SegmentKind.TOOL_RESULT), default=0)
    num_seen = sum(s["kind"] == SegmentKind.TOOL_OPEN and s["start"] < last_result for s in segments)
    num_result_images = sum(len(_images_of(result)) for result in results[:num_seen])
    return images[: len(images) - num_result_images]


# -- parts ------------------------------------------------------------------------------------------------------------


def tool_calls(record: Json) -> Iterator[tuple[str, str | None]]:
    """(tool, kind of failure) of each answered call of a record."""
    for value in record["rollout"]["tool_results"]:
        failure = value.get("failure")
        yield _tool_name(str(value["call"]["name"])), None if failure is None else str(failure["kind"])


def _tool_name(name: str) -> str:
    """A model can write any name, or none in a call that does not parse."""
    return _clip(name, 80) or "(unnamed)"


def _prompt_length(rollout: Json) -> int:
    """Tokens before the first segment that is no prompt."""
    later = (s["start"] for s in rollout["segments"] if s["kind"] != SegmentKind.PROMPT)
    return int(next(later, len(rollout["token_ids"])))


def _round_box(box: Box) -> list[float]:
    return [round(max(0.0, min(1000.0, value)), 1) for value in box]


def _finite(value: Any) -> float:
    """A number; 0.0 for what JSON calls NaN or Infinity."""
    number = float(value)
    return number if math.isfinite(number) else 0.0


def _short_answer(final_text: str) -> str:
    _, opened, rest = final_text.partition("<answer>")
    inner, closed, _ = rest.partition("</answer>")
    text = inner if opened and closed else final_text
    return _clip(" ".join(_TEMPLATE_TOKEN.sub("", text).split()), 60)


def _clip(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"

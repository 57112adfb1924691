"""Questions of a benchmark with all their tries, as the views that a page shows.

A page has room for some of them: questions are chosen so that each kind is there, and the text and the pictures of one
benchmark are bounded, whatever a model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from axpo.dialogue import Transcript, Verdict
from axpo.evaluation.records import JudgedRollout
from axpo.reports.thumbnails import read_thumbnail
from axpo.reports.views import MAX_TEXT_CHARS, BlockView, PictureView
from axpo.types import Content, ImageRef, Problem, ToolCall, ToolResult

KINDS = ("tool users all wrong", "all wrong", "some wrong", "right")
"""In the order of the page."""
MAX_SIDE_PX = 480
MAX_PICTURES = 150
"""Thumbnails of one benchmark. Later images are left out, so that the page stays below a few megabytes."""
_QUOTAS = (0.4, 0.2, 0.2, 0.2)
_BLOCK_BYTES = 300
"""Markup around a text, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryView:
    """One sample of a question."""

    sample: int
    is_right: bool
    is_lost: bool
    num_calls: int
    answer: str
    verdict: Verdict
    fault: str
    stop: str
    """Why it ended, when a limit ended it."""
    blocks: tuple[BlockView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionView:
    """One question with its tries."""

    id: str
    kind: str
    text: str
    answer: str
    categories: str
    pictures: tuple[PictureView, ...]
    tries: tuple[TryView, ...]

    @property
    def num_right(self) -> int:
        """Right tries."""
        return sum(one.is_right for one in self.tries)

    @property
    def num_tool(self) -> int:
        """Tries that call a tool."""
        return sum(one.num_calls > 0 for one in self.tries)

    @property
    def size_bytes(self) -> int:
        """Of its text in the page, about."""
        blocks = [block.text for one in self.tries for block in one.blocks]
        texts = [self.text, self.answer, *blocks, *(one.verdict.note + one.fault + one.answer for one in self.tries)]
        return sum(len(escape(text).encode("utf-8", "replace")) + _BLOCK_BYTES for text in texts)


@dataclass(slots=True, kw_only=True)
class PictureShelf:
    """Thumbnails of one benchmark, at most `max_bytes` of them."""

    folder: Path
    max_bytes: int
    thumbnails: dict[str, str] = field(default_factory=dict[str, str])
    """CSS class -> data URL. An image that is shown twenty times is in the page once."""
    num_bytes: int = 0
    num_left_out: int = 0

    def view(self, image: ImageRef) -> PictureView:
        """The picture's thumbnail, or its empty frame when there is no room or no file."""
        name: str | None = f"p-{image.sha256[:16]}"
        if name not in self.thumbnails:
            has_room = self.num_bytes < self.max_bytes and len(self.thumbnails) < MAX_PICTURES
            data = read_thumbnail(self.folder, image.sha256, max_side_px=MAX_SIDE_PX) if has_room else None
            if data is None:
                self.num_left_out += 1
                name = None
            else:
                self.thumbnails[name] = data
                self.num_bytes += len(data)
        aspect = max(0.2, min(5.0, image.width_px / image.height_px))
        return PictureView(css_class=name, aspect=aspect)


def choose_questions(
    problems: Sequence[Problem], rollouts: Sequence[JudgedRollout], *, max_questions: int
) -> list[tuple[str, Problem, tuple[JudgedRollout, ...]]]:
    """(kind, question, its tries): all-wrong ones with tool use first, then wrong, then right; some of each kind."""
    tries: dict[str, list[JudgedRollout]] = {problem.id: [] for problem in problems}
    for judged in rollouts:
        tries.get(judged.rollout.problem_id, []).append(judged)
    of_kind: dict[str, list[tuple[str, Problem, tuple[JudgedRollout, ...]]]] = {kind: [] for kind in KINDS}
    for problem in problems:
        found = tuple(sorted(tries[problem.id], key=lambda judged: judged.rollout.sample))
        if found:
            of_kind[_kind(found)].append((_kind(found), problem, found))
    room = dict(zip(KINDS, (int(quota * max_questions) for quota in _QUOTAS), strict=True))
    taken = {kind: min(len(of_kind[kind]), room[kind]) for kind in KINDS}
    for kind in KINDS:  # what other kinds leave free
        taken[kind] += min(len(of_kind[kind]) - taken[kind], max_questions - sum(taken.values()))
    return [question for kind in KINDS for question in of_kind[kind][: taken[kind]]]


def _kind(tries: Sequence[JudgedRollout]) -> str:
    if all(judged.is_correct for judged in tries):
        return "right"
    if any(judged.is_correct for judged in tries):
        return "some wrong"
    transcripts = [judged.rollout.transcript for judged in tries]
    return KINDS[0] if any(transcript is not None and transcript.uses_tool for transcript in transcripts) else KINDS[1]


def build_questions(
    problems: Sequence[Problem],
    rollouts: Sequence[JudgedRollout],
    shelf: PictureShelf,
    *,
    max_questions: int,
    max_text_bytes: int,
) -> tuple[QuestionView, ...]:
    """Views of the chosen questions, as many as fit. Pictures of questions come before those of tools."""
    views: list[QuestionView] = []
    room = max_text_bytes
    chosen = choose_questions(problems, rollouts, max_questions=max_questions)
    for kind, problem, tries in chosen:
        view = _build_question(kind, problem, tries)
        room -= view.size_bytes
        if room < 0:
            break
        views.append(replace(view, pictures=tuple(shelf.view(image) for image in problem.images)))
    shown = zip(views, chosen, strict=False)
    return tuple(_with_tool_pictures(view, tries, shelf) for view, (_, _, tries) in shown)


def _build_question(kind: str, problem: Problem, tries: Sequence[JudgedRollout]) -> QuestionView:
    categories = problem.metadata.get("categories")
    named = categories.items() if isinstance(categories, Mapping) else ()
    return QuestionView(
        id=problem.id,
        kind=kind,
        text=_clip("\n".join(m.text for m in problem.messages if m.role == "user").strip()),
        answer=_clip(problem.answer),
        categories=" · ".join(f"{key} {value}" for key, value in named),
        pictures=(),
        tries=tuple(_build_try(judged) for judged in tries),
    )


def _build_try(judged: JudgedRollout) -> TryView:
    rollout, verdict = judged.rollout, judged.verdict
    transcript = rollout.transcript
    stop = transcript.stop_reason.value.replace("_", " ") if transcript and transcript.stop_reason.is_truncated else ""
    return TryView(
        sample=rollout.sample,
        is_right=judged.is_correct,
        is_lost=transcript is None,
        num_calls=sum(len(turn.tool_calls) for turn in transcript.turns) if transcript is not None else 0,
        answer=_short(verdict.answer if verdict.answer is not None else ""),
        verdict=replace(verdict, note=_clip(verdict.note)),
        fault=_clip(rollout.fault),
        stop=stop,
        blocks=tuple(_build_blocks(transcript)) if transcript is not None else (),
    )


def _build_blocks(transcript: Transcript) -> Iterator[BlockView]:
    results = iter(transcript.tool_results)
    last = len(transcript.turns) - 1
    for number, turn in enumerate(transcript.turns):
        if turn.reasoning and turn.reasoning.strip():
            yield BlockView(kind="thinking", text=_clip(turn.reasoning.strip()))
        if turn.text.strip():
            is_final = number == last and not turn.tool_calls
            yield BlockView(kind="answer" if is_final else "text", text=_clip(turn.text.strip()))
        for call in turn.tool_calls:
            yield BlockView(kind="call", text=_call_text(call), is_failure=call.parse_error is not None)
            result = next(results, None)
            if result is not None:
                yield _result_block(result)


def _result_block(result: ToolResult) -> BlockView:
    if result.failure is not None:
        kind = result.failure.kind.value.replace("_", " ")
        return BlockView(kind="result", text=_clip(f"{kind}: {result.failure.message}"), is_failure=True)
    return BlockView(kind="result", text=_clip("".join(block.text or "" for block in result.content).strip()))


def _with_tool_pictures(view: QuestionView, tries: Sequence[JudgedRollout], shelf: PictureShelf) -> QuestionView:
    return replace(
        view,
        tries=tuple(
            replace(one, blocks=_place_pictures(one.blocks, judged.rollout.transcript, shelf))
            for one, judged in zip(view.tries, tries, strict=True)
        ),
    )


def _place_pictures(
    blocks: Sequence[BlockView], transcript: Transcript | None, shelf: PictureShelf
) -> tuple[BlockView, ...]:
    results = iter(transcript.tool_results if transcript is not None else ())
    return tuple(
        replace(block, pictures=_pictures(next(results).content, shelf)) if block.kind == "result" else block
        for block in blocks
    )


def _pictures(content: Sequence[Content], shelf: PictureShelf) -> tuple[PictureView, ...]:
    return tuple(shelf.view(block.image) for block in content if block.image is not None)


def _call_text(call: ToolCall) -> str:
    """The call to read: a string argument as it is (code keeps its lines), other arguments as JSON."""
    if call.parse_error is not None:
        return _clip(f"{call.raw}\n({call.parse_error})")
    values = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in call.arguments.items()
    }
    lines = [f"{key}:\n{value}" if "\n" in value else f"{key}: {value}" for key, value in values.items()]
    return _clip("\n".join([call.name, *lines]))


def _short(text: str) -> str:
    line = " ".join(text[:400].split())
    return line if len(line) <= 60 else f"{line[:57]}…"


def _clip(text: str) -> str:
    excess = len(text) - MAX_TEXT_CHARS
    return text if excess <= 0 else f"{text[:MAX_TEXT_CHARS]}… ({excess} more characters)"

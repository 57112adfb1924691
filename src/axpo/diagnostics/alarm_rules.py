"""What each alarm of a run looks for. A rule sees what the steps so far amount to, and whether its alarm stands.

Three things keep noise out: a rule is silent until it has counted enough (rollouts, calls, steps); shares are taken
over several steps, weighted by what they count; and an alarm that stands goes only when its number is clearly back.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

WINDOW_STEPS = 10
"""Training steps an alarm about a trend looks back."""
SHORT_STEPS = 5
"""Training steps an alarm about a level looks back."""
CALL_STEPS = 3
"""Training steps an alarm about tool calls looks back: there are many calls in a step."""
EARLIER_DECAY = 0.97
"""Weight that an earlier step loses with each further one: half of it in 23 steps."""

MIN_ROLLOUTS = 100
"""A share of rollouts is not looked at below: none in 100 means below 3 % with 95 % confidence."""

MIN_CALLS = 20
MIN_QUESTIONS = 30
MIN_PICTURES = 20
MIN_TOKENS = 100

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong, with its numbers, and what to do."""

    level: Literal["warning", "error"]
    text: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """`part` of `whole`, counts added up over steps."""

    part: float = 0.0
    whole: float = 0.0

    def __add__(self, other: Share) -> Share:
        return Share(part=self.part + other.part, whole=self.whole + other.whole)

    @property
    def rate(self) -> float:
        """The quotient; `whole` must not be zero."""
        return self.part / self.whole


@dataclass(slots=True, kw_only=True)
class Past:
    """The training steps so far: the last ones in full, the others as sums; a step costs the same at any age."""

    max_logprob_gap: float
    recent: deque[Record] = field(default_factory=lambda: deque[Record](maxlen=WINDOW_STEPS + 1))
    num_steps: int = 0
    tool_use: Share = Share()
    """Tool-using rollouts of all steps."""
    top_tool_use: Share | None = None
    """Of the `SHORT_STEPS` steps in a row with the highest tool use."""
    earlier_all_wrong: Share = Share()
    """Questions wrong in all tool-using siblings, of the steps before the last `WINDOW_STEPS`. Those long ago count
    less (`EARLIER_DECAY`), so that a rise after an improvement is seen."""
    pictures: Share = Share()
    """Question pictures of all steps that reach the model with less than half of their pixels."""
    first_entropies: list[float] = field(default_factory=lambda: list[float]())
    unrecovered: Share = Share()
    """Steps, and continuations of these steps, since a continuation was right."""

    def add(self, record: Record) -> None:
        """Count a step."""
        self.recent.append(record)
        self.num_steps += 1
        self.tool_use += _share(record, "rollout/tool_use_rate", "rollout/count")
        self.pictures += _share(record, "images/downscaled", "images/count")
        self._add_earlier()
        entropy = record.get("train/entropy")
        if entropy is not None and len(self.first_entropies) < SHORT_STEPS:
            self.first_entropies.append(entropy)
        if record.get("resample/restore_rate"):
            self.unrecovered = Share()
        elif used := record.get("resample/used"):
            self.unrecovered += Share(part=1, whole=used)

    def last(self, num_steps: int) -> list[Record]:
        """The last steps, oldest first."""
        return list(self.recent)[-num_steps:]

    def share(self, rate_key: str, count_key: str, num_steps: int) -> Share:
        """A logged rate over the last steps, weighted by what each counted."""
        return _total(self.last(num_steps), rate_key, count_key)

    def _add_earlier(self) -> None:
        used = self.share("rollout/tool_use_rate", "rollout/count", SHORT_STEPS)
        is_enough = self.num_steps >= SHORT_STEPS and used.whole >= MIN_ROLLOUTS
        if is_enough and (self.top_tool_use is None or used.rate > self.top_tool_use.rate):
            self.top_tool_use = used
        if len(self.recent) > WINDOW_STEPS:
            earlier, left = self.earlier_all_wrong, self.recent[0]
            decayed = Share(part=EARLIER_DECAY * earlier.part, whole=EARLIER_DECAY * earlier.whole)
            self.earlier_all_wrong = decayed + _share(left, "rollout/all_wrong_tool", "groups/tool_using")


Rule = Callable[[Past, bool], Finding | None]


# -- engine and numbers -----------------------------------------------------------------------------------------------


def _find_non_finite(past: Past, is_standing: bool) -> Finding | None:
    last = past.recent[-1]
    broken = [key for key, value in last.items() if isinstance(value, float) and not math.isfinite(value)]
    broken += list(last.get("non_finite", ()))
    if not broken:
        return None
    return Finding(
        level="error",
        text=f"Not a finite number: {', '.join(sorted(broken))}.",
        advice="Stop the run. Lower the learning rate, or compute in float32; resume from an earlier checkpoint.",
    )


def _find_canary_failed(past: Past, is_standing: bool) -> Finding | None:
    last = past.recent[-1]
    if not last.get("sync/failed"):
        return None
    gap = last.get("sync/canary_gap")
    return Finding(
        level="error",
        text="The engine does not run the weights it was given"
        + (
            f": it differs from the trainer by {gap:.2g} nats per token on the probe."
            if gap is not None and math.isfinite(gap)
            else "."
        ),
        advice="The run stops: what it sampled next would be another policy's. Resume from the last checkpoint; if it "
        "happens again, the engine is at fault: start it again, and compare its dtype with `model.dtype`.",
    )


def _find_logprob_gap(past: Past, is_standing: bool) -> Finding | None:
    last, limit = past.recent[-1], past.max_logprob_gap
    gap = last.get("engine/logprob_gap_mean")
    if (
        gap is None
        or gap <= (limit / 2 if is_standing else limit)
        or last.get("tokens/trained", MIN_TOKENS) < MIN_TOKENS
    ):
        return None
    return Finding(
        level="error",
        text=f"Engine and trainer differ by {gap:.2g} nats per token on average (limit {limit:g}).",
        advice="The engine samples from another policy than the one that learns: compare dtype, image preprocessing "
        "and attention of both, and look whether the engine took the last weights.",
    )


def _find_entropy_collapse(past: Past, is_standing: bool) -> Finding | None:
    steps = [step for step in past.last(SHORT_STEPS) if step.get("rollout/count")]  # fine-tuning may become certain
    entropies = _values(steps, "train/entropy")
    if past.num_steps < 2 * SHORT_STEPS or len(entropies) < SHORT_STEPS or not past.first_entropies:
        return None
    first, last = statistics.fmean(past.first_entropies), statistics.fmean(entropies)
    limit = max(0.2 * first, 0.01)
    if last >= (1.25 * limit if is_standing else limit):
        return None
    return Finding(
        level="warning",
        text=f"The policy's entropy is {last:.2g} nats per token over {SHORT_STEPS} steps; it began at {first:.2g}.",
        advice="It is nearly deterministic: siblings repeat each other and nothing is explored. Resume from an earlier "
        "step with a lower `train.learning_rate`, a higher `algorithm.clip_high` or `algorithm.kl_coef`.",
    )


def _find_kl_runaway(past: Past, is_standing: bool) -> Finding | None:
    divergences = _values(past.last(SHORT_STEPS), "train/kl")
    if len(divergences) < SHORT_STEPS:
        return None
    typical = statistics.median(divergences)  # one odd batch moves a mean
    if typical <= (0.7 if is_standing else 1.0):
        return None
    return Finding(
        level="warning",
        text=f"The policy is {typical:.2g} nats per token away from the reference (median of {SHORT_STEPS} "
        "steps; limit 1).",
        advice="It may be forgetting what it could do: look at the held-out score, lower `train.learning_rate`, raise "
        "`algorithm.kl_coef`.",
    )


# -- tool use ---------------------------------------------------------------------------------------------------------


def _find_tool_never_called(past: Past, is_standing: bool) -> Finding | None:
    if past.num_steps < 3 or past.tool_use.whole < MIN_ROLLOUTS or past.tool_use.part > 0 or not _tool_names(past):
        return None
    return Finding(
        level="error",
        text=f"None of {past.tool_use.whole:.0f} rollouts in {past.num_steps} steps called a tool.",
        advice="Nothing can be resampled without a tool call: check that the prompt lists the tools and that the "
        "starting checkpoint calls them; if it does not, fine-tune it first.",
    )


def _find_calls_in_thinking(past: Past, is_standing: bool) -> Finding | None:
    share = past.share("rollout/calls_in_thinking", "rollout/count", SHORT_STEPS)
    if share.whole < MIN_ROLLOUTS or share.rate <= (0.03 if is_standing else 0.05):
        return None
    return Finding(
        level="warning",
        text=f"{share.rate:.0%} of {share.whole:.0f} rollouts wrote a tool call inside their thinking.",
        advice="Such a call is not run and triggers no resampling. Fine-tune first on demonstrations that close the "
        "thinking before they call; check that the checkpoint has the chat template it was trained with.",
    )


def _find_tool_use_falling(past: Past, is_standing: bool) -> Finding | None:
    top, now = past.top_tool_use, past.share("rollout/tool_use_rate", "rollout/count", SHORT_STEPS)
    if top is None or now.whole < MIN_ROLLOUTS or _find_tool_use_vanishing(past, is_standing=False) is not None:
        return None
    slack = 1.2 if is_standing else 1.0
    if now.rate >= 0.5 * slack * top.rate or now.rate >= 0.25 * slack or _z_score(now, top) < 3:
        return None
    return Finding(
        level="warning",
        text=f"Tool use fell from {top.rate:.0%} to {now.rate:.0%} of rollouts and goes on towards zero.",
        advice="Compare `reward/tool` with `reward/no_tool`: calls that are mostly wrong are unlearnt. Resume from an "
        "earlier step with a larger `algorithm.resample_budget_frac`, or fine-tune on better calls first.",
    )


def _find_tool_use_vanishing(past: Past, is_standing: bool) -> Finding | None:
    now = past.share("rollout/tool_use_rate", "rollout/count", SHORT_STEPS)
    if past.num_steps < SHORT_STEPS or now.whole < MIN_ROLLOUTS or past.tool_use.part == 0:
        return None
    if now.rate >= (0.08 if is_standing else 0.05):
        return None
    top = past.top_tool_use or past.tool_use
    return Finding(
        level="error",
        text=f"Tool use fell from {top.rate:.0%} to {now.rate:.1%} of {now.whole:.0f} rollouts.",
        advice="Thinking drives acting out. Tool use at zero does not come back by itself: resume from an earlier "
        "step with `algorithm.resample_budget_frac` at 0.25 or more.",
    )


def _find_all_wrong_rising(past: Past, is_standing: bool) -> Finding | None:
    before, now = past.earlier_all_wrong, past.share("rollout/all_wrong_tool", "groups/tool_using", WINDOW_STEPS)
    if before.whole < MIN_QUESTIONS or now.whole < MIN_QUESTIONS:
        return None
    least_rise, least_z = (0.05, 2) if is_standing else (0.1, 3.5)
    if now.rate - before.rate < least_rise or _z_score(before, now) < least_z:
        return None
    return Finding(
        level="warning",
        text=f"Tool-using rollouts are all wrong on {now.rate:.0%} of {now.whole:.0f} questions; "
        f"before it was {before.rate:.0%}.",
        advice="The policy gets worse at using its tools. Read failed calls in the rollouts file; look whether tool "
        "use falls as well; raise `algorithm.resample_budget_frac`, or resume from an earlier step.",
    )


# -- tool calls -------------------------------------------------------------------------------------------------------


def _find_tool_failures(past: Past, is_standing: bool) -> Finding | None:
    steps, limit = past.last(CALL_STEPS), 0.4 if is_standing else 0.5
    shares = {name: _failures(steps, name) for name in ("", *_tool_names(past))}
    failing = {name: share for name, share in shares.items() if share.whole >= MIN_CALLS and share.rate > limit}
    if not failing:
        return None
    kinds = {key: sum(_values(steps, key)) for key in steps[-1] if key.startswith("tools/failures/")}
    worst = max(kinds, key=lambda key: kinds[key])
    named = [f"{share.rate:.0%} of {share.whole:.0f} {name or 'tool'} calls" for name, share in failing.items()]
    return Finding(
        level="error",
        text=f"{', '.join(named)} of the last steps failed, most failures: {worst.rpartition('/')[2]}.",
        advice="Read a few failing calls in the rollouts file. Malformed calls: the starting checkpoint does not write "
        "calls as its chat template does; fine-tune it first. Bad arguments: the tool's schema is unclear.",
    )


def _find_tool_unused(past: Past, is_standing: bool) -> Finding | None:
    steps, names = past.last(WINDOW_STEPS), _tool_names(past)
    num_rollouts = sum(_values(steps, "rollout/count"))
    unused = [name for name in names if not any(_values(steps, f"tools/{name}/calls"))]
    if len(steps) < WINDOW_STEPS or num_rollouts < MIN_ROLLOUTS or len(unused) in (0, len(names)):
        return None  # no tool at all is another alarm
    return Finding(
        level="warning",
        text=f"No call of {', '.join(unused)} in {num_rollouts:.0f} rollouts of {WINDOW_STEPS} steps, while other "
        "tools are called.",
        advice="A tool that is never called never improves. Is there a question that needs it, and does the starting "
        "checkpoint know it? Otherwise take it out of `data.tools`: it costs tokens in every prompt.",
    )


def _find_results_cut(past: Past, is_standing: bool) -> Finding | None:
    steps, limit = past.last(CALL_STEPS), 0.15 if is_standing else 0.2
    cut = {name: sum(_values(steps, f"tools/{name}/cut")) for name in _tool_names(past)}
    calls = {name: _failures(steps, name).whole for name in cut}
    often = [name for name, num in cut.items() if num >= 5 and num > limit * calls[name]]
    if not often:
        return None
    named = ", ".join(f"{cut[name]:.0f} of {calls[name]:.0f} results of {name}" for name in often)
    return Finding(
        level="warning",
        text=f"Too large, and lost a part: {named}.",
        advice="The model may miss what it asked for: raise `data.tool_limits.TOOL.max_result_tokens` (or the bounds "
        "on images), or make the tool answer more briefly.",
    )


def _find_tool_queue(past: Past, is_standing: bool) -> Finding | None:
    steps, slack = past.last(CALL_STEPS), 0.7 if is_standing else 1.0
    waiting: dict[str, float] = {}
    for name in _tool_names(past):
        waits, runs = (
            _total(steps, f"tools/{name}/{key}", f"tools/{name}/calls") for key in ("queue_seconds", "seconds")
        )
        if waits.whole >= MIN_CALLS and waits.rate > slack * max(1.0, runs.rate if runs.whole else 0.0):
            waiting[name] = waits.rate
    if not waiting:
        return None
    return Finding(
        level="warning",
        text=f"Calls wait longer than they run: {', '.join(f'{name} {s:.1f} s' for name, s in waiting.items())}.",
        advice="Raise `data.tool_limits.TOOL.max_concurrent` if the machine or the service can take it. A wait after "
        "infrastructure failures counts too: see the warnings on standard error.",
    )


# -- rollouts and questions -------------------------------------------------------------------------------------------


def _find_rollouts_dropped(past: Past, is_standing: bool) -> Finding | None:
    steps = past.last(SHORT_STEPS)
    dropped = sum(_values(steps, "rollout/dropped"))
    if not dropped:
        return None
    share = dropped / (dropped + sum(_values(steps, "rollout/count")) + sum(_values(steps, "resample/used")))
    return Finding(
        level="error" if share > 0.05 else "warning",
        text=f"{dropped:.0f} rollouts of the last {len(steps)} steps ({share:.1%}) were lost to infrastructure "
        "failures.",
        advice="They cost no reward but shrink their groups. Each fault is a warning on standard error; raise "
        "`rollout.time_limit_s` when the engine did not answer in time, else `rollout.max_fault_retries`.",
    )


def _find_truncation(past: Past, is_standing: bool) -> Finding | None:
    answered = past.share("stop/answered", "rollout/count", SHORT_STEPS)
    if answered.whole < MIN_ROLLOUTS or 1 - answered.rate <= (0.2 if is_standing else 0.25):
        return None
    limits = ("turn_limit", "token_limit", "time_limit")
    shares = {limit: past.share(f"stop/{limit}", "rollout/count", SHORT_STEPS) for limit in limits}
    named = [f"{limit} {share.rate:.0%}" for limit, share in shares.items() if share.part]
    return Finding(
        level="warning",
        text=f"{1 - answered.rate:.0%} of {answered.whole:.0f} rollouts were cut off before they answered"
        + (f" ({', '.join(named)})." if named else "."),
        advice="They count as wrong whatever they were about to say: raise `rollout.max_response_tokens`, "
        "`rollout.max_tool_turns` or `rollout.time_limit_s`, or look whether the dialogues repeat themselves.",
    )


def _find_no_signal(past: Past, is_standing: bool) -> Finding | None:
    share = past.share("groups/zero_signal", "rollout/count", WINDOW_STEPS)
    if past.num_steps < 3 or share.whole < 2 * MIN_ROLLOUTS or share.rate <= (0.85 if is_standing else 0.9):
        return None
    right, wrong = (past.share(key, "rollout/count", WINDOW_STEPS) for key in ("groups/all_right", "groups/all_wrong"))
    split = f" (all right {right.rate:.0%}, all wrong {wrong.rate:.0%})" if right.whole and wrong.whole else ""
    return Finding(
        level="warning",
        text=f"In {share.rate:.0%} of the groups all siblings got the same reward: no signal{split}.",
        advice="Questions are too easy or too hard for this policy, or it has become deterministic. Change the "
        "difficulty of the data, or sample more siblings (`rollout.group_size`).",
    )


def _find_image_downscaled(past: Past, is_standing: bool) -> Finding | None:
    share = past.pictures
    if share.whole < MIN_PICTURES or share.rate <= (0.4 if is_standing else 0.5):
        return None
    return Finding(
        level="warning",
        text=f"{share.part:.0f} of {share.whole:.0f} question pictures ({share.rate:.0%}) reach the model with less "
        "than half of their pixels.",
        advice="Small things in them may be unreadable without a zoom. Meant so (the mini task is): nothing to do. "
        "Else raise `model.max_image_px`, or take a checkpoint with a higher bound.",
    )


# -- resampling -------------------------------------------------------------------------------------------------------


def _find_budget_unused(past: Past, is_standing: bool) -> Finding | None:
    steps = [step for step in past.last(WINDOW_STEPS) if step.get("resample/budget")]
    used, triggered = (sum(_values(steps, f"resample/{name}")) for name in ("used", "triggered"))
    if len(steps) < WINDOW_STEPS or used or not triggered:  # without a call nothing triggers: another alarm
        return None
    return Finding(
        level="warning",
        text=f"{triggered:.0f} questions of the last {WINDOW_STEPS} steps were triggered, none was resampled.",
        advice="A prefix needs `algorithm.num_continuations` continuations at once: raise "
        "`algorithm.resample_budget_frac` or sample more questions a step.",
    )


def _find_nothing_recovered(past: Past, is_standing: bool) -> Finding | None:
    tried = past.unrecovered
    if tried.part < WINDOW_STEPS or tried.whole < MIN_ROLLOUTS:
        return None
    return Finding(
        level="warning",
        text=f"None of {tried.whole:.0f} continuations of the last {tried.part:.0f} steps that resampled was right.",
        advice="The tool does not help on these questions, or the prefixes are beyond repair: read a few "
        "continuations; raise `algorithm.num_continuations`, or fine-tune on better calls.",
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "non_finite": _find_non_finite,
        "canary_failed": _find_canary_failed,
        "logprob_gap": _find_logprob_gap,
        "tool_never_called": _find_tool_never_called,
        "calls_in_thinking": _find_calls_in_thinking,
        "tool_use_vanishing": _find_tool_use_vanishing,
        "tool_use_falling": _find_tool_use_falling,
        "all_wrong_rising": _find_all_wrong_rising,
        "tool_failures": _find_tool_failures,
        "tool_unused": _find_tool_unused,
        "results_cut": _find_results_cut,
        "tool_queue": _find_tool_queue,
        "rollouts_dropped": _find_rollouts_dropped,
        "truncation": _find_truncation,
        "no_signal": _find_no_signal,
        "entropy_collapse": _find_entropy_collapse,
        "kl_runaway": _find_kl_runaway,
        "image_downscaled": _find_image_downscaled,
        "budget_unused": _find_budget_unused,
        "nothing_recovered": _find_nothing_recovered,
    }
)
"""Alarm -> what raises it, in the order in which they are shown."""


# -- sums -------------------------------------------------------------------------------------------------------------


def _values(steps: Iterable[Record], key: str) -> list[float]:
    return [value for step in steps if (value := step.get(key)) is not None and math.isfinite(value)]


def _share(step: Record, rate_key: str, count_key: str) -> Share:
    rate, count = step.get(rate_key), step.get(count_key)
    return Share(part=rate * count, whole=count) if rate is not None and count else Share()


def _total(steps: Sequence[Record], rate_key: str, count_key: str) -> Share:
    return sum((_share(step, rate_key, count_key) for step in steps), start=Share())


def _z_score(low: Share, high: Share) -> float:
    """How many standard errors the second rate lies above the first, were both the same."""
    rate = (low + high).rate
    error = math.sqrt(rate * (1 - rate) * (1 / low.whole + 1 / high.whole))
    return (high.rate - low.rate) / error if error else 0.0


def _tool_names(past: Past) -> tuple[str, ...]:
    """Tools that a step logged."""
    keys = {
        key for step in past.last(WINDOW_STEPS) for key in step if key.startswith("tools/") and key.endswith("/calls")
    }
    return tuple(sorted(key.split("/")[1] for key in keys if key.count("/") == 2))


def _failures(steps: Sequence[Record], name: str) -> Share:
    """Failures of a tool's calls, faults of ours among them; of all calls with a result when `name` is empty."""
    kinds = [key for key in steps[-1] if key.startswith("tools/failures/")]
    calls = [f"tools/{name}/calls" if name else "tools/calls"]
    failures = [f"tools/{name}/failures"] if name else kinds
    if name:  # a fault of ours is no result of a call
        calls, failures = ([*keys, f"tools/{name}/faults"] for keys in (calls, failures))
    num_calls, num_failures = (sum(sum(_values(steps, key)) for key in keys) for keys in (calls, failures))
    return Share(part=num_failures, whole=num_calls)

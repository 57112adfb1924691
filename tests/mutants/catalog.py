"""Mutants: one deliberate mistake each, and the tests that must notice it.

`old` occurs exactly once in its file below `src/axpo`; keep it short, so that other edits leave it alone. A mutant that
changes nothing a test could see says why in `changes_nothing_because`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mutant:
    """Replaces `old` by `new` in `file`; `tests` are the nearest tests, as pytest takes them."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    changes_nothing_because: str = ""


def misfit(mutant: Mutant, package: Path) -> str | None:
    """Why the mutant cannot be applied to the code below `package`, and what to do; None when it can."""
    path = package / mutant.file
    count = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    if count == 1:
        return None
    return (
        f"{mutant.name}: its text {mutant.old!r} occurs {count} times in src/axpo/{mutant.file}, expected once. The "
        "code has changed: write the line as it is today into tests/mutants/catalog.py, or delete the mutant."
    )


def _mutants(file: str, tests: tuple[str, ...], *changes: tuple[str, str, str]) -> tuple[Mutant, ...]:
    """Mutants of one file with the same nearest tests, from (name, old, new)."""
    return tuple(Mutant(name, file, old, new, tests) for name, old, new in changes)


def _step(*cases: str) -> tuple[str, ...]:
    """Cases of the golden training step."""
    return tuple(f"{_GOLDEN_STEP}::test_a_step_is_that_of_the_equations[{case}]" for case in cases)


_GOLDEN_STEP = "tests/golden/test_training_step.py"
_STEP_PROPERTIES = "tests/properties/test_train_step_properties.py"
_LOSSES = ("tests/golden/test_losses.py",)
_ADVANTAGES = ("tests/golden/test_advantages.py",)
_CREDIT = ("tests/golden/test_credit.py",)
_RESAMPLING = ("tests/golden/test_resampling.py",)
_SYNC = ("tests/contracts/test_weight_sync.py",)
_LOOP = ("tests/unit/test_rollout_loop.py",)
_EXECUTOR = ("tests/unit/test_executor.py",)
_RENDERING = ("tests/unit/test_rendering.py",)
_QWEN = ("tests/contracts/test_qwen3_vl.py",)
_REWARDS = tuple(
    f"tests/unit/test_rewards.py::{test}"
    for test in (
        "test_the_final_answer_is_found_by_the_first_rule_that_fires",
        "test_text_is_equal_after_normalisation",
        "test_every_alias_counts",
        "test_an_option_is_named_by_letter_or_text",
        "test_plain_numbers_are_exact",
        "test_mathematics_is_compared_as_mathematics",
        "test_a_users_reward_that_is_not_binary_is_named_with_its_problem",
    )
)

_TRAINER = (
    *_mutants(
        "trainer/step.py",
        _step("token mean"),
        ("kl is detached", "algorithm.kl_coef * kl_BT", "algorithm.kl_coef * kl_BT.detach()"),
        ("kl is subtracted", "loss_BT + algorithm.kl_coef", "loss_BT - algorithm.kl_coef"),
        ("clip_low is ignored", "clip_low=algorithm.clip_low", "clip_low=0.2"),
        ("clip_high is ignored", "clip_high=algorithm.clip_high", "clip_high=0.4"),
        ("epoch is not in the shuffle seed", "/{step}/{epoch}", "/{step}"),
        ("step is not in the shuffle seed", "/{step}/{epoch}", "/{epoch}"),
        ("gradient is not clipped", "config.train.max_grad_norm", "float('inf')"),
        ("gradients of mini-batches add up", "optimizer.zero_grad(set_to_none=True)", "pass"),
        ("warm-up is ignored", "warmup_steps=config.train.warmup_steps", "warmup_steps=0"),
        ("epochs are ignored", "range(config.train.epochs)", "range(1)"),
        ("learning rate is the peak", 'group["lr"] = rate', 'group["lr"] = config.train.learning_rate'),
        ("gap counts every update", "if self.num_updates == 0", "if True"),
        ("clip fraction of the wrong sign", "(advantages_N < 0)", "(advantages_N > 0)"),
    ),
    *_mutants(
        "trainer/step.py",
        (*_step("sequence mean"),),
        ("aggregation is ignored", "aggregation=config.algorithm.aggregation", 'aggregation="token_mean"'),
    ),
    *_mutants(
        "trainer/step.py",
        _step("equation 5"),
        ("equation 5 forgets the mini-batches", "num_questions / max(1, len(mini_batches))", "float(num_questions)"),
    ),
    *_mutants(
        "trainer/step.py",
        _step("CISPO"),
        ("loss is always PPO", "[algorithm.loss]", '["ppo_clip"]'),
    ),
    *_mutants(
        "trainer/step.py",
        (f"{_GOLDEN_STEP}::test_each_kl_estimator_is_its_formula",),
        ("kl estimator is ignored", "algorithm.kl_estimator", '"k3"'),
    ),
    *_mutants(
        "trainer/step.py",
        _step("old log-probs of the trainer", "capped importance weights"),
        ("old log-probs are the engine's", 'config.algorithm.old_logprobs == "trainer"', "False"),
        ("importance weights are left out", "if algorithm.importance_cap == 0", "if True"),
        ("importance cap is ignored", "cap=algorithm.importance_cap)", "cap=1e9)"),
    ),
    *_mutants(
        "trainer/step.py",
        (f"{_GOLDEN_STEP}::test_scores_after_a_step_use_the_images_of_the_new_weights",),
        ("old image features are kept", "policy.forget_images()", "pass"),
    ),
    *_mutants(
        "trainer/step.py",
        (_STEP_PROPERTIES,),
        ("infinite loss is accepted", "if not torch.isfinite(loss)", "if False"),
        ("infinite gradient is accepted", "if not math.isfinite(grad_norm)", "if False"),
        ("rows without a loss are kept", "[row for row in rows if row.num_learning_tokens]", "list(rows)"),
        ("micro-batches ignore their limit", "max(1, max_tokens // ", "max(9, max_tokens // "),
        ("shortest rows first", "key=lambda index: -len(", "key=lambda index: len("),
    ),
    *_mutants(
        "trainer/policy.py",
        _step("token mean"),
        ("reference is the live model", "= _copy_without_gradient(model)", "= model"),
        ("temperature is ignored", "1.0 if is_demonstration else self._temperature", "1.0"),
        ("banned ids are ignored", "() if is_demonstration else self._banned_token_ids", "()"),
        ("frozen vision tower learns", "model.model.visual.requires_grad_(False)", "pass"),
    ),
    *_mutants(
        "trainer/policy.py",
        _step("LoRA"),
        ("adapters stay on in the reference", "self._model.disable_adapter()", "contextlib.nullcontext()"),
        ("lora_alpha is ignored", "lora_alpha=config.lora_alpha", "lora_alpha=config.lora_rank"),
    ),
    *_mutants(
        "trainer/policy.py",
        _step("learning vision tower"),
        (
            "reference shares features of a learning tower",
            "self._reference_features = ImageFeatureCache(self._reference, preprocessor, store)",
            "pass",
        ),
        ("reference shares a learning tower", "if not any(p.requires_grad", "if any(p.requires_grad"),
    ),
    *_mutants(
        "trainer/policy.py",
        (f"{_GOLDEN_STEP}::test_scores_after_a_step_use_the_images_of_the_new_weights",),
        (
            "image features are never forgotten",
            "self._features.clear()\n        self._reference_features.clear()",
            "self._reference_features.clear()",
        ),
    ),
    *_mutants(
        "trainer/policy.py",
        (f"{_GOLDEN_STEP}::test_demonstrations_are_scored_at_temperature_1_over_all_ids",),
        ("temperature of demonstrations", "1.0 if is_demonstration else self._temperature", "self._temperature"),
        (
            "banned ids of demonstrations",
            "() if is_demonstration else self._banned_token_ids",
            "self._banned_token_ids",
        ),
    ),
    *_mutants(
        "trainer/policy.py",
        (f"{_SYNC[0]}::test_an_engine_that_takes_every_update_passes",),
        ("adapters are merged with the wrong sign", "+ layer.get_delta_weight", "- layer.get_delta_weight"),
    ),
    *_mutants(
        "trainer/weight_sync.py",
        _SYNC,
        ("gap that is no number is accepted", "if not gap <= self._max_gap", "if gap > self._max_gap"),
        ("large gap is accepted", '"float32": 1e-3', '"float32": 1e3'),
        ("newer version is accepted", "completion.policy_version != version", "completion.policy_version < version"),
        ("older version is accepted", "completion.policy_version != version", "completion.policy_version > version"),
        ("checksum is not compared", "if found != given:", "if False:"),
    ),
    *_mutants(
        "trainer/schedule.py",
        ("tests/unit/test_schedule.py",),
        ("schedule is a step ahead", "(step - warmup_steps - 1)", "(step - warmup_steps)"),
        ("warm-up starts at zero", "(step / warmup_steps)", "((step - 1) / warmup_steps)"),
    ),
    *_mutants(
        "trainer/checkpoint.py",
        ("tests/unit/test_checkpoint.py",),
        ("one checkpoint is kept", "complete[-NUM_KEPT:]", "complete[-1:]"),
        ("best is never pointed at", "if state.best_step == state.step", "if False"),
        ("weights are not restored", 'parameter.data.copy_(tensors[f"master.{name}"])', "pass"),
        ("moments are not restored", "{i: m for i, m in moments.items() if m}", "{}"),
    ),
    *_mutants(
        "trainer/sources.py",
        ("tests/unit/test_rollout_source.py",),
        ("first step is skipped", "divmod(step - 1,", "divmod(step,"),
        ("every epoch has the same order", '"{seed}/{epoch}"', '"{seed}"'),
        ("rank is ignored", "rank=self._algorithm.rank", 'rank="confidence"'),
        ("branch_at is ignored", "branch_at=self._algorithm.branch_at", 'branch_at="first"'),
        ("budget is ignored", "budget_frac=self._algorithm.resample_budget_frac", "budget_frac=0.25"),
        ("advantage_std is ignored", "std=self._algorithm.advantage_std", 'std="sample"'),
        ("prefix_credit is ignored", "prefix_credit=self._algorithm.prefix_credit", "prefix_credit=True"),
        ("separate_groups is ignored", "separate_groups=self._algorithm.separate_groups", "separate_groups=True"),
    ),
)

_ALGORITHM = (
    *_mutants(
        "algo/losses.py",
        _LOSSES,
        (
            "surrogate is clipped on both sides",
            "torch.minimum(ratio * advantages,",
            "torch.minimum(clipped * advantages,",
        ),
        ("surrogate takes the maximum", "torch.minimum(ratio", "torch.maximum(ratio"),
        ("bounds are swapped", "1.0 - clip_low, 1.0 + clip_high", "1.0 - clip_high, 1.0 + clip_low"),
        (
            "CISPO weight has a gradient",
            "_policy_ratio(logprobs, old_logprobs, advantages).detach()",
            "_policy_ratio(logprobs, old_logprobs, advantages)",
        ),
        ("sampling policy has a gradient", "(logprobs - old_logprobs.detach())", "(logprobs - old_logprobs)"),
        ("k3 has the wrong sign", "torch.expm1(log_ratio) - log_ratio", "torch.expm1(log_ratio) + log_ratio"),
        ("mask is a product", "torch.where(mask_BT, values_BT, torch.zeros_like(values_BT))", "mask_BT * values_BT"),
        (
            "token mean over rows",
            "torch.ones_like(lengths_B) * lengths_B.sum()",
            "torch.ones_like(lengths_B) * len(lengths_B)",
        ),
        ("sequence mean counts empty rows", "lengths_B * learns_B.sum()", "lengths_B * len(lengths_B)"),
        ("prefix weighs like a rollout", "(RowRole.PREFIX, RowRole.CONTINUATION)", "(RowRole.CONTINUATION,)"),
        ("importance weights are not capped", ".exp().clamp(max=cap)", ".exp()"),
        (
            "exact KL weighs by the reference",
            "(logprobs_V.exp() * log_ratio_V)",
            "(reference_logprobs_V.exp() * log_ratio_V)",
        ),
        (
            "exact KL of banned tokens is infinite",
            "torch.where(logprobs_V.isneginf(), 0.0,",
            "torch.where(logprobs_V.isnan(), 0.0,",
        ),
    ),
    *_mutants(
        "algo/advantages.py",
        _ADVANTAGES,
        (
            "std conventions are swapped",
            'correction=1 if std == "sample" else 0',
            'correction=0 if std == "sample" else 1',
        ),
        ("eps is ignored", "else 0) + eps", "else 0)"),
        ("equal rewards are divided by eps", "if bool((rewards_G == rewards_G[0]).all()):", "if False:"),
        ("prefix is always recovered", "float(is_recovered)", "1.0"),
        ("prefix takes the first sibling's advantage", "eps=eps)[source]", "eps=eps)[0]"),
    ),
    *_mutants(
        "algo/credit.py",
        _CREDIT,
        ("source learns after its prefix", "advantage, prefix=branch.prefix)", "advantage)"),
        ("continuations learn the prefix", "max(segment.start, inherited)", "segment.start"),
        (
            "continuations share the siblings' baseline",
            "baseline = [] if separate_groups else rewards",
            "baseline = rewards",
        ),
        ("prefix keeps its own advantage", "if prefix_credit:", "if False:"),
        ("lost continuations mask their source", "branches.items() if branch.rollouts}", "branches.items()}"),
        ("prompt and results learn", "if segment.kind.is_sampled:", "if True:"),
        (
            "continuations count themselves alone",
            "RowRole.CONTINUATION, advantage, group_size=len(rewards)",
            "RowRole.CONTINUATION, advantage, group_size=1",
        ),
    ),
    *_mutants(
        "algo/credit.py",
        _step("token mean"),
        ("prefix row keeps later images", "rollout.images if prefix is None else prefix.images", "rollout.images"),
    ),
    *_mutants(
        "algo/prefixes.py",
        _RESAMPLING,
        ("cut is always at the first call", 'calls[0 if call == "first" else -1]', "calls[0]"),
        (
            "confidence is a geometric mean",
            "fmean(math.exp(logprob) for logprob in logprobs)",
            "math.exp(fmean(logprobs))",
        ),
        ("tags are never counted", "if tags or segment.kind", "if segment.kind"),
        ("trigger ignores correct tool use", "if not is_triggered(group):", "if not group.tool_using:"),
        ("last call is ranked by the first", '"all" if calls == "all" else branch_at', "calls"),
        (
            "empty call is as sure as all tags",
            "tokens or [call[0] for call in chosen]",
            "tokens or [call[0] for call in every_call]",
        ),
        ("continuations are sources", "if rollout.prefix is None", "if True"),
        (
            "tag at the token limit is a candidate",
            "prefix.num_tokens < len(source.token_ids)",
            "prefix.num_tokens <= len(source.token_ids)",
        ),
        ("unrun last call is a candidate", "s.start >= prefix.num_tokens", "s.start >= 0"),
        ("most confident first", "(prefix.confidence, prefix.source.id)", "(-prefix.confidence, prefix.source.id)"),
    ),
    *_mutants(
        "algo/resampling.py",
        (*_RESAMPLING, "tests/properties/test_resampling_properties.py"),
        (
            "budget is rounded in floating point",
            "int(Fraction(str(float(budget_frac))) * num_rollouts)",
            "int(budget_frac * num_rollouts)",
        ),
        ("last prefix may exceed the budget", "budget // num_continuations", "-(-budget // num_continuations)"),
        ("depth first", "(item[0], *ranking(item[1]))", "ranking(item[1])"),
        ("random rank has one seed", "random.Random(seed)", "random.Random(0)"),
        (
            "random rank depends on the order",
            "sorted(prefix.source.id for prefix in prefixes)",
            "(prefix.source.id for prefix in prefixes)",
        ),
        ("ids may repeat", "if rollout.id in seen:", "if False:"),
    ),
    *_mutants(
        "algo/statistics.py",
        ("tests/golden/test_statistics.py",),
        ("untriggered questions are all wrong", "is_triggered(group) and not any(", "not any("),
        ("restore rate has one denominator", 'if recovered or over == "triggered"', "if recovered"),
        ("subgroups are swapped", 'if subgroup == "tool"', 'if subgroup != "tool"'),
    ),
)

_MODELS = (
    *_mutants(
        "models/qwen3_vl.py",
        (f"{_QWEN[0]}::TestPositions", f"{_QWEN[0]}::TestTokenLogprobs"),
        (
            "text after an image starts at its height",
            "advance_T[place[-1]] = max(grid[1:])",
            "advance_T[place[-1]] = grid[1]",
        ),
        ("positions lag behind", "np.cumsum(advance_T) - advance_T", "np.cumsum(advance_T) - 1"),
        ("token is scored by its own hidden state", "columns_N - 1]", "columns_N]"),
        ("temperature is multiplied", "logits_NV / temperature\n", "logits_NV * temperature\n"),
        ("banned ids keep some probability", "banned_ids, -torch.inf", "banned_ids, -1.0"),
        ("deepstack takes the wrong level", "list(levels[1:])", "list(levels[:-1])"),
        ("first token may learn", "(columns_T == 0) |", "(columns_T < 0) |"),
        ("banned tokens may learn", "if is_banned_BT.any():", "if False:"),
    ),
    *_mutants(
        "models/qwen3_vl.py",
        (f"{_QWEN[0]}::TestImageFeatures",),
        ("newest image is evicted", "popitem(last=False)", "popitem(last=True)"),
        ("learning tower is never cached", "torch.is_grad_enabled() and any(", "any("),
        ("tower gets no gradient", "torch.is_grad_enabled() and any(", "False and any("),
        ("image is not moved to the end", "self._cached.move_to_end(sha256)", "pass"),
    ),
    *_mutants(
        "models/preprocessing.py",
        ("tests/unit/test_preprocessing.py",),
        ("max_pixels is ignored", 'size["longest_edge"] if max_pixels is None else max_pixels', 'size["longest_edge"]'),
        (
            "min_pixels is ignored",
            'size["shortest_edge"] if min_pixels is None else min_pixels',
            'size["shortest_edge"]',
        ),
        (
            "height and width are swapped",
            "height_px, width_px = self._smart_resize(height_px, width_px",
            "height_px, width_px = self._smart_resize(width_px, height_px",
        ),
        ("stripes are accepted", "> MAX_ASPECT_RATIO * min(", "> 2 * MAX_ASPECT_RATIO * min("),
    ),
    *_mutants(
        "models/loading.py",
        ("tests/unit/test_loading.py",),
        ("dropout stays on", "module.attention_dropout = 0.0", "pass"),
        ("missing weights are accepted", "if missing:", "if False:"),
    ),
    *_mutants(
        "models/checksums.py",
        ("tests/unit/test_checksums.py",),
        ("checksum shifts the sign in", ".bitwise_and_(_LOW_HALF)", ""),
        ("checksum ignores the precision", "piece.to(dtype).float()", "piece.float()"),
    ),
)

_REWARD_MUTANTS = (
    *_mutants(
        "rewards/math.py",
        _REWARDS,
        ("minus sign of a number is lost", '(-1 if match["sign"] == "-" else 1)', "1"),
        ("typographic minus is lost", '"−": "-",', '"−": "",'),
        ("dash is no minus", '"–": "-",', '"–": "",'),
        ("minus sign before a unit is lost", r"([+-]?[\d.,/\s]*\d)", r"[+-]?([\d.,/\s]*\d)"),
        ("negative numbers have no tolerance", "MAX_RELATIVE_ERROR * abs(gold))", "MAX_RELATIVE_ERROR * gold)"),
        ("percent sign is ignored", '(100 if match["percent"] else 1)', "1"),
        ("units are not compared", "gold_parts[1] == answer_parts[1] and is_equal_math(", "is_equal_math("),
        (
            "aliases are ignored in math",
            "any(is_equal_math(gold, answer) for gold in gold_answers(problem))",
            "is_equal_math(problem.answer, answer)",
        ),
    ),
    *_mutants(
        "rewards/text.py",
        _REWARDS,
        ("minus sign of a text is lost", 'is_sign = character == "-"', 'is_sign = character == "~"'),
        ("typographic minus of a text is lost", '"‐‑‒–—―−"', '"‐‑‒–—―"'),
        ("decimal point is lost", "before.isdigit() and after.isdigit()", "False"),
    ),
    *_mutants(
        "rewards/choice.py",
        _REWARDS,
        ("several options are one", "if len(letters) != 1 or", "if not letters or"),
        ("option beyond the last exists", "if not choices or index < len(choices) else None", "if True else None"),
    ),
    *_mutants(
        "rewards/answers.py",
        _REWARDS,
        ("first box counts", "start > last[0]", "start < last[0]"),
        ("thinking is read", 'text.rpartition("</think>")', 'text.partition("</think>")'),
    ),
    *_mutants(
        "rewards/__init__.py",
        _REWARDS,
        ("graded rewards are accepted", "value not in (0, 1)", "not 0 <= value <= 1"),
    ),
)

_ROLLOUT = (
    *_mutants(
        "rollout/loop.py",
        _LOOP,
        ("text next to a call is final", '"" if turn.tool_calls else turn.visible_text', "turn.visible_text"),
        ("cut-off answer is dropped", "StopReason.TOKEN_LIMIT, final_text", 'StopReason.TOKEN_LIMIT, ""'),
        ("inherited turns are free", "num_tool_turns=len(given) - 1", "num_tool_turns=0"),
        ("inherited tokens are free", "num_prompt_tokens=given[0].stop", "num_prompt_tokens=given[-1].stop"),
        (
            "inherited images appear twice",
            "dialogue.images[: len(dialogue.images) - num_result_images]",
            "dialogue.images",
        ),
        (
            "one tool turn too many",
            "dialogue.num_tool_turns >= limits.max_tool_turns",
            "dialogue.num_tool_turns > limits.max_tool_turns",
        ),
        ("result leaves no token", "if num_tokens >= room:", "if num_tokens > room:"),
        ("turns share a seed", "derive_seed(seed, dialogue.num_tool_turns)", "derive_seed(seed, 0)"),
        ("one call too many", "if number >= MAX_CALLS_PER_TURN", "if number > MAX_CALLS_PER_TURN"),
        ("waiting for others is charged", "clock.waited_s += results[-1].queue_time_s", "pass"),
        ("results of a late turn are lost", "dialogue.tool_results.extend(results)", "pass"),
        ("context limit is ignored", "min(room, limits.max_context_tokens - len(self.token_ids))", "room"),
        ("policy version is not recorded", "self.policy_version = completion.policy_version", "pass"),
        ("inherited results are lost", "tool_results=list(prefix.tool_results)", "tool_results=[]"),
    ),
    *_mutants(
        "rollout/collect.py",
        _LOOP,
        (
            "retry of a sibling reuses its seed",
            "rollout_id=rollout_id, seed=derive_seed(seed, rollout_id, attempt)",
            "rollout_id=rollout_id, seed=derive_seed(seed, rollout_id)",
        ),
        (
            "retry of a continuation reuses its seed",
            "rollout_id=rollout_id,\n                seed=derive_seed(seed, rollout_id, attempt)",
            "rollout_id=rollout_id,\n                seed=derive_seed(seed, rollout_id)",
        ),
        ("lost continuations are not counted", "sampled.num_dropped + num_dropped", "sampled.num_dropped"),
        ("lost siblings are not counted", "sampled.num_dropped + num_dropped", "num_dropped"),
        ("one retry too few", "range(max_retries + 1)", "range(max_retries)"),
        ("step without a survivor goes on", "if outcomes and all(", "if False and all("),
        ("steps share their seeds", 'tag=f"step-{step}"', 'tag="step"'),
    ),
    *_mutants(
        "rollout/seeding.py",
        _LOOP,
        ("names run into each other", '"\\x1f".join', '"".join'),
    ),
    *_mutants(
        "rollout/executor.py",
        (*_EXECUTOR, f"{_LOOP[0]}::test_a_branch_at_the_last_call_shows_its_tools_the_images_of_its_prefix"),
        ("one try too few", "num_tries > limits.max_retries", "num_tries >= limits.max_retries"),
        ("first pause is doubled", "2 ** (num_tries - 1)", "2**num_tries"),
        ("breaker opens late", "lane.num_faults >= limits.breaker_faults", "lane.num_faults > limits.breaker_faults"),
        ("refused calls are replayed", "recorded.failure.kind not in _NEVER_RAN", "recorded.failure.kind is not None"),
        (
            "replay is not compared",
            "if (again.content, again.failure) != (",
            "if False and (again.content, again.failure) != (",
        ),
        (
            "images are not replayed",
            "context.images.extend(block.image for block in recorded",
            "list(block.image for block in recorded",
        ),
        ("every tool is offered", "if call.name not in offered:", "if call.name not in self.tools:"),
        ("waiting of a tool is not reported", "queue_time_s=queued_s + context.waited_s", "queue_time_s=queued_s"),
        ("malformed calls run", "if call.parse_error is not None:", "if False:"),
    ),
    *_mutants(
        "rollout/rendering.py",
        _RENDERING,
        ("unclosed call is closed", "is_closed=close is not None", "is_closed=True"),
        ("shortened text loses its end", "num_tail = max_tokens // 2", "num_tail = 0"),
        ("stop tokens are banned", "(banned | unused) - set(self._stop_token_ids)", "banned | unused"),
        ("control text is not cut", r'rf"\1{_CUT}"', r'r"\1"'),
        ("call inside thinking is a call", "range(visible, end)", "range(0, end)"),
    ),
    *_mutants(
        "rollout/calls.py",
        _RENDERING,
        ("missing closing tag is accepted", "if not is_closed:", "if False:"),
        ("arguments nest one level deeper", "return limit == 0 or", "return limit < 0 or"),
        ("repeated keys are accepted", "if len(fields) < len(pairs):", "if False:"),
    ),
    *_mutants(
        "rollout/bounds.py",
        _EXECUTOR,
        (
            "stripes reach the model",
            "if num_kept == bounds.max_images or is_stripe:",
            "if num_kept == bounds.max_images:",
        ),
        ("one image too many", "if num_kept == bounds.max_images or", "if num_kept > bounds.max_images or"),
        ("large images are not scaled", "if num_px <= max_px:", "if True:"),
    ),
)

MUTANTS = (*_TRAINER, *_ALGORITHM, *_MODELS, *_REWARD_MUTANTS, *_ROLLOUT)

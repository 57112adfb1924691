"""Every option there is, with its unit. TOML tables map one to one to these classes; unknown keys are refused.

GRPO is this configuration with `algorithm.resample_budget_frac = 0`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from axpo.diagnostics.health import ALARM_NAMES
from axpo.errors import ConfigError

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""What a run can be tracked with; `axpo.integrations.trackers` makes them."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
OptionalText = Annotated[str | None, BeforeValidator(lambda value: None if value == "" else value)]
"""An empty text switches the option off."""
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: [name.strip() for name in value.split(",")] if isinstance(value, str) else value),
]
"""A list, or one text with commas."""


def check_names(names: tuple[str, ...], *, option: str, noun: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """`names` without repetitions. Raises `ValueError` for one that is not among `known`, with the nearest that is."""
    names = tuple(name for name in names if name)  # an empty text is an empty list
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise ValueError(f"{option}: unknown {noun} {name!r}; {hint}")
    return tuple(dict.fromkeys(names))


class Table(BaseModel):
    """Options under one heading. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RunConfig(Table):
    """[run] where and how it runs."""

    output_dir: Path = Path("runs/run")
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    num_threads: int = Field(default=0, ge=0)
    """CPU threads of torch; 0 leaves torch's own choice. Results repeat bit for bit only at an equal number."""
    trackers: Names = ()
    """Where `axpo train` and `axpo sft` send metrics, alarms and samples: any of `tensorboard`, `wandb`, `trackio`,
    `mlflow` (`docs/trackers.md`)."""

    @field_validator("trackers")
    @classmethod
    def _trackers_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(names, option="run.trackers", noun="tracker", known=TRACKERS)


class ModelConfig(Table):
    """[model] the checkpoint and what of it learns."""

    path: str
    """A folder or a hub id in the layout of Qwen3-VL, or `mini`: the small checkpoint that ships with this package.
    With an endpoint: the name under which it knows the model."""
    reference_path: OptionalText = None
    """The reference of the KL term, a checkpoint of the same model; default: `path`. When `path` comes out of
    reinforcement learning, name the supervised checkpoint here: otherwise the divergence is counted from `path`. With
    LoRA it takes the memory of a second model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision. Master weights and optimiser state are float32 in either case."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    max_image_px: int | None = Field(default=None, ge=1)
    """Pictures above this many pixels are scaled down for the model; default: the checkpoint's own bound."""
    freeze_vision: bool = True
    gradient_checkpointing: bool = False
    lora_rank: int = Field(default=0, ge=0)
    """0: all (unfrozen) weights learn; else LoRA adapters of this rank on the language model's linear layers."""
    lora_alpha: Positive = 32

    @model_validator(mode="after")
    def _adapters_leave_vision_alone(self) -> Self:
        if self.lora_rank and not self.freeze_vision:
            raise ValueError(
                "model.freeze_vision: LoRA adapters sit in the language model; set it to true, or lora_rank to 0"
            )
        return self


class ToolLimitsConfig(Table):
    """`data.tool_limits.TOOL`: how one tool is run, whatever it is (`axpo.rollout.executor`)."""

    timeout_s: float = Field(default=30.0, gt=0)
    """Wall clock of one try."""
    max_concurrent: Positive = 64
    """Calls that run at once; others wait, which is never charged to a rollout."""
    max_retries: int = Field(default=2, ge=0)
    """Further tries after a fault of ours."""
    backoff_s: float = Field(default=0.5, ge=0)
    """Pause before the first further try; it doubles with each."""
    breaker_faults: Positive = 5
    """Faults in a row after which nobody calls the tool for `breaker_pause_s`."""
    breaker_pause_s: float = Field(default=10.0, ge=0)
    max_result_tokens: Positive = 4096
    """Text of one result; what is longer loses its middle."""
    max_result_images: int = Field(default=8, ge=0)
    max_image_px: Positive = 4096 * 32 * 32
    """Larger images in results are scaled down."""


class DataConfig(Table):
    """[data] questions, demonstrations, tools and reward."""

    train: OptionalText = None
    """JSONL or Parquet of questions (`axpo train`) or of conversations (`axpo sft`), or `mini:SPLIT`."""
    eval: OptionalText = None
    """JSONL or Parquet of questions, or `mini:SPLIT`."""
    tools: Names = ("image_zoom_in",)
    """Names of built-in tools, `module:attribute` of your own, `mcp:NAME` of a server's, or `paper_tools`: the three of
    the paper."""
    tool_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What a tool is made with, by its name in `tools`: `tool_options = { image_zoom_in = { max_pixels = 9216 } }`."""
    tool_limits: dict[str, ToolLimitsConfig] = Field(default_factory=dict)
    """How a tool is run, by the name the model knows: `tool_limits = { python = { max_concurrent = 16 } }`."""
    reward: OptionalText = None
    """`module:attribute` of your own reward; default: the reward of each row's `answer_kind`."""
    reward_timeout_s: float = Field(default=300.0, gt=0)
    """Wall clock of your own reward on one final text. One that takes longer ends the run; `--resume` continues it."""
    system_prompt: OptionalText = None
    """Put before questions that bring no system message."""
    max_train_rows: int | None = Field(default=None, ge=1)
    max_eval_rows: int | None = Field(default=None, ge=1)


class RolloutConfig(Table):
    """[rollout] how dialogues are sampled in training."""

    questions_per_step: Positive = 16
    """B"""
    group_size: Annotated[int, Field(ge=2)] = 8
    """N, siblings per question."""
    max_tool_turns: int = Field(default=3, ge=0)
    """Tool-executing turns; one answer turn follows."""
    max_response_tokens: Positive = 4096
    """Everything after the prompt: sampled tokens and tool results."""
    time_limit_s: float = Field(default=600.0, gt=0)
    """Wall clock of one rollout."""
    max_fault_retries: int = Field(default=2, ge=0)
    """How often a rollout is tried again after a fault of ours before it is dropped and counted."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_batch_size: Positive = 256
    """Sequences the engine decodes at once."""


class AlgorithmConfig(Table):
    """[algorithm] GRPO and AXPO (`docs/paper_map.md`)."""

    resample_budget_frac: Fraction = 0.25
    """r: continuations of a step per rollout of that step; 0 is GRPO."""
    num_continuations: Annotated[int, Field(ge=2)] = 4
    """K"""
    rank: Literal["confidence", "random"] = "confidence"
    branch_at: Literal["first", "last"] = "first"
    confidence_calls: Literal["first", "all"] = "first"
    confidence_tags: bool = False
    """Count the tags' own probabilities too."""
    prefix_credit: bool = True
    """False (ablation): the source's prefix keeps its GRPO advantage."""
    separate_groups: bool = True
    """False (ablation): continuations take their baseline from siblings and continuations together."""
    advantage_std: Literal["sample", "population", "none"] = "sample"
    advantage_eps: float = Field(default=1e-6, ge=0)
    loss: Literal["ppo_clip", "cispo"] = "ppo_clip"
    clip_low: float = Field(default=0.2, ge=0)
    clip_high: float = Field(default=0.4, ge=0)
    old_logprobs: Literal["engine", "trainer"] = "engine"
    """Denominator of the policy's ratio: the probabilities with which the engine sampled, or the trainer's own before
    the first update of a step, from one more forward pass. Where the two differ (bfloat16), the engine's make the first
    ratios differ from 1."""
    importance_cap: float = Field(default=0.0, ge=0)
    """With `old_logprobs = "trainer"`: weigh each token's loss (not its KL term) by the trainer's over the engine's
    probability, at most this (truncated importance sampling; 2 is usual). 0: no weights."""
    aggregation: Literal["token_mean", "sequence_mean", "equation5"] = "token_mean"
    kl_coef: float = Field(default=1e-3, ge=0)
    """beta, nats of divergence from the reference (`model.reference_path`) to loss."""
    kl_estimator: Literal["k3", "exact"] = "k3"
    """`k3` estimates the divergence from the sampled token, at most 10 nats each; `exact` sums it over the whole
    vocabulary at every position, which costs the reference's language head in the forward and the backward pass."""

    @model_validator(mode="after")
    def _weights_need_both_probabilities(self) -> Self:
        if self.importance_cap and self.old_logprobs != "trainer":
            raise ValueError(
                "algorithm.importance_cap: weights compare the trainer's probabilities with the engine's; set "
                "algorithm.old_logprobs to trainer, or importance_cap to 0"
            )
        return self


class TrainConfig(Table):
    """[train] optimisation."""

    steps: Positive = 60
    learning_rate: float = Field(default=1e-6, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up; linear and cosine fall to the zero that would follow the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    mini_batches: Positive = 1
    """Optimiser updates per epoch over the rows of a step."""
    epochs: Positive = 1
    """Passes over the rows of a step, with the same old log-probs."""
    tokens_per_micro_batch: Positive = 16384
    """Padded tokens of one forward; memory only, never the result."""
    rows_per_step: Positive = 64
    """Conversations per step of `axpo sft`."""
    eval_every: int = Field(default=0, ge=0)
    """Steps; 0: only at the end."""
    save_every: Positive = 10
    """Steps between resumable checkpoints."""
    stop_on: Names = ()
    """Alarms (`docs/metrics.md`) that end the run, after a checkpoint; it can be resumed."""

    @field_validator("stop_on")
    @classmethod
    def _alarms_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(names, option="train.stop_on", noun="alarm", known=ALARM_NAMES)


class EvalConfig(Table):
    """[eval] held-out evaluation."""

    num_samples: Positive = 4
    """Rollouts per question; Pass@k is reported for k = 1 and k = this."""
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.8, gt=0, le=1)
    top_k: int = Field(default=20, ge=0)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the turn has sampled before."""
    max_tool_turns: int = Field(default=5, ge=0)
    max_response_tokens: Positive = 32768


class Config(Table):
    """A whole run."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


AnyConfig = TypeVar("AnyConfig", bound=Config)


def parse_config(table: Mapping[str, Any], *, origin: str, kind: type[AnyConfig] = Config) -> AnyConfig:
    """Validate TOML tables. Raises `ConfigError` with one line per mistake; `origin` says where they were written."""
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        lines = [_explain(problem, kind) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{origin}: {line}" for line in lines)) from error


def format_toml(config: Config) -> str:
    """The configuration as TOML, options that are None left out. `parse_config` of it gives `config` back."""
    blocks: list[str] = []
    for table, options in config.model_dump(mode="json", exclude_none=True).items():
        lines = [f"{name} = {_format_value(value)}" for name, value in options.items()]
        blocks.append("\n".join([f"[{table}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return "{" + ", ".join(f"{json.dumps(key)} = {_format_value(item)}" for key, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_format_value(item) for item in cast("list[Any]", value)) + "]"
    # JSON's strings, numbers and booleans are valid TOML.
    return json.dumps(value, ensure_ascii=False)


def option_names(kind: type[Config] = Config) -> tuple[str, ...]:
    """Every option as `table.option`, in the order of their definition."""
    tables = kind.model_fields.items()
    return tuple(f"{table}.{name}" for table, field in tables for name in _options_of(field.annotation))


def check_option(name: str, kind: type[Config] = Config) -> None:
    """Raise `ConfigError` with the nearest known name unless `name` is an option `table.option`."""
    if name not in option_names(kind):
        raise ConfigError(f"{name}: unknown option{_suggestion(name, kind)}")


def _options_of(table: Any) -> tuple[str, ...]:
    assert issubclass(table, Table)
    return tuple(table.model_fields)


_NAMES_ELSEWHERE = {
    "num_generations": "rollout.group_size",
    "n": "rollout.group_size",
    "rollout_n": "rollout.group_size",
    "max_completion_length": "rollout.max_response_tokens",
    "max_response_length": "rollout.max_response_tokens",
    "max_new_tokens": "rollout.max_response_tokens",
    "max_tool_calling_iterations": "rollout.max_tool_turns",
    "max_assistant_turns": "rollout.max_tool_turns",
    "train_batch_size": "rollout.questions_per_step",
    "generation_batch_size": "rollout.questions_per_step",
    "per_device_train_batch_size": "train.tokens_per_micro_batch",
    "ppo_micro_batch_size_per_gpu": "train.tokens_per_micro_batch",
    "gradient_accumulation_steps": "train.tokens_per_micro_batch",
    "ppo_max_token_len_per_gpu": "train.tokens_per_micro_batch",
    "ppo_mini_batch_size": "train.mini_batches",
    "num_iterations": "train.epochs",
    "ppo_epochs": "train.epochs",
    "num_train_epochs": "train.steps",
    "total_epochs": "train.steps",
    "max_steps": "train.steps",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "grad_clip": "train.max_grad_norm",
    "save_steps": "train.save_every",
    "save_freq": "train.save_every",
    "eval_steps": "train.eval_every",
    "test_freq": "train.eval_every",
    "report_to": "run.trackers",
    "logger": "run.trackers",
    "beta": "algorithm.kl_coef",
    "kl_loss_coef": "algorithm.kl_coef",
    "epsilon": "algorithm.clip_low",
    "epsilon_high": "algorithm.clip_high",
    "clip_ratio": "algorithm.clip_low",
    "clip_ratio_low": "algorithm.clip_low",
    "clip_ratio_high": "algorithm.clip_high",
    "loss_type": "algorithm.aggregation",
    "loss_agg_mode": "algorithm.aggregation",
    "scale_rewards": "algorithm.advantage_std",
    "norm_adv_by_std_in_grpo": "algorithm.advantage_std",
    "reward_funcs": "data.reward",
    "train_files": "data.train",
    "val_files": "data.eval",
}
"""Option of TRL or verl -> the option here that is the same or serves the same purpose."""


def find_option(name: str) -> str | None:
    """The option that another trainer calls `name` (without its table); None when there is none.

    >>> find_option("num_generations")
    'rollout.group_size'
    """
    return _NAMES_ELSEWHERE.get(name)


def _suggestion(name: str, kind: type[Config]) -> str:
    if (elsewhere := find_option(name.rpartition(".")[2])) is not None and elsewhere in option_names(kind):
        return f"; here that is {elsewhere}"
    known = option_names(kind) if "." in name else tuple(kind.model_fields)
    if name.startswith("data.tool_limits."):
        known = tuple(f"{name.rpartition('.')[0]}.{option}" for option in ToolLimitsConfig.model_fields)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not nearest and "." in name:
        option = name.rpartition(".")[2]
        nearest = [other for other in known if other.endswith(f".{option}")][:1]
    return f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(kind.model_fields)}"


_BOUNDS = {
    "greater_than_equal": ("ge", ">="),
    "greater_than": ("gt", ">"),
    "less_than_equal": ("le", "<="),
    "less_than": ("lt", "<"),
}


def _explain(problem: Mapping[str, Any], kind: type[Config]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    rule, given = str(problem["type"]), problem.get("input")
    if rule == "extra_forbidden":
        return f"{name}: unknown option{_suggestion(name, kind)}"
    if rule == "missing":
        return f"{name}: required but not given"
    if rule == "value_error":
        return str(problem["ctx"]["error"])
    if rule in _BOUNDS:
        bound, sign = _BOUNDS[rule]
        return f"{name}: expected a number {sign} {problem['ctx'][bound]:g}, got {given!r}"
    if rule == "model_type":
        return f"{name}: expected a table [{name}], got {given!r}"
    expected = str(problem["msg"]).removeprefix("Input should be ").removeprefix("a valid ").replace("tuple", "list")
    return f"{name}: expected {expected}, got {given!r}"

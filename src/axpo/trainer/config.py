"""Every option there is, with its unit. TOML tables map one to one to these classes; unknown keys are refused.

GRPO is this configuration with `algorithm.resample_budget_frac = 0`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class RunConfig(_Table):
    """[run] where and how it runs."""

    output_dir: Path = Path("runs/run")
    seed: int = 0
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    num_threads: int = Field(default=0, ge=0)
    """CPU threads of torch; 0 leaves torch's own choice. Results repeat bit for bit only at an equal number."""


class ModelConfig(_Table):
    """[model] the checkpoint and what of it learns."""

    path: str
    """A folder or a hub id in the layout of Qwen3-VL."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute precision. Master weights and optimiser state are float32 in either case."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    freeze_vision: bool = True
    gradient_checkpointing: bool = False
    lora_rank: int = Field(default=0, ge=0)
    """0: all (unfrozen) weights learn; else LoRA adapters of this rank on the language model's linear layers."""
    lora_alpha: float = Field(default=32.0, gt=0)


class DataConfig(_Table):
    """[data] questions, demonstrations, tools and reward."""

    train: str | None = None
    """JSONL or Parquet of questions (`axpo train`) or of conversations (`axpo sft`), or `mini:SPLIT`."""
    eval: str | None = None
    """JSONL or Parquet of questions, or `mini:SPLIT`."""
    tools: tuple[str, ...] = ("image_zoom_in",)
    """Names of built-in tools, or `module:attribute` of your own."""
    reward: str | None = None
    """`module:attribute` of your own reward; default: the reward of each row's `answer_kind`."""
    system_prompt: str | None = None
    """Put before questions that bring no system message."""
    max_train_rows: int | None = Field(default=None, ge=1)
    max_eval_rows: int | None = Field(default=None, ge=1)


class RolloutConfig(_Table):
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
    tool_timeout_s: float = Field(default=30.0, gt=0)
    """Wall clock of one tool call."""
    max_fault_retries: int = Field(default=2, ge=0)
    """How often a rollout is tried again after a fault of ours before it is dropped and counted."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_batch_size: Positive = 256
    """Sequences the engine decodes at once."""


class AlgorithmConfig(_Table):
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
    aggregation: Literal["token_mean", "sequence_mean", "equation5"] = "token_mean"
    kl_coef: float = Field(default=1e-3, ge=0)
    """beta, nats of divergence from the initial checkpoint to loss."""
    kl_estimator: Literal["k1", "k3"] = "k3"


class TrainConfig(_Table):
    """[train] optimisation."""

    steps: Positive = 60
    learning_rate: float = Field(default=1e-6, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up; linear and cosine end at zero."""
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    mini_batches: Positive = 1
    """Optimiser updates per epoch over the rows of a step."""
    epochs: Positive = 1
    """Passes over the rows of a step, with frozen behaviour log-probs."""
    tokens_per_micro_batch: Positive = 16384
    """Padded tokens of one forward; memory only, never the result."""
    rows_per_step: Positive = 64
    """Conversations per step of `axpo sft`."""
    eval_every: int = Field(default=0, ge=0)
    """Steps; 0: only at the end."""
    save_every: Positive = 10
    """Steps between resumable checkpoints."""


class EvalConfig(_Table):
    """[eval] held-out evaluation."""

    num_samples: Positive = 4
    """Rollouts per question; Pass@k is reported for k = 1 and k = this."""
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.8, gt=0, le=1)
    top_k: int = Field(default=20, ge=0)
    max_tool_turns: int = Field(default=5, ge=0)
    max_response_tokens: Positive = 32768


class Config(_Table):
    """A whole run."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

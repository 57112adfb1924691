"""The options that evaluating on benchmarks has beside those of a run: an endpoint, a judge, presets."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from axpo.trainer.config import Config, Names, OptionalText, Positive, Table

PROTOCOLS: dict[str, dict[str, Any]] = {
    "axpo": {
        "num_samples": 4,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "presence_penalty": 1.5,
        "max_tool_turns": 5,
        "max_response_tokens": 32768,
    },
    "qwen": {
        "num_samples": 4,
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 20,
        "presence_penalty": 0.0,
        "max_tool_turns": 5,
        "max_response_tokens": 40960,
    },
    "mini": {
        "num_samples": 4,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "presence_penalty": 0.0,
        "max_tool_turns": 3,
        "max_response_tokens": 272,
    },
}
"""Values of `[eval]`: `axpo` as the paper evaluates, `qwen` as the cards of Qwen3-VL-Thinking advise for images,
`mini` as the checkpoint that ships was trained: under the paper's presence penalty it cannot end a turn.
"""
MINI_TOOLS: dict[str, Any] = {
    "tools": ["image_zoom_in", "python", "search"],
    "tool_options": {
        "image_zoom_in": {"min_pixels": 9216, "max_pixels": 9216},
        "search": {"index": "mini:corpus"},
    },
}
"""The tools that the checkpoint that ships knows (`recipes/mini_cpu/mixed.toml`)."""


class EndpointConfig(Table):
    """[endpoint] an OpenAI-compatible service instead of a checkpoint, for `axpo eval` on benchmarks."""

    url: OptionalText = None
    """Up to `/v1`, as http://127.0.0.1:8000/v1."""
    api_key_env: OptionalText = None
    """Name of the environment variable that holds the key; none is sent without."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Wall clock of one request."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries after a fault of the service."""
    max_concurrent: Positive = 32
    """Dialogues under way at once."""
    max_image_px: int | None = Field(default=None, ge=1)
    """Larger images are scaled down before they are sent; default: sent as they are."""
    dialect: Literal["auto", "vllm", "openai"] = "auto"
    """How a tool turn is sent. vllm: images inside the tool message and the thinking of earlier turns as
    `reasoning_content`; openai: images in a user message after it and no thinking; auto: vllm, or openai for a service
    that refuses vllm at the check before the run."""
    checkpoint: OptionalText = None
    """Folder or hub id of the served checkpoint: the check before the run then compares prompt tokens exactly."""
    check: bool = True
    """Send one tool turn before a run and stop when the server does not render it as the checkpoint's template does.
    Without the check `auto` means vllm."""
    omit: Names = ()
    """Request fields that the service refuses, such as `top_k` or `seed`."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further request fields."""
    px_per_token: Positive = 1024
    """Pixels that one prompt token of an image stands for: 32 x 32 for Qwen3-VL. Bounds what reached the model."""
    usd_per_million_prompt_tokens: float | None = Field(default=None, ge=0)
    usd_per_million_completion_tokens: float | None = Field(default=None, ge=0)


class JudgeConfig(Table):
    """[judge] a language model for answers that no rule decides, behind an OpenAI-compatible service."""

    url: OptionalText = None
    model: OptionalText = None
    api_key_env: OptionalText = None
    timeout_s: float = Field(default=120.0, gt=0)
    max_retries: int = Field(default=5, ge=0)
    max_concurrent: Positive = 16
    omit: Names = ()
    """Request fields that the service refuses, such as `temperature`."""
    extra_body: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.url is None) != (self.model is None):
            raise ValueError("judge.url and judge.model: give both, or none for no judge")
        return self


class BenchmarkConfig(Config):
    """What `axpo eval --benchmarks` runs with."""

    endpoint: EndpointConfig = EndpointConfig()
    judge: JudgeConfig = JudgeConfig()

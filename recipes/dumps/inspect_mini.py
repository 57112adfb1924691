"""Make a real log of inspect_ai with a tool, on the counting questions of the mini task. CPU, half a minute.

    pip install "axpo[inspect]"
    python recipes/dumps/inspect_mini.py runs/inspect_mini
    axpo diagnose runs/inspect_mini

inspect runs the task `axpo/mini_count` with its mock model, which answers by chance: directly, or after a call of the
tool, of the tool with a box outside the picture, or of a tool that does not exist.
"""

from __future__ import annotations

import random
import sys
from typing import Any

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

CALLS = [("image_zoom_in", 100), ("image_zoom_in", 100), ("image_zoom_in", 900), ("zoom", 100)]


class Chance:
    """The mock model's turns."""

    def __init__(self) -> None:
        self.rng = random.Random(3)

    def __call__(self, messages: list[Any], *_: Any) -> ModelOutput:
        """An answer or a call."""
        if messages[-1].role == "tool" or self.rng.random() < 0.5:
            output = ModelOutput.from_content("mockllm", f"<answer>{self.rng.choice('123')}</answer>")
        else:
            tool, left = self.rng.choice(CALLS)
            box = {"bbox_2d": [left, 100, 400, 400], "label": "the card"}
            output = ModelOutput.for_tool_call("mockllm", tool, box)
        output.usage = ModelUsage(input_tokens=40, output_tokens=8, total_tokens=48)  # counting needs a download
        return output


def main(log_dir: str) -> None:
    """Three epochs of four questions; pictures stay out of the log."""
    (log,) = inspect_eval(
        "axpo/mini_count",
        model=get_model("mockllm/model", custom_outputs=Chance()),
        task_args={"limit": 4, "samples": 3, "tools": "image_zoom_in"},
        log_dir=log_dir,
        log_images=False,
        display="none",
        max_samples=1,
        max_connections=1,
    )
    print(log.status, log.location)


if __name__ == "__main__":
    main(sys.argv[1])

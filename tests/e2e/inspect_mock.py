"""Run in a process of its own: a benchmark's inspect_ai task with a mock model, results as JSON on the last line."""

from __future__ import annotations

import json
import sys

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model


def turn(number: int, _input: list, tools: list, *_: object) -> ModelOutput:
    assert [tool.name for tool in tools] == ["image_zoom_in"]
    if number % 2 == 0:
        box = {"bbox_2d": [100, 100, 400, 400], "label": "the card"}
        return ModelOutput.for_tool_call("mockllm", "image_zoom_in", box)
    return ModelOutput.from_content("mockllm", "I see 4 of them.\n</think>\n\n<answer>3</answer>")


class Script:
    """Turns of dialogues that run one after the other: a call, then an answer."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, *request: object) -> ModelOutput:
        output = turn(self.number, *request)
        output.usage = ModelUsage(input_tokens=40, output_tokens=8, total_tokens=48)  # counting needs a download
        self.number += 1
        return output


def main(log_dir: str) -> None:
    model = get_model("mockllm/model", custom_outputs=Script())
    (log,) = inspect_eval(
        "axpo/mini_count",
        model=model,
        task_args={"limit": 8, "samples": 2, "tools": "image_zoom_in"},
        log_dir=log_dir,
        display="none",
        max_samples=1,
        max_connections=1,
    )
    assert log.status == "success", log.error
    first = (log.samples or [])[0]
    metrics = {f"{score.name}/{score.reducer}": score.metrics["mean"].value for score in log.results.scores}
    golds = [sample.target for sample in log.samples or []]
    transcript = first.store["axpo_transcript"]
    print(
        json.dumps(
            {
                "task": log.eval.task,
                "metrics": metrics,
                "right": sum(gold == "3" for gold in golds) / len(golds),
                "roles": [message.role for message in first.messages],
                "calls": [result["call"]["name"] for result in transcript["tool_results"]],
                "crop": bool(transcript["tool_results"][0]["content"]),
                "thinking": transcript["turns"][-1]["reasoning"],
                "final_text": transcript["final_text"],
                "explanation": first.scores["verdict"].explanation,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])

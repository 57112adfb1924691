"""What an evaluation of benchmarks writes of each rollout and its verdict. Imports no torch: reports read it too."""

from __future__ import annotations

from dataclasses import dataclass

from axpo.dialogue import Transcript, Verdict
from axpo.errors import RecordError


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRollout:
    """One of the n tries at a question: a line of `rollouts/BENCHMARK.jsonl`, written once and never changed."""

    benchmark: str
    problem_id: str
    sample: int
    """0 .. n-1"""
    transcript: Transcript | None
    """None: lost to faults of ours at every try. It counts as wrong and stays in n."""
    fault: str = ""
    """The last fault, when it was lost."""
    picture_px: int = 0
    """Pixels of the question's pictures."""
    effective_px: int | None = None
    """How many of them reached the model at most, after scaling; None when nobody can tell."""
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        if (self.transcript is None) != bool(self.fault):
            raise RecordError(f"SampledRollout {self.problem_id}/{self.sample}: a transcript or a fault, never both")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRollout:
    """A try with its verdict: all that numbers and reports read."""

    rollout: SampledRollout
    verdict: Verdict

    @property
    def is_correct(self) -> bool:
        """True when it was judged right."""
        return self.verdict.is_correct

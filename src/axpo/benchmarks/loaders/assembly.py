"""From records of published files to `Problem`s, the same way for every benchmark."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence

from axpo.benchmarks.benchmark import even_slice
from axpo.benchmarks.containers import Record
from axpo.tasks.fields import Place
from axpo.types import JsonValue, Message, Problem


def keep_evenly(records: Sequence[Record], limit: int | None) -> list[Record]:
    """`limit` of the records, evenly spaced; all without a limit."""
    return [records[index] for index in even_slice(len(records), limit)]


def build_problem(
    *,
    benchmark: str,
    problem_id: str,
    message: Message,
    answer: str,
    categories: Mapping[str, str],
    cluster: str | None = None,
    choices: Sequence[str] = (),
    aliases: Sequence[str] = (),
    scorer_data: Mapping[str, JsonValue] | None = None,
) -> Problem:
    """A question with the metadata that `axpo.benchmarks.benchmark.Load` promises. A cluster of its own by default."""
    metadata: dict[str, JsonValue] = {
        "benchmark": benchmark,
        "cluster": problem_id if cluster is None else cluster,
        "categories": dict(categories),
        "choices": list(choices),
        "aliases": list(aliases),
        **(scorer_data or {}),
    }
    return Problem(id=problem_id, messages=(message,), answer=answer, metadata=metadata)


def gold_letter(record: Record, field: str, choices: Sequence[str]) -> str:
    """The letter of the right option, as a capital. Raises `DataError` when it names no option."""
    letter = record.text(field).strip("(). ").upper()
    if len(letter) != 1 or letter not in string.ascii_uppercase[: len(choices)]:
        raise record.place.at(field).error(
            f"expected the letter of one of {len(choices)} options", got=record.fields[field], fix="Correct the label."
        )
    return letter


def unique(built: Iterable[tuple[Place, Problem]]) -> tuple[Problem, ...]:
    """The problems. Raises `DataError` when two have one id."""
    problems: dict[str, Problem] = {}
    places: dict[str, Place] = {}
    for place, problem in built:
        if problem.id in problems:
            raise place.error(
                f"its id was used before, in {places[problem.id]}", got=problem.id, fix="Ids must be unique."
            )
        problems[problem.id], places[problem.id] = problem, place
    return tuple(problems.values())

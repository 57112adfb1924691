"""A run's folder: whose it is, who may write it, and with which options a run may go on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from axpo.cli.benchmark_config import BenchmarkConfig
from axpo.cli.overrides import lay_over, load_config
from axpo.errors import ConfigError
from axpo.trainer.config import Config

CHANGEABLE_ON_RESUME = frozenset(
    {
        "run.output_dir",
        "run.device",
        "run.num_threads",
        "run.trackers",
        "data.eval",
        "data.max_eval_rows",
        "data.reward_timeout_s",
        "rollout.time_limit_s",
        "rollout.max_fault_retries",
        "rollout.max_batch_size",
        "train.steps",
        "train.eval_every",
        "train.save_every",
        "train.tokens_per_micro_batch",
        "train.stop_on",
    }
)
"""Options that leave what is learnt alone, beside `eval.*`; `train.steps` moves the end of a falling schedule."""
CHANGEABLE_WHEN_EVALUATING = frozenset(
    {"run.output_dir", "run.device", "run.num_threads", "run.trackers", "rollout.max_batch_size"}
    | {"rollout.max_fault_retries", "train.stop_on"}
    | {f"endpoint.{name}" for name in ("url", "api_key_env", "timeout_s", "max_retries", "max_concurrent", "check")}
    | {f"endpoint.usd_per_million_{name}_tokens" for name in ("prompt", "completion")}
)
"""Options, beside `judge.*`, that leave alone what a benchmark's questions are asked with."""
CHANGEABLE_TOOL_OPTIONS = frozenset(
    {"max_requests", "requests_per_second", "cost_per_request", "timeout_s", "max_concurrent", "max_retries"}
    | {"backoff_s", "breaker_faults", "breaker_pause_s", "api_key_env", "env_from", "headers_env"}
)
"""Of `data.tool_options.TOOL` and `data.tool_limits.TOOL`: what says how a service is asked, not what it answers."""


def check_folder(folder: Path, config: Config, *, resume: bool) -> None:
    """Refuse to write into another run. Raises `ConfigError`."""
    if not has_files(folder):
        return
    if not resume:
        raise ConfigError(
            f"run.output_dir: {folder} is not empty. Continue that run with --resume, or choose another folder with "
            "--run.output_dir."
        )
    saved_path = folder / "config.toml"
    if not saved_path.is_file():
        raise ConfigError(f"run.output_dir: {folder} holds files but no config.toml, so it is no run to resume.")
    saved, given = (_flatten(of.model_dump(mode="json", exclude_none=True)) for of in (load_config(saved_path), config))
    changed = [
        f"{name} was {saved.get(name)!r}, now {given.get(name)!r}"
        for name in sorted({*saved, *given})
        if saved.get(name) != given.get(name) and not _is_changeable(name)
    ]
    if changed and any((folder / "checkpoints").glob("step-*")):
        raise ConfigError(
            f"{folder}: the run was started with other options: {'; '.join(changed)}. Resume it with those it had, or "
            "start a new run with model.path set to its checkpoint."
        )


def check_not_taken(folder: Path) -> None:
    """Refuse to record an evaluation over a training run or whatever else is there. Raises `ConfigError`."""
    has_files(folder)
    names = ("config.toml", "run.json", "metrics.jsonl", "summary.json", "table.md", "report.html")
    taken = [name for name in (*names, "rollouts", "problems", "verdicts", "journal.jsonl") if (folder / name).exists()]
    if taken:
        raise ConfigError(
            f"--out: {folder} holds {taken[0]} and no eval.json, so it is no evaluation to continue. Choose another "
            "folder."
        )


def check_unchanged(folder: Path, config: BenchmarkConfig) -> None:
    """Refuse to go on with an evaluation under other options. Raises `ConfigError`."""
    saved = _flatten(lay_over(folder / "config.toml", {}, kind=BenchmarkConfig).model_dump(mode="json"))
    given = _flatten(config.model_dump(mode="json"))
    for name in sorted({*saved, *given}):
        is_changeable = name in CHANGEABLE_WHEN_EVALUATING or name.startswith("judge.") or _is_traffic(name)
        if saved.get(name) != given.get(name) and not is_changeable:
            raise ConfigError(
                f"{folder}: holds an evaluation with {name} = {saved.get(name)!r}, not {given.get(name)!r}. Go on with "
                "that, or choose another folder with --out."
            )


def _flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _is_traffic(name: str) -> bool:
    is_tool = name.startswith(("data.tool_options.", "data.tool_limits."))
    return is_tool and name.rpartition(".")[2] in CHANGEABLE_TOOL_OPTIONS


def _is_changeable(name: str) -> bool:
    if _is_traffic(name):
        return True
    return name.startswith("eval.") or name in CHANGEABLE_ON_RESUME


def has_files(folder: Path) -> bool:
    """True when something was recorded there. Raises `ConfigError` when it cannot be a folder."""
    with _usable(folder):
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file")
        # a start that was killed before anything was complete leaves no more than these
        return any(path.is_file() and path.suffix not in (".partial", ".lock") for path in folder.rglob("*"))


@contextlib.contextmanager
def _usable(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"run.output_dir: {folder} cannot be the folder of a run ({error.strerror}). Choose another folder with "
            "--run.output_dir or --out."
        ) from error


@contextlib.contextmanager
def hold_folder(folder: Path) -> Generator[None]:
    """Keep other processes from writing this run; a kill lets go. Raises `ConfigError` when one writes already."""
    with _usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"run.output_dir: another process is writing {folder}. Wait for it to end, or choose another folder."
            ) from error
        yield

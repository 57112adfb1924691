"""A TOML file plus `--table.option value` from the command line make one `Config`."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from axpo.errors import ConfigError
from axpo.trainer.config import AnyConfig, Config, check_option, parse_config

_OVERRIDE = re.compile(r"--(?P<name>[A-Za-z_]\w*(?:\.\w+)+)(?:=(?P<value>.*))?", re.DOTALL)
_PATH_OPTIONS = (("data", "train"), ("data", "eval"), ("model", "path"))


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--table.option value` and `--table.option=value` out of `argv`; returns the rest and the overrides.

    Raises `ConfigError` when a value is missing.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        value = match["value"] if match["value"] is not None else next(words, None)
        if value is None or _OVERRIDE.fullmatch(value):
            raise ConfigError(f"--{match['name']}: expected a value after it")
        overrides[match["name"]] = value
    return rest, overrides


def parse_literal(text: str) -> Any:
    """A TOML number, boolean, string, list or inline table, or a JSON object; anything else is the string it is.

    >>> parse_literal('{"chat_template_kwargs": {"enable_thinking": true}}')
    {'chat_template_kwargs': {'enable_thinking': True}}
    >>> [parse_literal(text) for text in ("1e-5", "true", "runs/a", '["x", "y"]', "2026-01-01")]
    [1e-05, True, 'runs/a', ['x', 'y'], '2026-01-01']
    """
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # besides bad syntax: numbers of thousands of digits, brackets nested deeply
        return _parse_json_object(text)
    value = table["value"]
    return value if len(table) == 1 and isinstance(value, (bool, int, float, str, list, dict)) else text


def _parse_json_object(text: str) -> Any:
    try:
        value = json.loads(text) if text.lstrip().startswith("{") else text
    except (ValueError, RecursionError):
        return text
    return value


def load_config(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """Read a TOML file and lay overrides over it, see `lay_over`. Raises `ConfigError`."""
    return lay_over(path, overrides or {}, kind=Config)


def lay_over(
    path: Path | None,
    overrides: Mapping[str, str],
    *,
    kind: type[AnyConfig],
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> AnyConfig:
    """`defaults`, a TOML file over them (if any), overrides over both.

    Relative data and model paths mean: in the file, relative to its folder (a recipe works from anywhere); in an
    override, relative to the current directory. `run.output_dir` is relative to the current directory in both.
    Raises `ConfigError`.
    """
    tables: dict[str, Any] = {name: dict(options) for name, options in (defaults or {}).items()}
    origin = "options" if path is None else str(path)
    if path is not None:
        written = _read_toml(path)
        _anchor_paths(written, path.parent)
        tables = _merge(tables, written, origin)
    given: dict[str, dict[str, Any]] = {}
    for name, text in overrides.items():
        check_option(name, kind)
        table, option = name.split(".")
        given.setdefault(table, {})[option] = parse_literal(text)
    _anchor_paths(given, Path())
    return parse_config(_merge(tables, given, origin), origin=origin, kind=kind)


def _merge(tables: dict[str, Any], over: Mapping[str, Any], origin: str) -> dict[str, Any]:
    for table, options in over.items():
        if not isinstance(options, dict) or not isinstance(tables.setdefault(table, {}), dict):
            given = options if not isinstance(options, dict) else tables[table]
            raise ConfigError(f"{origin}: {table}: expected a table [{table}], got {given!r}")
        tables[table].update(cast("dict[str, Any]", options))
    return tables


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _anchor_paths(tables: Mapping[str, Any], folder: Path) -> None:
    for table, option in _PATH_OPTIONS:
        options: Any = tables.get(table)
        if not isinstance(options, dict):
            continue
        value: Any = options.get(option)
        if isinstance(value, str) and value and _is_relative_path(value, folder, may_be_hub_id=table == "model"):
            options[option] = str((folder / value).resolve())


def _is_relative_path(value: str, folder: Path, *, may_be_hub_id: bool) -> bool:
    if re.match(r"\w+:", value) or Path(value).is_absolute():
        return False
    if may_be_hub_id:
        # os.path.isdir is False, where Path.is_dir raises, for a name that the file system refuses
        return value.startswith(("./", "../")) or (value != "mini" and os.path.isdir(folder / value))
    return True

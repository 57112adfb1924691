"""What each number means, in the words of the documentation: `python -m axpo.reports.definitions` renews the copy.

`docs/metrics.md` (logged keys, alarms), `docs/report.md` (what the page adds) and `docs/diagnose.md` are the source;
`definitions.json` beside this file is what an installed package carries of them. A test compares both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

_EDGE = re.compile(r" \|(?= )")
"""Between two cells; a bar inside of one has no spaces around it."""
_NAME = re.compile(r"`([^`]+)`")
SOURCES = ("docs/metrics.md", "docs/report.md", "docs/diagnose.md")


def parse_definitions(markdown: str) -> dict[str, str]:
    """Rows of tables whose first cell is one name in backticks: name -> meaning, with unit and healthy range.

    An alarm's name gets `alarm/` before it, a number of a diagnosis `diagnose/`. Other tables are passed over.

    >>> parse_definitions("| key | meaning | unit | healthy |\\n|---|---|---|---|\\n| `a/b` | Calls | share | rises |")
    {'a/b': 'Calls. Unit: share. Healthy: rises.'}
    """
    found: dict[str, str] = {}
    heading: list[str] = []
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in _EDGE.split(line.strip().strip("|"))] if line.startswith("|") else []
        name = _NAME.fullmatch(cells[0]) if cells else None
        if not cells:
            heading = []
        elif name is None:
            heading = heading or cells
        else:
            row = dict(zip(heading[1:], cells[1:], strict=False))
            if row.keys() & {"meaning", "raised when"}:
                found[_PREFIXES.get(heading[0], "") + name[1]] = _sentence(row)
    return found


def _sentence(cells: Mapping[str, str]) -> str:
    parts = [cells.get("meaning") or cells.get("raised when") or ""]
    parts += [f"{word}: {cells[column]}" for word, column in _EXTRAS.items() if cells.get(column)]
    return " ".join(f"{part.replace('`', '').rstrip('.')}." for part in parts if part)


_PREFIXES = {"alarm": "alarm/", "name": "diagnose/"}
_EXTRAS = {"Unit": "unit", "Healthy": "healthy", "What to do": "what to do"}


@cache
def load_definitions() -> dict[str, str]:
    """All of them."""
    return json.loads((files("axpo.reports") / "static" / "definitions.json").read_text(encoding="utf-8"))


def define(key: str) -> str:
    """The definition of a logged key or of a term; empty when there is none.

    >>> define("tools/search/use_rate") == define("tools/{name}/use_rate") != ""
    True
    """
    known = load_definitions()
    return next((known[name] for name in _spellings(key) if name in known), "")


def _spellings(key: str) -> list[str]:
    """A key and the general names it may be documented under: of any tool, any n, any category."""
    parts = key.split("/")
    last = re.sub(r"^pass@\d+$", "pass@{n}", parts[-1])
    general = [key, "/".join([*parts[:-1], last])]
    if len(parts) == 3:
        general += [f"{parts[0]}/{{name}}/{last}", f"{parts[0]}/{parts[-1]}", f"{parts[0]}/{last}"]
    return general


def main() -> None:
    """Renew `static/definitions.json` from the documentation of this checkout."""
    root = Path(__file__).parents[3]
    found = {key: text for name in SOURCES for key, text in parse_definitions((root / name).read_text()).items()}
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parent / "static" / "definitions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Parts of a page: a template, a policy that allows the page's own scripts and styles only, its data."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from axpo.reports.definitions import define
from axpo.reports.tables import percent, share_range


def render_page(
    template: str,
    *,
    scripts: Sequence[str],
    styles: Sequence[str],
    data: Mapping[str, Any],
    live: bool = False,
    **values: Any,
) -> str:
    """A page that runs `scripts` (files of `static/`, in one scope, after uPlot) and nothing else.

    `styles` are texts. `data` is what scripts read, by name. `live`: it may ask the place it came from, and only it.
    """
    script = "\n".join(["(() => {", '"use strict";', *map(read_static, scripts), "})();"])
    plots, style = read_static("uplot.iife.min.js"), "\n".join(styles)
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            live=live,
            policy=_policy(scripts=(plots, script), style=style, is_live=live),
            style=style,
            scripts=(plots, script),
            data={name: as_json(value) for name, value in data.items()},
        )
    )


class StyleSheet:
    """The style of a page that computes some declarations: each becomes a class, because no inline style is allowed.

    >>> css = StyleSheet("p { margin: 0; }")
    >>> css("width: 5%"), css("width: 9%"), css("width: 5%")
    ('s0', 's1', 's0')
    >>> css.text().splitlines()[-1]
    '.s1 { width: 9%; }'
    """

    def __init__(self, *texts: str) -> None:
        self._texts = texts
        self._classes: dict[str, str] = {}

    def __call__(self, declarations: str) -> str:
        """The class that has these declarations."""
        return self._classes.setdefault(declarations, f"s{len(self._classes)}")

    def text(self) -> str:
        """Everything, for the page's style element."""
        rules = (f".{name} {{ {declarations}; }}" for declarations, name in self._classes.items())
        return "\n".join([*self._texts, *rules])


def render_plain_page(template: str, css: StyleSheet, **values: Any) -> str:
    """A page without scripts. The template calls `css` for computed styles and, at its end, `policy` for that style."""
    return _environment().get_template(template).render(**values, css=css, policy=_style_policy)


def write_page(page: str, path: Path) -> None:
    """Write it whole or not at all. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(page.encode("utf-8", "replace"))
    partial.replace(path)


@cache
def read_static(name: str) -> str:
    """A file of `static/`."""
    return (files("axpo.reports") / "static" / name).read_text(encoding="utf-8")


def color_rules(colors: Sequence[tuple[str, str]]) -> str:
    """`.arm-0`, `.arm-1`, ...: the (light, dark) colour of each line of a chart."""
    rules = (f".arm-{index} {{ --c: light-dark({light}, {dark}); }}" for index, (light, dark) in enumerate(colors))
    return "\n".join(rules)


def as_json(value: Any) -> str:
    """JSON for a script element: no `<` in it, so that nothing can end the element or open a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _policy(*, scripts: Sequence[str], style: str, is_live: bool) -> str:
    """Nothing but these scripts, this style, and pictures that are in the page or in the folder beside it."""
    hashes = " ".join(_hash(script) for script in scripts)
    connect = "connect-src 'self'; " if is_live else ""
    return (
        f"default-src 'none'; script-src {hashes}; style-src {_hash(style)}; img-src data: 'self'; {connect}"
        "base-uri 'none'; form-action 'none'"
    )


def _style_policy(style: str) -> str:
    return f"default-src 'none'; style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("axpo.reports")
    environment = Environment(
        autoescape=True,  # everything a model wrote is text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
    )
    environment.filters |= {"percent": percent, "seconds": seconds_text, "define": define, "interval": share_range}
    return environment


def seconds_text(value: float | None) -> str:
    """`0.0031` -> `3.1 ms`; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"

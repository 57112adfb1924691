"""What `axpo eval` shows of evaluated benchmarks: one folder's results, a table over several, two compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from axpo.cli.benchmark_config import BenchmarkConfig
from axpo.cli.console import RunConsole
from axpo.cli.overrides import lay_over
from axpo.codec import from_json, to_json
from axpo.diagnostics.recorder import read_run_info
from axpo.errors import ConfigError, DataError, RecordError
from axpo.evaluation.compare import compare, comparison_markdown
from axpo.evaluation.folder import BenchmarkResult, Manifest, read_manifest, read_results
from axpo.evaluation.scorecard import BenchmarkSummary, Interval
from axpo.evaluation.summary import summarize
from axpo.files import write_atomically
from axpo.reports.benchmarks import BenchmarkRecords, Evaluation, write_page
from axpo.reports.paper_table import build_paper_table, paper_html, paper_markdown


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """`summary.json`: all numbers of an evaluation, and what every question came to."""

    manifest: Manifest
    summaries: tuple[BenchmarkSummary, ...]


def write_results(folder: Path, *, console: RunConsole) -> None:
    """Numbers, table and page of a folder whose rollouts are judged; the numbers on the terminal."""
    manifest, results = read_results(folder)
    summaries = tuple(
        summarize(
            result.info,
            result.problems,
            result.rollouts,
            num_samples=manifest.num_samples,
            tools=manifest.tools,
            judge=result.info.judge,
        )
        for result in results
    )
    scores = Scores(manifest=manifest, summaries=summaries)
    write_atomically(folder / "summary.json", [json.dumps(to_json(scores), ensure_ascii=False)])
    table = build_paper_table([(manifest.label, summaries)])
    write_atomically(folder / "table.md", [paper_markdown(table)])
    write_page(_evaluation(folder, manifest, summaries, results), folder / "report.html")
    console.show(_terminal_table(manifest, summaries))
    for summary in summaries:
        for alarm in summary.alarms:
            console.say(f"{summary.info.title}: {alarm.text} {alarm.advice}")
    console.say(f"report: {folder / 'report.html'}")


def _evaluation(
    folder: Path, manifest: Manifest, summaries: Sequence[BenchmarkSummary], results: Sequence[BenchmarkResult]
) -> Evaluation:
    return Evaluation(
        label=manifest.label,
        folder=folder,
        benchmarks=tuple(
            BenchmarkRecords(summary=summary, problems=result.problems, rollouts=result.rollouts)
            for summary, result in zip(summaries, results, strict=True)
        ),
        facts=_facts(folder, manifest),
    )


def _facts(folder: Path, manifest: Manifest) -> dict[str, str]:
    """What was run, for the head of the page."""
    config = lay_over(folder / "config.toml", {}, kind=BenchmarkConfig)
    options, info = config.eval, read_run_info(folder)
    sampling = (
        f"temperature {options.temperature:g}, top-p {options.top_p:g}, top-k {options.top_k}, "
        f"presence penalty {options.presence_penalty:g}"
    )
    return {
        "Model": config.model.path + (f" at {config.endpoint.url}" if config.endpoint.url else ""),
        "Seed": str(manifest.seed),
        "Sampling": sampling,
        "Limits": f"{options.max_tool_turns} tool turns, {options.max_response_tokens} tokens",
        "Tools": ", ".join(manifest.tools) or "none",
        "Rules": _rules(manifest),
        "Started": str(info.get("started_at", "")),
        "Commit": str(info.get("commit") or "not from a checkout"),
        "Machine": f"{info.get('machine', '')}, {info.get('device', '')}",
    }


def _rules(manifest: Manifest) -> str:
    official = [info.title for info in manifest.benchmarks if info.is_official]
    if not official:
        return "axpo's"
    return "the authors'" if len(official) == len(manifest.benchmarks) else f"the authors' for {', '.join(official)}"


def read_scores(folder: Path) -> Scores:
    """`summary.json` of a folder, or that file itself. Raises `DataError`."""
    path = folder if folder.is_file() else folder / "summary.json"
    if not path.is_file():
        hint = " Run its `axpo eval` command to the end." if read_manifest(folder) else ""
        raise DataError(f"{folder}: holds no summary.json of `axpo eval --benchmarks`.{hint}")
    try:
        return from_json(Scores, json.loads(path.read_bytes()))
    except (OSError, ValueError, RecordError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not the numbers of an evaluation: {error}. Run its `axpo eval` command again."
        ) from error


def print_comparison(folders: Sequence[Path], *, out: Path | None) -> None:
    """Two methods on the questions they share; several folders with one label are training runs of one method.

    Raises `DataError`, `ConfigError`.
    """
    scores = [read_scores(folder) for folder in folders]
    labels = [of.manifest.label for of in scores]
    if len(folders) == 2 and labels[0] == labels[1]:
        labels = [folder.name for folder in folders]
    runs = {label: [of.summaries for of, own in zip(scores, labels, strict=True) if own == label] for label in labels}
    if len(runs) != 2:
        raise ConfigError(
            f"axpo eval compare: expected two methods, got {len(runs)}: {', '.join(runs)}. Folders with one label are "
            "runs of one method."
        )
    (label_a, a), (label_b, b) = runs.items()
    comparison = compare(a, b, labels=(label_a, label_b))
    if out is None or out.suffix != ".json":
        _print(comparison_markdown(comparison), out)
    else:
        write_atomically(out, [json.dumps(to_json(comparison), ensure_ascii=False, indent=1) + "\n"])
        print(f"comparison: {out}")


def print_table(folders: Sequence[Path], *, out: Path | None) -> None:
    """The paper's table, a row for each folder. Raises `DataError`, `ConfigError`."""
    scores = [read_scores(folder) for folder in folders]
    table = build_paper_table([(of.manifest.label, of.summaries) for of in scores])
    if out is None or out.suffix != ".html":
        _print(paper_markdown(table), out)
    else:
        write_atomically(out, [paper_html(table)])
        print(f"table: {out}")


def _print(text: str, out: Path | None) -> None:
    if out is not None and out.suffix != ".md":
        raise ConfigError(f"--out: expected a file ending in .md or .json, got {out}.")
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text)
    if out is not None:
        write_atomically(out, [text])


def _terminal_table(manifest: Manifest, summaries: Sequence[BenchmarkSummary]) -> Table:
    num_samples = manifest.num_samples
    title = f"{manifest.label}: {num_samples} sample(s) a question, 95% intervals clustered by question"
    table = Table(title=escape(title))
    names = {"pass@1": "Pass@1", f"pass@{num_samples}": f"Pass@{num_samples}", "tool_use_rate": "tool use"}
    for heading in ("benchmark", "N", *names.values(), "any sample", "truncated"):
        table.add_column(heading, justify="left" if heading == "benchmark" else "right")
    for summary in summaries:
        cells = (summary.number(name) for name in (*names, "tool_use_any", "truncated"))
        table.add_row(escape(summary.info.title), str(summary.num_questions), *map(_cell, cells))
    return table


def _cell(interval: Interval) -> str:
    if interval.estimate is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{100 * interval.estimate:.1f} %"
    low, high = (f"{100 * bound:.1f}".replace("100.0", "100") for bound in (interval.low, interval.high))  # 80 columns
    return f"{100 * interval.estimate:.1f} %\n[dim]{low}-{high}[/dim]"

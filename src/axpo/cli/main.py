"""`axpo`: train, fine-tune, evaluate, diagnose, report, index, check the installation, show the demo."""

from __future__ import annotations

import argparse
import difflib
import errno
import functools
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo import __version__
from axpo.cli.diagnose import add_arguments as add_diagnose_arguments
from axpo.cli.probe import add_arguments as add_probe_arguments
from axpo.errors import AlarmError, AxpoError, StorageError, UserError
from axpo.trainer.interrupts import Interrupts

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_ALARM = 4
EXIT_INTERRUPTED = 130

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
"""The system's own words say it all."""

_OVERRIDES = "Any option of the configuration: --table.option VALUE, for example --train.learning_rate 1e-5."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    0 done, 2 a mistake of the user, 3 `axpo diagnose --fail-if` holds, 4 an alarm of `--stop-on` was raised,
    130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        from axpo.cli.overrides import split_overrides

        given = words
        words, overrides = split_overrides(words)
        if words[:1] == ["eval"] and words[1:2] in (["compare"], ["table"]):
            words = [" ".join(words[:2]), *words[2:]]
        arguments = _parse(words)
        arguments.words = given
        takes_options = arguments.command in ("train", "sft", "eval") or getattr(arguments, "probe", None)
        if overrides and not takes_options:
            raise UserError(f"axpo {arguments.command}: takes no --{next(iter(overrides))}")
        arguments.overrides = overrides
        return arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:  # before a run began, or in a command that only reads
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if not isinstance(error, StorageError) and error.errno not in _DISK_ERRORS:
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAULT


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words. An argument that the command does not know ends the program with the command's usage."""
    parser, commands = _build_parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands[arguments.command]
        command.error(f"unrecognized arguments: {' '.join(unknown)}{_hint(unknown[0], command)}")
    return arguments


def _hint(word: str, command: argparse.ArgumentParser) -> str:
    """Name the option that an unknown word may have meant; empty when none is similar."""
    from axpo.trainer.config import find_option

    if not word.startswith("--"):
        return ""
    words = [part.strip("[],") for part in command.format_help().split() if "--" in part]
    near = difflib.get_close_matches(word, words, n=1)
    elsewhere = find_option(word[2:].replace("-", "_")) if command.epilog else None
    meant = near[0] if near else elsewhere and f"--{elsewhere}"
    return f"; did you mean {meant}?" if meant else ""


def _build_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser, and the parsers of its commands by name."""
    parser = argparse.ArgumentParser(prog="axpo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"axpo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    for name, run, text in (
        ("train", _train, "Reinforcement learning: AXPO, or GRPO with algorithm.resample_budget_frac = 0."),
        ("sft", _train, "Supervised fine-tuning on conversations."),
    ):
        command = add(name, run, text)
        command.epilog = _OVERRIDES
        command.add_argument("config", type=Path, metavar="CONFIG.toml")
        command.add_argument("--resume", action="store_true", help="continue after the last checkpoint of the run")
        command.add_argument(
            "--stop-on", metavar="NAMES", help="alarms that end the run, with commas (docs/metrics.md)"
        )
    _add_eval(add("eval", _evaluate, "Pass@k and tool use: on data.eval of a configuration, or on benchmarks."))
    command = add("eval compare", _compare, "Two evaluations on the same questions, with intervals of the difference.")
    command.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="two folders of `axpo eval --benchmarks`, or more: folders with one label are training runs of one method",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="also write it there: .md or .json")
    command = add("eval table", _table, "The paper's table over several evaluations: rows methods, columns benchmarks.")
    command.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    command.add_argument("--out", type=Path, metavar="FILE", help="also write it there: .md or .html")
    command = add("diagnose", _diagnose, "Do these rollouts, of any trainer, have the gap? What would AXPO do?")
    add_diagnose_arguments(command)
    add_probe_arguments(command)
    command = add("report", _report, "One self-contained HTML file about one run or several.")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default: report.html in RUN; for several runs, next to the first",
    )
    command.add_argument("--rollouts", choices=("some", "all"), default="some", help="how many go in; default some")
    command = add("watch", _watch, "The report of a run while it trains, on this machine's loopback.")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    command.add_argument("--port", type=int, default=0, metavar="INT", help="default: any that is free")
    command.add_argument("--open", action="store_true", help="in the browser")
    command = add("index", _index, "A local index for the search tools, from a JSONL file or a folder.")
    command.add_argument("source", type=Path, metavar="SOURCE")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--language", default="english", help="how words are cut to their stems; default english")
    add("doctor", _doctor, "What this installation can do.")
    command = add("demo", _demo, "GRPO and AXPO side by side on the mini task, on this machine's CPU.")
    command.add_argument("--minutes", type=float, default=10.0, metavar="FLOAT", help="time to spend; default 10")
    command.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR")
    command.add_argument("--seed", type=int, default=0, metavar="INT")
    return parser, commands.choices


def _add_eval(command: argparse.ArgumentParser) -> None:
    command.epilog = (
        f"{_OVERRIDES} Further: `axpo eval compare A B`, `axpo eval table DIR...`. "
        "The same command with the same --out continues where an earlier one stopped."
    )
    command.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml")
    command.add_argument("--out", type=Path, metavar="DIR", help="where to record")
    command.add_argument("--checkpoint", type=Path, metavar="PATH", help="a model folder, a checkpoint or a run")
    of = command.add_argument_group("benchmarks")
    of.add_argument("--benchmarks", metavar="NAMES", help="with commas: mathvision,dynamath,vstar, or a .jsonl file")
    of.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR|NAME=SOURCE",
        help="a folder that holds them, or one benchmark's folder or hub id; default: the hub",
    )
    of.add_argument("--model", metavar="MODEL", help="a folder, a run, a hub id, or what the endpoint calls it")
    of.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible service, as http://127.0.0.1:8000/v1")
    of.add_argument("--preset", choices=("axpo", "full"), default="axpo", help="the paper's subsets, or everything")
    of.add_argument(
        "--protocol",
        choices=("axpo", "qwen", "mini"),
        help="sampling and limits; default: CONFIG's, else axpo, or mini for the model that ships",
    )
    of.add_argument("--limit", type=int, metavar="N", help="questions a benchmark, evenly spaced")
    of.add_argument("--no-tools", action="store_true", help="offer none")
    of.add_argument("--official", action="store_true", help="ask, read and judge as each benchmark's authors do")
    of.add_argument("--label", metavar="TEXT", help="the row's name in tables; default: the model's")
    of.add_argument("--retry-lost", action="store_true", help="try again what was lost to faults")


# -- commands ---------------------------------------------------------------------------------------------------------


def _train(arguments: argparse.Namespace) -> int:
    from axpo.cli.folders import check_folder
    from axpo.cli.overrides import load_config
    from axpo.tasks.jsonl import check_file

    if arguments.stop_on is not None:
        arguments.overrides["train.stop_on"] = arguments.stop_on
    config = load_config(arguments.config, arguments.overrides)
    words = [word for name, value in arguments.overrides.items() for word in (f"--{name}", value)]
    resume_line = shlex.join(["axpo", arguments.command, str(arguments.config), "--resume", *words])

    def run(interrupts: Interrupts) -> None:
        from axpo.cli.build import open_training
        from axpo.cli.console import DEMONSTRATION_COLUMNS, ROLLOUT_COLUMNS, RunConsole
        from axpo.trainer.loop import train

        is_demonstration = arguments.command == "sft"
        console = RunConsole(
            columns=DEMONSTRATION_COLUMNS if is_demonstration else ROLLOUT_COLUMNS,
            num_steps=config.train.steps,
            rollouts_per_step=0 if is_demonstration else config.rollout.questions_per_step * config.rollout.group_size,
        )
        with (
            open_training(
                config, is_demonstration=is_demonstration, resume=arguments.resume, console=console
            ) as training,
            console,
        ):
            training.interrupts = interrupts
            train(training)
        console.say(f"done: {config.run.output_dir}")

    check_folder(config.run.output_dir, config, resume=arguments.resume)
    for source in filter(None, (config.data.train, config.data.eval)):
        if not source.startswith("mini:"):
            check_file(Path(source))
    _begin(f"{config.run.output_dir}: loading model and data")
    return _guard(run, folder=config.run.output_dir, resume_line=resume_line)


def _evaluate(arguments: argparse.Namespace) -> int:
    from axpo.cli.overrides import load_config

    if arguments.benchmarks is not None:
        return _evaluate_benchmarks(arguments)
    if arguments.config is None:
        raise UserError("axpo eval: give a CONFIG.toml, or --benchmarks NAMES with --model.")
    config = load_config(arguments.config, arguments.overrides)
    folder = arguments.out or config.run.output_dir.with_name(f"{config.run.output_dir.name}-eval")

    def run(_: Interrupts) -> None:
        from axpo.cli.build import run_evaluation
        from axpo.cli.console import RunConsole

        with RunConsole(columns=(), num_steps=0) as console:
            run_evaluation(config, folder=folder, checkpoint=arguments.checkpoint, console=console)

    _begin(f"{folder}: loading model and data")
    return _guard(run, folder=folder)


def _evaluate_benchmarks(arguments: argparse.Namespace) -> int:
    from axpo.cli.benchmark_eval import read_request, run_benchmarks
    from axpo.cli.console import RunConsole

    if arguments.checkpoint is not None:
        raise UserError("axpo eval: with --benchmarks write --model PATH in place of --checkpoint.")
    request = read_request(arguments)

    def run(_: Interrupts) -> None:
        with RunConsole(columns=(), num_steps=0) as console:
            run_benchmarks(request, console=console)

    _begin(f"{request.folder}: loading model and benchmarks")
    return _guard(run, folder=request.folder, resume_line=shlex.join(["axpo", *arguments.words]))


def _diagnose(arguments: argparse.Namespace) -> int:
    from axpo.cli.diagnose import run_diagnose

    if bool(arguments.paths) == (arguments.probe is not None):
        raise UserError("axpo diagnose: give either FILE_OR_DIR of rollouts or --probe CONFIG.toml, not both.")
    if arguments.probe is not None:
        return _probe(arguments)
    from axpo.reports.diagnosis import write_diagnosis

    return run_diagnose(
        arguments.paths,
        format=arguments.format,
        mapping=arguments.mapping,
        correct_at=arguments.correct_at,
        budget_frac=arguments.budget_frac,
        num_continuations=arguments.num_continuations,
        fail_if=arguments.fail_if,
        json_path=arguments.json,
        html_path=arguments.html,
        write_html=write_diagnosis,
    )


def _probe(arguments: argparse.Namespace) -> int:
    from axpo.cli.overrides import load_config
    from axpo.cli.probe import open_judge, probe_folder, run_probe

    folder = arguments.out or probe_folder(load_config(arguments.probe, arguments.overrides))
    judge = open_judge(arguments.judge_url, arguments.judge_model, arguments.judge_key_env)

    def run(_: Interrupts) -> None:
        run_probe(
            arguments.probe,
            arguments.checkpoint,
            arguments.overrides,
            num_questions=arguments.questions,
            num_continuations=arguments.continuations,
            max_prefixes=arguments.max_prefixes,
            out=arguments.out,
            judge=judge,
        )

    _begin(f"{folder}: loading model and data")
    return _guard(run, folder=folder, resume_line=shlex.join(["axpo", *arguments.words]))


def _compare(arguments: argparse.Namespace) -> int:
    from axpo.cli.benchmark_results import print_comparison

    print_comparison(arguments.folders, out=arguments.out)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from axpo.cli.benchmark_results import print_table

    print_table(arguments.folders, out=arguments.out)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from axpo.files import writing
    from axpo.reports.html import write_report

    runs: list[Path] = arguments.runs
    out = arguments.out or (runs[0] if len(runs) == 1 else runs[0].parent) / "report.html"
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder. Name a file in it, such as {out / 'report.html'}.")
    with writing(out):
        write_report(list(dict.fromkeys(run.resolve() for run in runs)), out, rollouts=arguments.rollouts)
    print(f"report: {out}")
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    from axpo.cli.watch import run_watch

    return run_watch(arguments.runs, port=arguments.port, open_browser=arguments.open)


def _index(arguments: argparse.Namespace) -> int:
    from axpo.cli.console import counting
    from axpo.tools.search import index_command
    from axpo.tools.search.build import left_out

    with counting("documents") as progress:
        info = index_command(arguments.source, arguments.out, language=arguments.language, progress=progress)
    print(f"{info.num_documents} {'images' if info.has_images else 'documents'} indexed in {arguments.out}")
    for suffix, number in left_out(arguments.source).items():
        print(f"left out: {number} {suffix} {'file' if number == 1 else 'files'}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from axpo.cli.doctor import print_diagnosis

    print_diagnosis()
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    def run(_: Interrupts) -> None:
        from axpo.cli.demo import run_demo

        run_demo(minutes=arguments.minutes, out=arguments.out, seed=arguments.seed)

    return _guard(run, folder=arguments.out)


def _guard(run: Callable[[Interrupts], None], *, folder: Path, resume_line: str | None = None) -> int:
    """Run. When something ends it early, say where the run is and how to continue."""
    interrupts = Interrupts()
    try:
        with interrupts.listen():
            run(interrupts)
    except KeyboardInterrupt:
        # a signal between the creation of a coroutine and its start leaves it unawaited, which is no defect
        warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
        # and one inside the constructor of an event loop leaves half a loop, which complains when it is deleted
        sys.unraisablehook = functools.partial(_report_unraisable, sys.unraisablehook)
        how = f"; continue with: {resume_line}" if resume_line else ""
        print(f"interrupted; {_kept(folder)}{how}", file=sys.stderr)
        return interrupts.exit_code
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, AxpoError) and getattr(error, "errno", None) not in _DISK_ERRORS:
            traceback.print_exc()
        print(f"error: {error}\nrun folder: {folder}", file=sys.stderr)
        if resume_line:
            print(f"continue with: {resume_line}", file=sys.stderr)
        return EXIT_ALARM if isinstance(error, AlarmError) else EXIT_FAULT
    return 0


def _begin(text: str) -> None:
    """Say at once what is being done: importing torch and reading a checkpoint takes many seconds."""
    print(f"{text} ...", flush=True)


def _report_unraisable(report: Callable[[Any], object], unraisable: Any) -> None:
    """Pass on what Python could not raise, but for the deletion of an event loop that was never completed."""
    if getattr(unraisable.object, "__qualname__", "") != "BaseEventLoop.__del__":
        report(unraisable)


def _kept(folder: Path) -> str:
    """Name what an interrupted run left on the disk: its last checkpoint, or its folder."""
    last = folder / "checkpoints" / "last"
    if last.is_file():
        return f"checkpoint: {last.with_name(last.read_text(encoding='utf-8').strip())}"
    return f"run folder: {folder}" if folder.is_dir() else "nothing was written"


if __name__ == "__main__":
    sys.exit(main())

"""The command line, ``mist``.

A thin shell: it loads what a command needs when it needs it, and turns errors into one line and an exit code.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from mist import paths
from mist.errors import Infeasible, InputError, MistError, as_typed

ABOUT = "Which hardware, parallelism, batching and routing should serve this LLM pipeline?"
EXIT_CODES = "exit codes: 0 done, 1 error, 2 bad input, 3 nothing feasible, 130 interrupted"
OVERRIDES = "options of the deployment as address=value, for example hardware=a100 tp=2 slo.ttft_p99=500ms"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except InputError as error:
        return _complain(error, 2)
    except Infeasible as error:
        return _complain(error, 3)
    except MistError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def simulate(arguments: argparse.Namespace) -> int:
    requests = paths.rows(arguments.requests)
    from mist.compose import compose

    config = compose(arguments.overrides)
    with as_typed(config["pools"]):
        import_module("mist.inert").refuse_inert(arguments.overrides, config)
        result = import_module("mist.simulate").simulate(config)
    if requests:
        result.requests_frame().to_parquet(requests)
    return _answer(result, arguments.json, "text.simulation")


def capacity(arguments: argparse.Namespace) -> int:
    if arguments.seeds < 1:
        raise InputError("--seeds", arguments.seeds, "at least one seed is needed")
    from mist.compose import compose

    config = compose(_without_rate(arguments.overrides))
    with as_typed(config["pools"]):
        import_module("mist.inert").refuse_inert(arguments.overrides, config)
        answer = import_module("mist.sweep.capacity").capacity(config, arguments.seeds)
    return _answer(answer, arguments.json, "capacity.capacity")


def _without_rate(overrides: list[str]) -> list[str]:
    for text in overrides:
        address, _, value = text.partition("=")
        if address.strip() == "workload.rate":
            raise InputError("workload.rate", value, "has no effect: capacity is the rate that is sought")
    return overrides


def sweep(arguments: argparse.Namespace) -> int:
    from mist.catalog import sweep_file

    sweep_file(arguments.name)  # a wrong name is told before anything heavy is loaded
    return int(import_module("mist.sweep.study").run(arguments.name, arguments.overrides))


def resume(arguments: argparse.Namespace) -> int:
    run = paths.run_directory(arguments.run_directory)
    return int(import_module("mist.sweep.study").resume(run))


def show(arguments: argparse.Namespace) -> int:
    if arguments.run_directory is None:
        return int(import_module("mist.sweep.study").show_all(Path("results")))
    run = paths.run_directory(arguments.run_directory)
    beside = [paths.run_directory(name) for name in arguments.beside or []]
    if page := paths.page(arguments.write):
        return int(import_module("mist.sweep.study").publish(page, run, beside))
    if beside:
        raise InputError("--beside", " ".join(arguments.beside), "has no effect without --write FILE.md")
    return int(import_module("mist.sweep.study").show(run))


def validate(arguments: argparse.Namespace) -> int:
    words = [word for word in arguments.overrides if "=" not in word]
    if len(words) > 1:
        raise InputError("", words[1], "one PATH is enough; overrides read address=value")
    path = words[0] if words else os.environ.get("MIST_DATA", "")
    if not path:
        raise InputError("", "(nothing)", "name a file or directory of measurements, or set MIST_DATA")
    own = " ".join(word for word in arguments.overrides if "=" in word)
    variants = [f"{own} {variant.replace(',', ' ')}".strip() for variant in arguments.compare or [""]]
    page = paths.page(arguments.write)
    answer = import_module("mist.validation.run").validate(Path(path), variants)
    accuracy = import_module("mist.report.accuracy")
    if page:
        accuracy.write(page, answer)
    if arguments.json:
        print(json.dumps(answer.to_json(), indent=2, allow_nan=False))
    else:
        _print(accuracy.table(answer))
    return 0


def calibrate(arguments: argparse.Namespace) -> int:
    return int(import_module("mist.calibration.console").calibrate(arguments))


def tables(arguments: argparse.Namespace) -> int:
    answer = getattr(import_module(f"mist.validation.{arguments.what}"), arguments.what)(arguments.names)
    return _answer(answer, arguments.json, f"tables.{arguments.what}")


def choices(arguments: argparse.Namespace) -> int:
    from mist.catalog import facts, groups, nearest, sweeps

    listed = {**groups(), "sweeps": sweeps()}
    if arguments.group is None:
        width = max(map(len, listed))
        for group, names in listed.items():
            print(f"{group:{width}}  {', '.join(names)}")
        return 0
    if arguments.group not in listed:
        raise InputError("", arguments.group, "no such group", nearest(arguments.group, tuple(listed)))
    names = listed[arguments.group]
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:{width}}  {facts(arguments.group, name)}".rstrip())
    return 0


# ------------------------------------------------------------------------------------------------ arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError("", self.prog.removeprefix("mist").strip() or "mist", message)


def _run(argv: list[str]) -> int:
    parser, commands = _parser()
    if not argv:
        parser.print_help()
        return 0
    if not argv[0].startswith("-") and argv[0] not in commands:
        raise InputError("", argv[0], "no such command", list(commands))
    arguments, rest = parser.parse_known_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"mist {version('mist-llm')}")
        return 0
    asked = commands.get(argv[0], parser)
    deepest = _deepest(asked, argv[1:])
    for word in rest:  # argparse stops collecting overrides at the first option
        known = list(deepest._option_string_actions)
        if word.startswith("-"):
            close = get_close_matches(word, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise InputError("", word, f"no such option; {hint}")
        if not hasattr(arguments, "overrides"):
            most = "takes one argument" if deepest is asked else "takes no argument"
            raise InputError("", word, f"{deepest.prog.removeprefix('mist ')} {most}")
        arguments.overrides.append(word)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _deepest(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the subcommand that the words name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            return _deepest(action.choices[words[0]], words[1:])
    return parser


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser("mist", description=ABOUT, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, does: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(command=does)
        return sub

    for name, does, about in (
        ("simulate", simulate, "one deployment under one workload: latencies, throughput, tokens per dollar"),
        ("capacity", capacity, "the largest arrival rate at which the SLO holds"),
    ):
        sub = command(name, does, about)
        sub.add_argument("overrides", nargs="*", default=[], metavar="address=value", help=OVERRIDES)
        sub.add_argument("--json", action="store_true", help="print the answer as JSON")
        if does is simulate:
            sub.add_argument("--requests", metavar="FILE.parquet", help="write one row per request")
        else:
            sub.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds to repeat it over (3)")
    sub = command("sweep", sweep, "search many deployments for the best one")
    sub.add_argument("name", metavar="NAME", help="a sweep of ./sweeps or a packaged one, or a path to a YAML")
    sub.add_argument("overrides", nargs="*", default=[], metavar="address=value", help=OVERRIDES)
    for name, does, about in (
        ("resume", resume, "finish a run that was interrupted"),
        ("show", show, "the answer of a run, or how far it has come; without RUN, all runs"),
    ):
        sub = command(name, does, about)
        where = "results/<sweep>/<run>, or a sweep's name for its latest"
        sub.add_argument("run_directory", nargs="?" if does is show else None, metavar="RUN", help=where)
        if does is show:
            sub.add_argument("--write", metavar="FILE.md", help="write the answer as a page, with its plots beside it")
            sub.add_argument(
                "--beside", nargs="+", action="extend", metavar="RUN", help="runs to compare with on the page"
            )
    from mist.profiling import cli as profiling

    profiling.add(commands.add_parser("profile", help=profiling.ABOUT, description=profiling.ABOUT, allow_abbrev=False))
    sub = command("validate", validate, "replay measurements and say how far the predictions are off")
    about = "a file or directory of measurements (MIST_DATA if not given); options of every replay"
    sub.add_argument("overrides", nargs="*", default=[], metavar="PATH address=value", help=about)
    about = "several choices side by side, each with commas for spaces: perf=roofline perf=measured,tp=2"
    sub.add_argument("--compare", nargs="+", metavar="address=value", help=about)
    sub.add_argument("--write", metavar="FILE.md", help="write the page, and beside it FILE.json and FILE.csv")
    sub.add_argument("--json", action="store_true", help="print the scores as JSON")
    sub = command("calibrate", calibrate, "fit an engine profile to benchmarks of your own")
    about = "output of a benchmark (vLLM, SGLang, AIPerf, GuideLLM, CSV) or a measured set; options of every replay"
    sub.add_argument("overrides", nargs="*", default=[], metavar="FILE address=value", help=about)
    sub.add_argument("--write", metavar="FILE.yaml", help="write the profile, for example conf/engine/mine.yaml")
    about = "cells to score and not to fit: those with a value (tp=8, concurrency='4|16'), or every N-th"
    sub.add_argument("--hold-out", metavar="column=value|N", help=about)
    about = "how long the search may take (10); then the best point so far is the answer"
    sub.add_argument("--minutes", type=float, default=10.0, metavar="N", help=about)
    sub.add_argument("--json", action="store_true", help="print scalars and scores as JSON")
    sub = command("tables", tables, "what the operator tables of perf=measured cover, and how well they tell the rest")
    about = "coverage: models, devices and kernels; left_out: experts of every shape, told from the others"
    sub.add_argument("what", choices=("coverage", "left_out"), help=about)
    sub.add_argument("names", nargs="*", metavar="NAME", help="only these models, devices, kernels or dtypes")
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub = command("list", choices, "what there is to choose from")
    sub.add_argument("group", nargs="?", metavar="GROUP", help="model, hardware, ..., sweeps")
    return parser, dict(commands.choices)


# ------------------------------------------------------------------------------------------------ output


def _answer(answer: Any, as_json: bool, report: str) -> int:
    if as_json:
        print(json.dumps(answer.to_json(), indent=2, allow_nan=False))
    else:
        module, _, name = report.partition(".")
        _print(getattr(import_module(f"mist.report.{module}"), name)(answer))
    return 0


def _print(renderable: Any) -> None:
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=140 if piped else None, highlight=False).print(renderable)


def _complain(problem: object, code: int) -> int:
    print(f"mist: {problem}", file=sys.stderr)
    return code

"""What may be typed after ``mist``: commands, their arguments and options, and what is said of anything else."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import NoReturn

from mist import __version__
from mist.errors import InputError
from mist.profiling import cli as profiling

ABOUT = "Which hardware, parallelism, batching and routing should serve this LLM pipeline?"
EXIT_CODES = "exit codes: 0 done, 1 error, 2 bad input, 3 nothing feasible, 130 interrupted"
OVERRIDES = "options of the deployment as address=value, for example hardware=a100 tp=2 slo.ttft_p99=500ms"
RUN = "results/<sweep>/<run>, or a sweep's name for its latest"

Arguments = argparse.Namespace
Command = Callable[[Arguments], int]


class Parser(argparse.ArgumentParser):
    """Mistakes are InputErrors, and nothing is abbreviated."""

    def error(self, message: str) -> NoReturn:
        raise InputError("", self.prog.removeprefix("mist").strip() or "mist", message)

    def overrides(self, metavar: str = "address=value", about: str = OVERRIDES) -> None:
        self.add_argument("overrides", nargs="*", default=[], metavar=metavar, help=about)


def read(argv: list[str], commands: Mapping[str, Command]) -> tuple[Command, Arguments]:
    """The command that was typed and its arguments; ``commands`` are all but ``profile``."""
    top, known = parser(commands)
    if not argv:
        return _help(top), Arguments()
    if not argv[0].startswith("-") and argv[0] not in known:
        raise InputError("", argv[0], "no such command", list(known))
    arguments, rest = top.parse_known_args(argv)
    if arguments.version:
        return _version, arguments
    asked = known.get(argv[0], top)
    for word in rest:  # argparse stops collecting overrides at the first option
        _place(word, arguments, asked, _deepest(asked, argv[1:]))
    command: Command = arguments.command
    return command, arguments


def _help(top: Parser) -> Command:
    def show(_arguments: Arguments) -> int:
        top.print_help()
        return 0

    return show


def _version(_arguments: Arguments) -> int:
    print(f"mist {__version__}")
    return 0


def _place(word: str, arguments: Arguments, asked: argparse.ArgumentParser, deepest: argparse.ArgumentParser) -> None:
    """One more override, or InputError."""
    if word.startswith("-"):
        known = list(deepest._option_string_actions)
        close = get_close_matches(word, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise InputError("", word, f"no such option; {hint}")
    if not hasattr(arguments, "overrides"):
        most = "takes one argument" if deepest is asked else "takes no argument"
        raise InputError("", word, f"{deepest.prog.removeprefix('mist ')} {most}")
    arguments.overrides.append(word)


def _deepest(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the subcommand that the words name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words and words[0] in action.choices:
            return _deepest(action.choices[words[0]], words[1:])
    return parser


def parser(commands: Mapping[str, Command]) -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole line, and of each command."""
    top = Parser("mist", description=ABOUT, epilog=EXIT_CODES, allow_abbrev=False)
    top.add_argument("--version", action="store_true", help="print the version")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND")
    for name, (about, add) in OPTIONS.items():
        sub = subparsers.add_parser(name, help=about, description=about, allow_abbrev=False)
        if name in commands:
            sub.set_defaults(command=commands[name])
        add(sub)
    return top, dict(subparsers.choices)


def _simulate(sub: Parser) -> None:
    sub.overrides()
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub.add_argument("--requests", metavar="FILE.parquet", help="write one row per request")


def _capacity(sub: Parser) -> None:
    sub.overrides()
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds to repeat it over (3)")


def _sweep(sub: Parser) -> None:
    sub.add_argument("name", metavar="NAME", help="a sweep of ./sweeps or a packaged one, or a path to a YAML")
    sub.overrides()


def _resume(sub: Parser) -> None:
    sub.add_argument("run_directory", metavar="RUN", help=RUN)


def _show(sub: Parser) -> None:
    sub.add_argument("run_directory", nargs="?", metavar="RUN", help=RUN)
    sub.add_argument("--write", metavar="FILE.md", help="write the answer as a page, with its plots beside it")
    sub.add_argument("--beside", nargs="+", action="extend", metavar="RUN", help="runs to compare with on the page")


def _validate(sub: Parser) -> None:
    about = "a file or directory of measurements (MIST_DATA if not given); options of every replay"
    sub.overrides("PATH address=value", about)
    about = "several choices side by side, each with commas for spaces: perf=roofline perf=measured,tp=2"
    sub.add_argument("--compare", nargs="+", metavar="address=value", help=about)
    sub.add_argument("--write", metavar="FILE.md", help="write the page, and beside it FILE.json and FILE.csv")
    sub.add_argument("--json", action="store_true", help="print the scores as JSON")


def _calibrate(sub: Parser) -> None:
    about = "output of a benchmark (vLLM, SGLang, AIPerf, GuideLLM, CSV) or a measured set; options of every replay"
    sub.overrides("FILE address=value", about)
    sub.add_argument("--write", metavar="FILE.yaml", help="write the profile, for example conf/engine/mine.yaml")
    about = "cells to score and not to fit: those with a value (tp=8, concurrency='4|16'), or every N-th"
    sub.add_argument("--hold-out", metavar="column=value|N", help=about)
    about = "how long the search may take (10); then the best point so far is the answer"
    sub.add_argument("--minutes", type=float, default=10.0, metavar="N", help=about)
    sub.add_argument("--json", action="store_true", help="print scalars and scores as JSON")


def _tables(sub: Parser) -> None:
    about = "coverage: models, devices and kernels; left_out: experts of every shape, told from the others"
    sub.add_argument("what", choices=("coverage", "left_out"), help=about)
    sub.add_argument("names", nargs="*", metavar="NAME", help="only these models, devices, kernels or dtypes")
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")


def _list(sub: Parser) -> None:
    sub.add_argument("group", nargs="?", metavar="GROUP", help="model, hardware, ..., sweeps")


OPTIONS: dict[str, tuple[str, Callable[[Parser], None]]] = {
    "simulate": ("one deployment under one workload: latencies, throughput, tokens per dollar", _simulate),
    "capacity": ("the largest arrival rate at which the SLO holds", _capacity),
    "sweep": ("search many deployments for the best one", _sweep),
    "resume": ("finish a run that was interrupted", _resume),
    "show": ("the answer of a run, or how far it has come; without RUN, all runs", _show),
    "profile": (profiling.ABOUT, profiling.add),
    "validate": ("replay measurements and say how far the predictions are off", _validate),
    "calibrate": ("fit an engine profile to benchmarks of your own", _calibrate),
    "tables": ("what the operator tables of perf=measured cover, and how well they tell the rest", _tables),
    "list": ("what there is to choose from", _list),
}

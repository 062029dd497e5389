"""The command line, ``mist``.

A thin shell: it loads what a command needs when it needs it, and turns errors into one line and an exit code.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mist import paths
from mist.arguments import read
from mist.errors import Infeasible, InputError, MistError, as_typed


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        command, arguments = read(list(sys.argv[1:] if argv is None else argv), COMMANDS)
        return command(arguments)
    except InputError as error:
        return _complain(error, 2)
    except Infeasible as error:
        return _complain(error, 3)
    except MistError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except MemoryError as error:
        return _complain(f"not enough memory: {error}", 1)
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a directory that may not be written
        return _complain(error, 1)


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
        if arguments.write or arguments.beside:
            raise InputError("", "--write" if arguments.write else "--beside", "has no effect without a RUN to show")
        return int(import_module("mist.sweep.runs").show_all(Path("results")))
    run = paths.run_directory(arguments.run_directory)
    beside = [paths.run_directory(name) for name in arguments.beside or []]
    if page := paths.page(arguments.write):
        return int(import_module("mist.sweep.runs").publish(page, run, beside))
    if beside:
        raise InputError("--beside", " ".join(arguments.beside), "has no effect without --write FILE.md")
    return int(import_module("mist.sweep.runs").show(run))


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
    answer = getattr(import_module(f"mist.validation.tables_{arguments.what}"), arguments.what)(arguments.names)
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


COMMANDS = {
    "simulate": simulate,
    "capacity": capacity,
    "sweep": sweep,
    "resume": resume,
    "show": show,
    "validate": validate,
    "calibrate": calibrate,
    "tables": tables,
    "list": choices,
}


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

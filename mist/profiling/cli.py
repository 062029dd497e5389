"""``mist profile ...``: one function per subcommand, which adds its parser; SUBCOMMANDS names them."""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mist.errors import InputError
from mist.profiling import encoder_cli, retrieval_cli

ABOUT = "measure this machine, or look at what was measured"

Subparsers = Any  # argparse's own class of them is private


def add(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``mist profile``."""
    subparsers = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand(subparsers)


def add_ops(subparsers: Subparsers) -> None:
    about = "matrix products, attention, all-reduce and memory of a torch device, as tables and a hardware sheet"
    parser = subparsers.add_parser("ops", help=about, description=about, allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="how long to measure (10)")
    parser.add_argument("--device", default="", metavar="cuda:0|cpu", help="the first GPU, or else the CPU")
    parser.add_argument("--name", default="", help="of the device: hardware=NAME (from what its driver calls it)")
    parser.add_argument("--out", default="profiles", metavar="DIR", help="where the tables go (profiles)")
    parser.add_argument("--power", type=float, metavar="W", help="at full load, where no driver tells it")
    parser.add_argument("--idle-power", type=float, metavar="W", help="with no process, where no driver tells it")
    parser.set_defaults(command=ops)


def add_steps(subparsers: Subparsers) -> None:
    about = "what a step log covers (perf=profile), and how far sums of its parts are from its mixed steps"
    parser = subparsers.add_parser("steps", help=about, description=about, allow_abbrev=False)
    parser.add_argument("file", metavar="FILE", help=".csv or .parquet, see docs/profile.md")
    parser.add_argument("where", nargs="*", default=[], metavar="column=value", help="which of its rows")
    parser.set_defaults(command=steps)


SUBCOMMANDS: tuple[Callable[[Subparsers], None], ...] = (add_ops, add_steps, retrieval_cli.add, encoder_cli.add)


def ops(arguments: argparse.Namespace) -> int:
    for field in ("minutes", "power", "idle_power"):
        if (value := getattr(arguments, field)) is not None and not value > 0:
            raise InputError(f"--{field.replace('_', '-')}", value, "must be positive")
    if arguments.name and not all(c.isalnum() or c in "-_" for c in arguments.name):
        raise InputError("--name", arguments.name, "letters, digits, - and _ only: it is typed as hardware=NAME")
    device = import_module("mist.profiling.device").Device(arguments.device)
    return int(import_module("mist.profiling.console").ops(arguments, device, Path(arguments.out)))


def steps(arguments: argparse.Namespace) -> int:
    where = {}
    for text in arguments.where:
        column, equals, value = text.partition("=")
        if not equals:
            raise InputError("", text, "rows are chosen as column=value, for example tp=2")
        where[column] = value
    return int(import_module("mist.profiling.console").steps(arguments.file, where))

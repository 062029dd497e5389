"""``mist profile retrieval``: its arguments, and what it prints."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any


def add(subparsers: Any) -> None:  # argparse's own class of them is private
    """The subcommand's parser."""
    about = "vector search on this machine's cores, by faiss: the rates of conf/retrieval, measured and fitted"
    how = about + "; some ten minutes on a machine that is idle, and Ctrl-C keeps the indexes that are done"
    parser = subparsers.add_parser("retrieval", help=about, description=how, allow_abbrev=False)
    parser.add_argument(
        "--out",
        default="conf/retrieval",
        metavar="DIR",
        help="where to write, ./conf/retrieval: what MIST then takes, over what it ships",
    )
    parser.set_defaults(command=retrieval)


def retrieval(arguments: argparse.Namespace) -> int:
    """Measure, and print a line as each index is done."""
    for line in import_module("mist.profiling.retrieval").profile(Path(arguments.out)):
        print(line, flush=True)
    return 0

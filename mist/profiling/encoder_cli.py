"""``mist profile encoder``: its arguments."""

import argparse
from importlib import import_module
from typing import Any

ENGINES = ("onnx", "onnx-quantised", "torch")


def add(subparsers: Any) -> None:  # argparse's own class of them is private
    """The subcommand's parser."""
    about = "matrix products of an embedder or reranker on one core, as a sheet of conf/encoder"
    parser = subparsers.add_parser("encoder", help=about, description=about, allow_abbrev=False)
    parser.add_argument("--engine", required=True, choices=ENGINES, help="what computes them")
    parser.add_argument(
        "--hardware", required=True, metavar="NAME", help="this CPU's sheet, whose peaks are the measure"
    )
    parser.add_argument("--name", default="", help="of the sheet: stations.encoder.engine=NAME (<engine>_cpu)")
    parser.add_argument("--out", default="conf/encoder", metavar="DIR", help="where to write (conf/encoder)")
    parser.set_defaults(command=encoder)


def encoder(arguments: argparse.Namespace) -> int:
    """Measure and write; nothing heavy is loaded before."""
    return int(import_module("mist.profiling.encoder").encoder(arguments))

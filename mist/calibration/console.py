"""``mist calibrate``: what was typed, checked before anything is replayed; progress; the profile written last."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.status import Status

from mist.calibration.calibrate import calibrate as fitted
from mist.calibration.page import page
from mist.calibration.replays import Progress, Shown
from mist.calibration.sheet import sheet
from mist.errors import InputError
from mist.report.progress import clock
from mist.validation.harness import Overrides

EVERY = 15.0  # s between two lines where there is no terminal
_NAME = re.compile(r"[\w-]+\Z")


def calibrate(arguments: argparse.Namespace) -> int:
    """Fit, print, write; the exit code."""
    files, own = _parted(arguments.overrides)
    target = _target(arguments.write)
    screen = Console(stderr=True, highlight=False)
    with screen.status("reading", spinner="dots") as status:
        answer = fitted(files, own, arguments.hold_out, arguments.minutes, _shown(screen, status))
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(sheet(answer, [Path(file) for file in files]), encoding="utf-8")
    if arguments.json:
        print(json.dumps(answer.to_json(), indent=2, allow_nan=False))
    else:
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(page(answer, target))
    return 0


def _shown(screen: Console, status: Status) -> Shown:
    """Beside a spinner, or where there is no terminal as a line now and then."""
    told = [0.0]

    def show(progress: Progress) -> None:
        where = f"{progress.replays} replays of {progress.cells} cells, "
        where += f"{clock(progress.gone)} of at most {clock(progress.limit)}"
        if screen.is_terminal:
            status.update(where)
        elif progress.gone - told[0] >= EVERY:
            told[0] = progress.gone
            screen.print(where, soft_wrap=True)

    return show


def _parted(words: Sequence[str]) -> tuple[list[str], Overrides]:
    """Files and overrides; a word with an equals sign is a file where one of that name is there."""
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    if not files:
        raise InputError("", "(nothing)", "name the output of a benchmark, for example mist calibrate run.json tp=2")
    own: Overrides = {}
    for word in words:
        if word in files:
            continue
        address, _, value = word.partition("=")
        if address in own:
            raise InputError(address, value, f"given twice, {own[address]!r} and {value!r}")
        own[address] = value
    repeated = [file for index, file in enumerate(files) if file in files[:index]]
    if repeated:
        raise InputError("", repeated[0], "given twice")
    return files, own


def _target(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if path.suffix != ".yaml" or not _NAME.match(path.stem):
        raise InputError("--write", name, "a file NAME.yaml of letters, digits, - and _: it is typed as engine=NAME")
    if path.is_dir():
        raise InputError("--write", name, "is a directory")
    return path

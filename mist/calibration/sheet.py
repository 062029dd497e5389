"""A fitted engine profile as YAML: the base profile's lines, its scalars replaced, and where they come from."""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import dropwhile
from pathlib import Path

from mist import __version__
from mist.calibration.calibrate import AFTER, BEFORE, Calibration
from mist.calibration.fit import Estimate
from mist.catalog import choice_file

WIDTH = 116


def sheet(answer: Calibration, files: Sequence[Path]) -> str:
    """The text of the profile; usable as a choice of the group ``engine``."""
    lines = choice_file("engine", answer.engine).read_text(encoding="utf-8").splitlines()
    body = list(dropwhile(lambda line: not line or line.startswith("#"), lines))
    for one in answer.estimates:
        if one.value == one.base == 0 and not any(line.startswith(f"{one.name}:") for line in body):
            continue  # what the base leaves at its default
        body = _with(body, one.name, f"{one.name}: {_quantity(one.value)} # {_comment(one)}")
    for address, value in answer.overrides.items():
        if (found := re.fullmatch(r"engine\.(\w+)", address)) and found[1] not in {e.name for e in answer.estimates}:
            body = _with(body, found[1], f"{found[1]}: {value} # given when it was calibrated")
    body = [line for line in body if not line.startswith("#")]  # what the base says of its own scalars
    body = [re.sub(r"\bsee above$", f"see conf/engine/{answer.engine}.yaml", line) for line in body]
    return "\n".join([*_head(answer, files), *body, ""])


def _with(body: Sequence[str], name: str, line: str) -> list[str]:
    """The lines with this one in the place of ``name``'s, or at the end."""
    places = [index for index, old in enumerate(body) if old.partition(":")[0].strip() == name]
    return [*body, line] if not places else [line if index == places[0] else old for index, old in enumerate(body)]


def _quantity(seconds: float) -> str:
    return f"{seconds * 1e3:.4g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.4g} us" if seconds else "0 s"


def _comment(one: Estimate) -> str:
    if one.low is not None and one.high is not None:
        return f"fitted, 95 % confidence {_quantity(one.low)} to {_quantity(one.high)}"
    if one.remedy:
        return f"not fitted: {one.why}"
    return one.why or "fitted"


def _head(answer: Calibration, files: Sequence[Path]) -> list[str]:
    fitted, held = answer.cells
    today = datetime.now(UTC).date()
    data = ", ".join(f"{file.name} (SHA-256 {_sha256(file)})" for file in files)
    told = " ".join(f"{address}={value}" for address, value in answer.overrides.items())
    said = [
        f"{answer.engine}, calibrated on {fitted} cells of {', '.join(file.name for file in files)}.",
        f"By mist calibrate of MIST {__version__} on {today}, with perf={answer.perf}: overheads belong to both, so "
        f"use it with that. Fitted: {', '.join(answer.fitted)}." + (f" Options: {told}." if told else ""),
        f"Data: {data}.",
        *_errors(answer),
    ]
    if held:
        said.insert(2, f"{held} cells were held out and only scored.")
    return [line for text in said for line in _wrapped(text)]


def _errors(answer: Calibration) -> list[str]:
    scores = {(s.name, s.metric, s.part, s.variant): s.mape for s in answer.scores}
    found = []
    for (name, metric, part, variant), mape in scores.items():
        after = scores.get((name, metric, part, AFTER))
        if variant == BEFORE and part != "all" and mape is not None and after is not None:
            cells = "" if part == "calibration" else f", {part}"
            found.append(f"{metric}{cells}: {mape:.1%} -> {after:.1%}")
    return [f"Mean absolute errors, before -> after: {'; '.join(found)}."]


def _wrapped(text: str) -> list[str]:
    lines, line = list[str](), "#"
    for word in text.split():
        if len(line) + len(word) + 1 > WIDTH and line != "#":
            lines.append(line)
            line = "#"
        line = f"{line} {word}"
    return [*lines, line]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

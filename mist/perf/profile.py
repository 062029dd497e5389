"""Step times from a log of the user's own steps, interpolated; nothing outside what was measured.

Two functions are interpolated linearly between measured shapes (see Surface): decode steps over (sequences, KV tokens
read together), and steps of one prompt chunk over (tokens cached before, tokens). What the log does not hold as one
row is put together from parts that it covers:

- a step of several parts, chunks or chunks and decodes, is a floor and what each part takes beyond it. The floor,
  weights read and kernels launched, is the log's shortest decode step (its shortest step, where none only decodes);
  a step never takes less than any of its parts;
- a chunk of s tokens after p cached ones, where the log has no such chunks, is P(p + s) - P(p) + floor: whole
  prompts P in two goes, one more floor. Exact where time is a floor and a polynomial of the prompt's length;
- without rows of prompts alone, chunks are what mixed rows of one chunk take beyond their decodes.

``check`` says what the sums are worth: it compares them with the log's own rows of several parts. All else raises
OutsideProfile. The engine's overheads are in the log already, so none is added.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import floor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mist.errors import InputError, OutsideProfile
from mist.perf import steplog
from mist.perf.base import PerfModel, Replica, StepShape, Stretch
from mist.perf.steplog import SHAPE
from mist.perf.surface import Line, Surface

KEPT = 100_000  # chunk times remembered


@dataclass(frozen=True)
class Profile:
    """The step log at ``path`` (see mist.perf.steplog), its rows with columns as ``where`` says.

    ``sha256`` is of the file: filled in where it is not given, compared where it is, so that what depends on a log
    depends on its content.
    """

    path: str
    where: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        found = steplog.content(self.path)
        if self.sha256 not in ("", found):
            raise InputError("sha256", self.sha256, f"{self.path} has another content: {found}")
        object.__setattr__(self, "sha256", found)
        steplog.read(self.path, self.where)

    def content(self) -> str:
        """SHA-256 of the file."""
        return self.sha256

    def of(self, replica: Replica) -> "ProfileSteps":
        where = tuple(sorted((column, str(value)) for column, value in self.where.items()))
        return _steps(self.path, self.sha256, where, steplog.deployment(replica))


@lru_cache(maxsize=16)  # one triangulation for all trials of a worker
def _steps(
    path: str,
    sha256: str,  # noqa: ARG001 (it tells versions of a file apart)
    where: tuple[tuple[str, str], ...],
    deployment: tuple[tuple[str, str], ...],
) -> "ProfileSteps":
    return ProfileSteps(path, steplog.read(path, dict(where)).of(deployment))


def check_profile(perf: PerfModel, replica: Replica, drafter: str) -> None:
    """Raises InputError where ``perf`` is a step log and the deployment steps in a way that no log tells of."""
    if not isinstance(perf, Profile):
        return
    if replica.pp > 1:
        raise InputError("pp", replica.pp, "a step log (perf=profile) is of whole replicas, not of their stages", ["1"])
    if drafter:
        raise InputError("speculation", drafter, "a step log (perf=profile) says nothing of drafts", ["none"])
    try:
        perf.of(replica)
    except InputError as error:
        raise type(error)(f"perf.{error.field}", error.value, error.why, error.choices) from None


class Check(NamedTuple):
    """Sums of parts against measured rows of several parts."""

    rows: int  # compared
    outside: int  # rows with a part that the log does not cover by itself
    error: float  # mean absolute, share of the measured time
    bias: float  # mean signed


class ProfileSteps:
    """Step times of the deployment a log was taken of."""

    def __init__(self, path: str, rows: pd.DataFrame) -> None:
        self.path, self.rows = path, rows
        decodes = rows[rows["tokens"] == 0]
        self.floor = float((decodes if len(decodes) else rows)["seconds"].min())
        self.decoding = _surface(decodes, "decodes", "context")
        prompts = rows[(rows["decodes"] == 0) & (rows["chunks"] == 1)]
        self.from_mixed = not len(prompts)
        if self.from_mixed:
            prompts = self._beyond_decodes(rows[(rows["decodes"] > 0) & (rows["chunks"] == 1)])
        self.prompts = _surface(prompts, "past", "tokens")
        self._chunk_times: dict[tuple[int, int], float] = {}

    def step_time(self, shape: StepShape) -> float:
        if shape.drafted:
            raise self._outside(f"a step with {shape.drafted} drafted tokens", "a step log says nothing of drafts")
        parts = [self._chunk_time(tokens, past) for tokens, past in shape.chunks]
        if shape.decodes:
            parts.append(self._decode_time(shape.decodes, shape.context))
        if len(parts) == 1:
            return parts[0]
        return self.floor + sum([max(part - self.floor, 0.0) for part in parts])

    def decode_stretch(self, decodes: int, context: int, longest: int = 0) -> Stretch:  # noqa: ARG002
        line = self._decode_line(decodes, context)
        first, slope, end = line.piece(context)
        return Stretch(max(floor((end - context) / decodes) + 1, 1), first, slope * decodes)

    def check(self) -> Check:
        """Compare sums of parts with the log's own rows of several parts."""
        several = self.rows[(self.rows["decodes"] > 0).astype(int) + self.rows["chunks"] > 1]
        errors, outside = [], 0
        for decodes, context, tokens, chunks, past, seconds in _numbers(several):
            each = (round(tokens / max(chunks, 1)), round(past / max(chunks, 1)))
            try:
                time = self.step_time(StepShape(int(decodes), round(context), (each,) * int(chunks)))
            except OutsideProfile:
                outside += 1
            else:
                errors.append(time / seconds - 1)
        if not errors:
            return Check(0, outside, 0.0, 0.0)
        return Check(len(errors), outside, float(np.abs(errors).mean()), float(np.mean(errors)))

    def _decode_line(self, decodes: int, context: float) -> Line:
        shape = f"a step of {decodes} decodes with {context:,.0f} KV tokens"
        if self.decoding is None:
            raise self._outside(shape, "no row holds decodes alone")
        line = self.decoding.line(float(decodes))
        if line is None:
            low, high = self.decoding.x_range
            raise self._outside(shape, f"decodes go from {low:g} to {high:g}")
        if not line.covers(context):
            raise self._outside(
                shape, f"with {decodes} decodes, KV tokens (context) go from {line.low:,.0f} to {line.high:,.0f}"
            )
        return line

    def _decode_time(self, decodes: int, context: float) -> float:
        return self._decode_line(decodes, context).at(context)

    def _chunk_time(self, tokens: int, past: int) -> float:
        key = tokens, past
        if key not in self._chunk_times:
            if len(self._chunk_times) >= KEPT:
                self._chunk_times.clear()
            self._chunk_times[key] = self._part(tokens, past)
        return self._chunk_times[key]

    def _part(self, tokens: int, past: int) -> float:
        shape = f"a chunk of {tokens:,} tokens after {past:,} cached ones"
        if self.prompts is None:
            raise self._outside(shape, "no row holds a prompt chunk that can be told from its decodes")
        line = self.prompts.line(float(past))
        if line is not None and line.covers(tokens):
            return line.at(tokens)
        whole = self.prompts.line(0.0)
        if past and whole is not None and whole.covers(past) and whole.covers(past + tokens):
            return max(whole.at(past + tokens) - whole.at(past), 0.0) + self.floor
        told = [f"past goes from {self.prompts.x_range[0]:,.0f} to {self.prompts.x_range[1]:,.0f}"]
        if line is not None:
            told = [f"with {past:,} cached, tokens go from {line.low:,.0f} to {line.high:,.0f}"]
        if past and whole is not None:
            told.append(f"whole prompts from {whole.low:,.0f} to {whole.high:,.0f} tokens")
        raise self._outside(shape, ", ".join(told))

    def _beyond_decodes(self, mixed: pd.DataFrame) -> pd.DataFrame:
        """What these rows take beyond their decodes, the floor left in; rows whose decodes are not covered go."""
        kept = []
        for decodes, context, tokens, _, past, seconds in _numbers(mixed):
            try:
                decode = self._decode_time(int(decodes), context)
            except OutsideProfile:
                continue
            kept.append((past, tokens, max(seconds - decode, 0.0) + self.floor))
        frame = pd.DataFrame(kept, columns=["past", "tokens", "seconds"])
        grouped = frame.groupby(["past", "tokens"], as_index=False)
        return grouped.agg({"seconds": "median"})

    def _outside(self, shape: str, covered: str) -> OutsideProfile:
        why = f"{shape} lies outside the log ({covered}); measure it, or keep the scheduler within what was measured"
        return OutsideProfile("perf.path", self.path, why)


def _surface(rows: pd.DataFrame, x: str, y: str) -> Surface | None:
    return Surface(*(rows[name].to_numpy(float) for name in (x, y, "seconds"))) if len(rows) else None


def _numbers(rows: pd.DataFrame) -> list[list[float]]:
    """Rows as [decodes, context, tokens, chunks, past, seconds]."""
    numbers: list[list[float]] = rows[[*SHAPE, "seconds"]].to_numpy(float).tolist()
    return numbers

"""Traffic drawn from compact tables of a recorded trace: rate profile, gaps, joint lengths.

A trace is described by three tables (``mist.workload.fit`` makes them):

- ``arrivals``: the time by which each share of the requests has arrived. It carries the slow part of
  arrivals, drift and bursts longer than a few requests.
- ``gaps``: the quantiles of what is left, the gaps between arrivals after time is stretched so that the
  profile becomes a straight line (the time-rescaling theorem: a Poisson process of varying rate would leave
  exponential gaps; Brown et al. 2002, doi:10.1162/08997660252741149).
- ``lengths``: for each of several equal shares of the requests, input quantiles, and output quantiles for
  each of several equal shares of the inputs. Rate, prompts and answers so drift together as they did.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.streams import stream
from mist.units import PerSecond
from mist.workload.quantiles import Floats, check_curve, curve, last_knot, stratified
from mist.workload.traffic import Traffic, check_rate, check_requests

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class JointLengths:
    """Input and output tokens of one request, drawn together.

    ``inputs`` is a quantile curve; ``outputs`` holds one for each of as many equal shares of the inputs,
    shortest inputs first (in the order of their sorted keys).
    """

    inputs: str
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        check_curve("inputs", self.inputs)
        if not self.outputs:
            raise InputError("outputs", "(nothing)", "needs at least one quantile curve")
        for key, text in self.outputs.items():
            check_curve(f"outputs.{key}", text)

    def draw(self, n: int, inputs: np.random.Generator, outputs: np.random.Generator) -> tuple[Tokens, Tokens]:
        """``n`` pairs whose sample quantiles follow the curves closely, in random order."""
        level = stratified(n, inputs)
        share = np.floor(level * len(self.outputs)).astype(np.int64)
        drawn = np.empty(n)
        for index, key in enumerate(sorted(self.outputs)):
            chosen = np.flatnonzero(share == index)
            drawn[chosen] = curve(self.outputs[key])(stratified(len(chosen), outputs))
        return _whole(curve(self.inputs)(level)), _whole(drawn)


@dataclass(frozen=True)
class Empirical:
    """A cycle of ``requests`` requests that passes once through the recorded profile, however many they are.

    ``arrivals`` has knots ``requests:seconds`` of the recording, ``gaps`` ``probability:gap`` in units of the
    mean gap, ``lengths`` one table per equal share of the recording's requests (in the order of sorted keys).
    A cycle shorter than the recording drifts faster than the recording did, so that an overload lasts fewer
    requests: on the Azure conversation trace, 4,000 of 19,366 requests raise a P99 capacity by about a tenth.
    ``rate`` is the mean rate; None is the recorded one. Seeds change the order of lengths and gaps, and
    their sample means hardly: what differs between seeds is queueing, not load.
    """

    source: str
    arrivals: str
    gaps: str
    lengths: Mapping[str, JointLengths]
    requests: int
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        check_rate(self.rate)
        if check_curve("arrivals", self.arrivals).values[-1] <= 0:
            raise InputError("arrivals", self.arrivals, "the last knot must lie at a positive time")
        if check_curve("gaps", self.gaps).mean() <= 0:
            raise InputError("gaps", self.gaps, "the mean gap must be positive")
        if not self.lengths:
            raise InputError("lengths", "(nothing)", "needs at least one table")

    def own_rate(self) -> float:
        recorded, duration = last_knot(self.arrivals)
        return recorded / duration

    def content(self) -> str:
        return ""

    def traffic(self, seed: int) -> Traffic:
        inputs, outputs = self._lengths(seed)
        return Traffic(self._times(seed), inputs, outputs)

    def _times(self, seed: int) -> Floats:
        """Gaps strung between the knots of the profile, each of which is met exactly: chance enters below their
        spacing only, or the recording's own fluctuations would be there twice.
        """
        n, profile = self.requests, curve(self.arrivals)
        gaps = curve(self.gaps)(stratified(n, stream(seed, "workload.gaps")))
        elapsed = np.concatenate(([0.0], np.cumsum(gaps)))
        knots = np.unique(np.rint(profile.levels * n).astype(int))
        times = np.interp(elapsed[:-1], elapsed[knots], profile(knots / n)) * (n / profile.values[-1])
        within: Floats = np.minimum(times, np.nextafter(n, 0))
        return within

    def _lengths(self, seed: int) -> tuple[Tokens, Tokens]:
        edges = np.round(np.linspace(0, self.requests, len(self.lengths) + 1)).astype(int)
        by_input, by_output = stream(seed, "workload.inputs"), stream(seed, "workload.outputs")
        drawn = [
            self.lengths[key].draw(int(n), by_input, by_output)
            for key, n in zip(sorted(self.lengths), np.diff(edges), strict=True)
        ]
        inputs, outputs = zip(*drawn, strict=True)
        return np.concatenate(inputs), np.concatenate(outputs)


def _whole(tokens: Floats) -> Tokens:
    return np.maximum(np.rint(tokens), 1).astype(np.int64)

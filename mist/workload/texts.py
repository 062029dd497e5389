"""Texts for models that read and do not write."""

from dataclasses import dataclass

import numpy as np

from mist.streams import stream
from mist.units import PerSecond
from mist.workload.arrivals import Arrivals
from mist.workload.drawn import Drawn
from mist.workload.lengths import Lengths
from mist.workload.traffic import Traffic, check_rate, check_requests, unit_times


@dataclass(frozen=True)
class Texts(Drawn):
    """A cycle of ``requests`` texts of ``lengths`` tokens: ``arrivals`` at ``rate``, 1 request/s where that is None.

    A pipeline that generates would have one token written for each.
    """

    arrivals: Arrivals
    lengths: Lengths
    requests: int
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        check_rate(self.rate)

    def traffic(self, seed: int) -> Traffic:
        n = self.requests
        times = unit_times(self.arrivals.gaps(n, stream(seed, "workload.gaps")))
        lengths = self.lengths.draw(n, stream(seed, "workload.inputs"))
        return Traffic(times, lengths, np.ones(n, dtype=np.int64))

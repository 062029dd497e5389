"""Traffic from textbook distributions: an arrival process and independent lengths."""

from dataclasses import dataclass

from mist.streams import stream
from mist.units import PerSecond
from mist.workload.arrivals import Arrivals
from mist.workload.drawn import Drawn
from mist.workload.lengths import Lengths
from mist.workload.traffic import Traffic, check_rate, check_requests, unit_times


@dataclass(frozen=True)
class Synthetic(Drawn):
    """A cycle of ``requests`` requests: ``arrivals`` at ``rate`` with ``inputs`` and ``outputs`` tokens each.

    Having no recorded rate, it runs at 1 request/s where ``rate`` is None.
    """

    arrivals: Arrivals
    inputs: Lengths
    outputs: Lengths
    requests: int
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        check_rate(self.rate)

    def traffic(self, seed: int) -> Traffic:
        n = self.requests
        return Traffic(
            unit_times(self.arrivals.gaps(n, stream(seed, "workload.gaps"))),
            self.inputs.draw(n, stream(seed, "workload.inputs")),
            self.outputs.draw(n, stream(seed, "workload.outputs")),
        )

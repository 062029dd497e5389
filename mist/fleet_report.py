"""What became of replicas, or of a station's servers, that come and go."""

from dataclasses import dataclass

from mist.fleet import Fleet
from mist.spans import mean_replicas, paid, seconds


@dataclass(frozen=True)
class FleetReport:
    """Replicas that came and went: what was paid for, from order to release, and what could serve."""

    replica_seconds: float  # paid for, over the whole run
    up_seconds: float  # of those, able to serve
    mean_replicas: float  # paid for in the window, on average over time
    fewest: int  # paid for at once, over the whole run
    most: int
    failures: int
    availability: float  # share of the time from first up to release that replicas were not out of order
    joined: int  # replicas taken over from the other role


def fleet_report(fleet: Fleet, start: float, end: float) -> FleetReport:
    """What came and went, with a window from ``start`` to ``end``."""
    spans = fleet.history()
    lasting = fleet.history(max(fleet.kernel.now, end))
    up, failed = seconds(spans, "up", "draining"), seconds(spans, "failed")
    counts = [count for _, count in paid(lasting)][:-1]  # the last is when the run ends
    return FleetReport(
        replica_seconds=seconds(spans),
        up_seconds=up,
        mean_replicas=mean_replicas(lasting, start, end),
        fewest=min(counts),
        most=max(counts),
        failures=fleet.failures,
        availability=up / (up + failed) if up + failed else 1.0,
        joined=fleet.joined,
    )

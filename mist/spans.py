"""Who was in which state from when to when, and what that comes to."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


class Span(NamedTuple):
    """One state of one replica; ``until`` is None while it lasts. Seconds."""

    replica: int
    state: str  # starting, up, draining, failed
    since: float
    until: float | None = None


def seconds(spans: Sequence[Span], *states: str, start: float = 0.0, end: float = float("inf")) -> float:
    """Replica-seconds spent in these states (any, if none is named) from ``start`` to ``end``."""
    return sum(
        max(min(span.until, end) - max(span.since, start), 0.0)
        for span in spans
        if span.until is not None and (not states or span.state in states)
    )


def paid(spans: Sequence[Span]) -> list[tuple[float, int]]:
    """(time, replicas paid for from then on), each time their number changes."""
    changes: defaultdict[float, int] = defaultdict(int)
    for span in spans:
        changes[span.since] += 1
        if span.until is not None:
            changes[span.until] -= 1
    times = sorted(time for time, change in changes.items() if change)
    return list(zip(times, accumulate(changes[time] for time in times), strict=True))


def mean_replicas(spans: Sequence[Span], start: float, end: float) -> float:
    """Replicas paid for from ``start`` to ``end``, on average over time; exact where their number never changes."""
    steps = paid(spans)
    before = [count for time, count in steps if time <= start]
    inside = [(time, count) for time, count in steps if start < time < end]
    steps = [(start, before[-1] if before else 0), *inside, (end, 0)]
    if len(steps) == 2:
        return float(steps[0][1])
    return sum(count * ((until - since) / (end - start)) for (since, count), (until, _) in pairwise(steps))

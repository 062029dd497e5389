"""What the measured window can tell: a verdict that is certain before its end, and whether it is long enough."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf

from mist.metrics import METRICS, Latency
from mist.request import Request
from mist.slo import SLO, Limit

TAIL = 10  # requests beyond a percentile below which it is not worth quoting


class Doomed:
    """Whether some percentile over ``cohort`` requests is missed already, whatever the rest will do.

    Called again and again with the requests so far and the time; each is settled once. ``sizes`` says how many
    of them belong to each class that has limits of its own.
    """

    def __init__(self, slo: SLO, cohort: int, sizes: Mapping[str, int] | None = None) -> None:
        own = {name: (sizes or {})[name] for name in slo.classes}
        self._sizes = {**own, "": cohort - sum(own.values())}
        self._limits = {name: tuple(part) for name, part in slo.parts.items()}
        self._late: Counter[tuple[str, Limit]] = Counter()
        self._open: list[Request] = []
        self._seen = 0

    def __call__(self, requests: Sequence[Request], now: float) -> bool:
        late, still_open = self._late.copy(), []
        for request in (*self._open, *requests[self._seen :]):
            name = request.kind.name if request.kind.name in self._limits else ""
            missed = [(name, limit) for limit in self._limits[name] if _surely_late(request, limit, now)]
            late.update(missed)
            if request.finished >= 0 or request.refused:
                self._late.update(missed)
            else:
                still_open.append(request)
        self._open, self._seen = still_open, len(requests)
        # in whole numbers where that matters: 1 - 0.9 is less than a tenth
        return any(100 * n > (100 - limit.percentile) * self._sizes[name] for (name, limit), n in late.items())


def _surely_late(request: Request, limit: Limit, now: float) -> bool:
    if limit.metric == "tpot" and request.output == 1:
        return False
    value = METRICS[limit.metric](request)
    if value != inf or request.refused or request.lost:
        return value > limit.limit
    return limit.metric != "tpot" and now - request.arrived > limit.limit


def window_notes(slo: SLO, cohort: int, length: float, warmup: float, e2e: Latency) -> list[str]:
    """Why the window is too short for what is asked of it; empty if it is long enough.

    ``cohort`` counts its requests, ``length`` and ``warmup`` are seconds.
    """
    notes = [] if slo.classes else tail_notes(slo, cohort)
    if warmup < e2e.p50:
        notes.append(f"warm-up of {warmup:.3g} s is shorter than half of the requests take ({e2e.p50:.3g} s)")
    if length < 3 * e2e.p50:
        notes.append(f"window of {length:.3g} s is shorter than three median requests ({e2e.p50:.3g} s each)")
    return notes


def tail_notes(slo: SLO, cohort: int) -> list[str]:
    """What to say where so many requests do not tell the highest percentile asked for; nothing where they do."""
    highest = max((limit.percentile for limit in slo), default=99.0)
    tail = cohort * (1 - highest / 100)
    if tail >= TAIL:
        return []
    need = int(TAIL / (1 - highest / 100) + 0.5)
    return [f"{tail:.1f} requests lie beyond P{highest:g}: it takes {need} to tell, the window has {cohort}"]

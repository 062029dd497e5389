"""What to say where the window, and not the deployment, may have set what was measured."""

from mist.metrics import Counts
from mist.slo import SLO

CHANCE = 0.02  # of the window's arrivals, by which the backlog grows in any stable run (mist.metrics.unstable)
DRIFT = 0.05  # of the window's arrivals, by which the backlog may change before it is worth a word


def steady_notes(slo: SLO, cohort: Counts, length: float, backlog: tuple[int, int], after: float) -> list[str]:
    """Why the figures of a window are not those of a steady state; empty where they are.

    ``cohort`` are the window's requests, ``length`` its seconds, ``backlog`` the requests inside as it began and as it
    ended, ``after`` the seconds for which its last requests were waited for.
    """
    notes, (before, end) = [], backlog
    limit = max((limit for limit in slo if limit.metric != "tpot"), key=lambda limit: limit.limit, default=None)
    if limit is not None and length < limit.limit and end - before > CHANCE * cohort.arrived:
        notes.append(f"window of {length:.3g} s is shorter than {limit.name} allows: a line may grow all through it")
    if abs(end - before) > DRIFT * cohort.arrived:
        share = abs(end - before) / cohort.arrived
        notes.append(f"requests inside went from {before} to {end}, by {share:.0%} of the window's: no steady state")
    if cohort.in_flight:
        notes.append(f"{cohort.in_flight} requests were waited for {after:.3g} s after the window, and count as never")
    return notes

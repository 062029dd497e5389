"""How long the stages of plans took: waiting, being served, being sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mist.plan.query import Query
from mist.request import Request, Stage, Visit

TRANSFERS = frozenset({Stage.HANDOVER, Stage.TRANSFER})  # from their start to their end bytes are sent


@dataclass(frozen=True)
class Spread:
    """Distribution over visits, seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class StageReport:
    """What one kind of stage took, over the visits of the window's requests that have ended."""

    visits: int
    visits_per_request: float
    wait: Spread  # from being sent there to its start
    service: Spread | None  # from there to its end; None of a transfer
    transfer: Spread | None  # the same of a transfer; None of others


def stage_reports(requests: Sequence[Request]) -> dict[str, StageReport]:
    """By kind, in order of the kinds' names in Stage; requests that visited none are counted too."""
    visits: dict[Stage, list[Visit]] = {kind: [] for kind in Stage}
    for request in requests:
        for visit in request.visits:
            visits[visit.stage].append(visit)
    return {str(kind): _report(kind, seen, len(requests)) for kind, seen in visits.items() if seen}


def _report(kind: Stage, visits: Sequence[Visit], requests: int) -> StageReport:
    wait = _spread([visit.started - visit.queued for visit in visits])
    rest = _spread([visit.finished - visit.started for visit in visits])
    sent = kind in TRANSFERS
    return StageReport(len(visits), len(visits) / requests, wait, None if sent else rest, rest if sent else None)


def _spread(values: Sequence[float]) -> Spread:
    column = np.asarray(values)
    return Spread(float(np.mean(column)), *np.percentile(column, (50, 90, 99), method="inverted_cdf").tolist())


def stage_columns(requests: Sequence[Request]) -> dict[str, list[Any]]:
    """Of each query: tokens read and written by all its generations, and visits and seconds by kind of stage."""
    queries = [request for request in requests if isinstance(request, Query)]
    columns: dict[str, list[Any]] = {
        "prompted": [query.prompted for query in queries],
        "generated": [query.generated for query in queries],
    }
    for kind in Stage:
        seen = [[visit for visit in query.visits if visit.stage is kind] for query in queries]
        if any(seen):
            rest = "transfer" if kind in TRANSFERS else "service"
            columns[f"{kind}_visits"] = [len(visits) for visits in seen]
            columns[f"{kind}_wait"] = [sum(v.started - v.queued for v in visits) for visits in seen]
            columns[f"{kind}_{rest}"] = [sum(v.finished - v.started for v in visits) for visits in seen]
    return columns

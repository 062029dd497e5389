"""One row per request."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mist.plan.query import Query
from mist.request import Request, Stage
from mist.stage_times import stage_columns


def requests_frame(requests: Sequence[Request]) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {
        "id": [r.id for r in requests],
        "arrived": [r.arrived for r in requests],
        "input": [r.input for r in requests],
        "output": [r.output for r in requests],
        "state": [
            "refused" if r.refused else "lost" if r.lost else "completed" if r.finished >= 0 else "in_flight"
            for r in requests
        ],
        "refused": [r.refused for r in requests],
        "lost": [r.lost for r in requests],
        "retries": [r.retries for r in requests],
        "preemptions": [r.preemptions for r in requests],
        "first_token": [r.first_token if r.first_token >= 0 else np.nan for r in requests],
        "finished": [r.finished if r.finished >= 0 else np.nan for r in requests],
    }
    if any(r.kind.name for r in requests):
        columns["class"] = [r.kind.name for r in requests]
        columns["priority"] = [r.priority for r in requests]
    if requests and isinstance(requests[0], Query):
        return pd.DataFrame(columns | stage_columns(requests))
    for stage in Stage:
        visits = [next((v for v in r.visits if v.stage is stage), None) for r in requests]
        if any(visits):
            columns[f"{stage}_place"] = [v.place if v else None for v in visits]
            for mark in ("queued", "started", "finished"):
                columns[f"{stage}_{mark}"] = [getattr(v, mark) if v else np.nan for v in visits]
    return pd.DataFrame(columns)

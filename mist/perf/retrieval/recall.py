"""Recall of an approximate search by its setting (probes, ef_search), from a table that the user gives.

Recall depends on the data far more than on the index, so nothing here predicts it.
"""

from collections.abc import Mapping
from itertools import pairwise
from math import log

from mist.errors import InputError


def recall_at(recalls: Mapping[str, float], setting: int) -> float | None:
    """Recall at ``setting``, linear in its logarithm between the table's; None of an empty table.

    Raises InputError outside the table.
    """
    if not recalls:
        return None
    points = sorted((int(known), recall) for known, recall in recalls.items())
    for (low, below), (high, above) in pairwise(points):
        if low <= setting <= high:
            return below + (above - below) * log(setting / low) / log(high / low)
    if setting == points[0][0]:  # of a single row
        return points[0][1]
    raise InputError(
        "recalls", dict(recalls), f"tells nothing of {setting}: it runs from {points[0][0]} to {points[-1][0]}"
    )


def setting_for(recalls: Mapping[str, float], recall: float) -> int:
    """The smallest setting of the table that reaches ``recall``; InputError where none does."""
    reached = [int(setting) for setting, known in recalls.items() if known >= recall]
    if not reached:
        best = max(recalls.values(), default=0.0)
        raise InputError("recall", recall, f"the table of recalls reaches {best:g} at most")
    return min(reached)

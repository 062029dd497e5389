"""The scalars of an engine profile that a benchmark can tell, and where it cannot, what would."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# scalar -> the change by which its effect is tried, s: about a tenth of what engines were found to take, and a whole
# decode step for front_end, because a request that comes during a step waits for its end: TTFT climbs in stairs
SCALARS: Mapping[str, float] = {
    "launch_time": 30e-6,
    "step_overhead": 0.5e-3,
    "front_end": 10e-3,  # where no decode step was measured
    "mixed_overhead": 2e-3,
    "request_overhead": 10e-6,
}  # those named first are kept where the data cannot tell two apart

# condition index from which scalars are taken as one: Belsley, Kuh and Welsch (1980), section 3.2, where 5 to 10 is a
# weak dependency and 30 a strong one; what replays tell of a scalar's effect is good to a tenth, no better
COLLINEAR = 10.0
INVOLVED = 0.3  # share of a singular direction from which a scalar belongs to it
VISIBLE = 1e-4  # relative change of some figure that a scalar's trial change must make to be seen at all

SEPARATES: Mapping[frozenset[str], str] = {
    frozenset({"launch_time", "step_overhead"}): "runs at smaller and at larger batches",
    frozenset({"launch_time", "request_overhead"}): "runs at another concurrency",
    frozenset({"launch_time", "mixed_overhead"}): "runs at another output length",
    frozenset({"launch_time", "front_end"}): "TPOT beside TTFT or E2E",
    frozenset({"step_overhead", "request_overhead"}): "runs at another concurrency",
    frozenset({"step_overhead", "mixed_overhead"}): "runs at another output length",
    frozenset({"request_overhead", "mixed_overhead"}): "runs at another output length and the same concurrency",
    frozenset({"step_overhead", "front_end"}): "TPOT beside TTFT or E2E",
    frozenset(
        {"mixed_overhead", "front_end"}
    ): "runs with shorter answers, or with prompts longer than the token budget",
    frozenset({"request_overhead", "front_end"}): "TPOT beside TTFT at two concurrencies",
}


class Unidentified(NamedTuple):
    """A scalar that the data cannot tell, why, and what run would tell it."""

    scalar: str
    why: str
    remedy: str


def unidentified(jacobian: Floats, names: Sequence[str], observations: int) -> Unidentified | None:
    """The scalar to give up first, None where the data tell all of them apart.

    ``jacobian`` holds the change of each relative error (rows) with each scalar's trial change (columns). A scalar
    without an effect goes first; then, of the nearest dependency among columns of unit length (their smallest
    singular value), the one named last in SCALARS; then the last one if there are not more ``observations`` (of
    which a figure may be one of several statistics) than scalars.
    """
    sizes = np.abs(jacobian).max(axis=0, initial=0.0)
    for name, size in zip(names, sizes, strict=True):
        if size < VISIBLE:
            return Unidentified(name, "has no effect on what was measured", _shown_by(name))
    _, values, directions = np.linalg.svd(jacobian / np.linalg.norm(jacobian, axis=0), full_matrices=False)
    if len(names) > 1 and (len(values) < len(names) or values[-1] * COLLINEAR <= values[0]):
        weakest = directions[-1] if len(values) == len(names) else np.ones(len(names))
        return _given_up([name for name, part in zip(names, weakest, strict=True) if abs(part) >= INVOLVED])
    if observations <= len(names):
        last = max(names, key=list(SCALARS).index)
        return Unidentified(
            last, f"is one too many: {observations} observations cannot tell {len(names)} scalars", "more runs"
        )
    return None


def _given_up(involved: Sequence[str]) -> Unidentified:
    order = sorted(involved, key=list(SCALARS).index)
    last, others = order[-1], order[:-1]
    remedies = [SEPARATES[frozenset({last, other})] for other in others]
    why = f"cannot be told apart from {' and '.join(others)}"
    return Unidentified(last, why, ", or ".join(dict.fromkeys(remedies)))


def _shown_by(name: str) -> str:
    return {
        "launch_time": "runs at smaller batches",
        "front_end": "TTFT or E2E of served requests",
        "mixed_overhead": "TTFT, or runs in which prompts arrive while others decode",
        "request_overhead": "runs at a larger concurrency",
    }.get(name, "TPOT, ITL or step times")

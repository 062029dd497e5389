"""Scores of predictions: how far off, to which side, and whether the order is right."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from mist.validation.replay import Comparison


@dataclass(frozen=True)
class Score:
    """One metric of one set over one slice of its cells, relative errors as shares.

    ``mape`` is the mean absolute error, ``typical`` the median one, ``bias`` the mean signed one, ``rank`` Spearman's
    correlation (None below three cells or where either side is constant), ``noise`` the noise floor where
    somebody has measured one. All but ``cells`` speak of the ``covered`` ones.
    """

    name: str
    variant: str
    metric: str
    part: str  # "all", "calibration", "held out", or "fact value"
    cells: int
    covered: int
    mape: float | None
    typical: float | None
    bias: float | None
    rank: float | None
    noise: float | None


def scored(compared: Sequence[Comparison], slices: Mapping[str, Mapping[str, str]]) -> list[Score]:
    """Every set, metric and variant: over all cells, by calibration and held out, and by the set's ``slices``."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for line in compared:
        groups.setdefault((line.name, line.metric, line.variant), []).append(line)
    found = []
    for (name, _, _), lines in sorted(groups.items(), key=lambda item: item[0][:2]):
        found.append(_score(lines, "all"))
        parts = {fitted: [line for line in lines if line.fitted is fitted] for fitted in (True, False)}
        found.extend(_score(part, "calibration" if fitted else "held out") for fitted, part in parts.items() if part)
        for fact, called in slices[name].items():
            found.extend(
                _score(part, f"{called} {value}") for value, part in _by(fact, lines) if len(part) < len(lines)
            )
    return found


def _by(fact: str, lines: Iterable[Comparison]) -> list[tuple[str, list[Comparison]]]:
    parts: dict[str, list[Comparison]] = {}
    for line in lines:
        parts.setdefault(_plain(line.facts.get(fact, "unknown")), []).append(line)
    return list(parts.items())


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _score(lines: Sequence[Comparison], part: str) -> Score:
    first = lines[0]
    known = [(line.measured, line.predicted, line.error) for line in lines]
    pairs = [(m, p, e) for m, p, e in known if p is not None and e is not None]
    errors = [error for _, _, error in pairs]
    head = first.name, first.variant, first.metric, part, len(lines), len(pairs)
    if not errors:
        return Score(*head, None, None, None, None, first.noise)
    sizes = [abs(error) for error in errors]
    rank = spearman([m for m, _, _ in pairs], [p for _, p, _ in pairs])
    return Score(*head, fmean(sizes), median(sizes), fmean(errors), rank, first.noise)


def spearman(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Correlation of ranks, ties sharing their mean rank (Spearman 1904); None below three or without variation."""
    if len(measured) < 3 or len({*measured}) == 1 or len({*predicted}) == 1:
        return None
    return float(np.corrcoef(_ranks(measured), _ranks(predicted))[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=float)
    below = (column[:, None] > column[None, :]).sum(axis=1)
    equal = (column[:, None] == column[None, :]).sum(axis=1)
    ranks: NDArray[np.float64] = below + (equal + 1) / 2
    return ranks

"""From answers to an order: means over seeds, how sure they are, and which designs cannot be told apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from mist.sweep.space import Design

# Student's t, two-sided 95 %, by degrees of freedom (NIST/SEMATECH e-Handbook, table 1.3.6.7.2)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_BEYOND = 2.120  # 16 degrees of freedom; slightly wide for more


@dataclass(frozen=True)
class Ranked:
    """One design in the final order.

    ``value`` is tokens per dollar, ``capacity`` requests per second, ``metrics`` the judge's: all means over
    ``seeds`` (one record of the study where the design was not confirmed). ``value_error`` and ``capacity_error``
    are half-widths of 95 % confidence intervals, None without a confirmation. ``tied``: over the seeds that both were
    confirmed on, the 95 % interval of its difference to the best includes zero.
    """

    design: Design
    overrides: tuple[str, ...]
    value: float
    value_error: float | None
    capacity: float
    capacity_error: float | None
    metrics: Mapping[str, float]
    seeds: tuple[int, ...]
    tied: bool = False


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else _T_BEYOND
    return float(t * stdev(values) / len(values) ** 0.5)


def feasible(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Answers of the study that hold the SLOs, best first."""
    held = [line for line in lines if line["state"] == "ok"]
    return sorted(held, key=lambda line: (-line["record"]["value"], line["number"]))


def rank(lines: Sequence[Mapping[str, Any]]) -> list[Ranked]:
    """Confirmed designs by their mean, then the others by the study's single answer."""
    again: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["state"] == "confirm" and line["record"] is not None:
            again.setdefault(line["identity"], {})[line["seeds"][0]] = line["record"]
    first = feasible(lines)
    confirmed = [(line, again[line["identity"]]) for line in first if line["identity"] in again]
    confirmed.sort(key=lambda pair: -fmean(record["value"] for record in pair[1].values()))
    rest = [line for line in first if line["identity"] not in again]
    best = confirmed[0][1] if confirmed else {}
    ranked = [_ranked(line, records, i > 0 and _tied(best, records)) for i, (line, records) in enumerate(confirmed)]
    return ranked + [_ranked(line, dict.fromkeys(line["seeds"], line["record"]), False) for line in rest]


def _ranked(line: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]], tied: bool) -> Ranked:
    answers = list(records.values())
    own = answers[0] is line["record"]  # one record over several seeds has no spread between records
    values, capacities = [r["value"] for r in answers], [r["capacity"] for r in answers]
    names = set.intersection(*(set(r["metrics"]) for r in answers))
    metrics = {name: [r["metrics"][name] for r in answers] for name in answers[0]["metrics"] if name in names}
    return Ranked(
        design=line["design"],
        overrides=tuple(line["overrides"]),
        value=fmean(values),
        value_error=None if own else half_width(values),
        capacity=fmean(capacities),
        capacity_error=None if own else half_width(capacities),
        metrics={name: fmean(each) for name, each in metrics.items() if all(isinstance(x, int | float) for x in each)},
        seeds=tuple(records),
        tied=tied,
    )


def _tied(best: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> bool:
    """Seed by seed, because both met the same traffic: what the seeds share does not blur the difference."""
    gaps = [best[seed]["value"] - other[seed]["value"] for seed in best if seed in other]
    error = half_width(gaps)
    return error is None or abs(fmean(gaps)) <= error

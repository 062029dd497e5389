"""From answers to an order: means over seeds, how sure they are, and which designs cannot be told apart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from mist.sweep.identity import digest
from mist.sweep.space import Design

# Student's t, two-sided 95 %, by degrees of freedom (NIST/SEMATECH e-Handbook, table 1.3.6.7.2)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_BEYOND = 2.120  # 16 degrees of freedom; slightly wide for more


@dataclass(frozen=True)
class Ranked:
    """One design in the final order.

    ``value`` is the objective's, ``capacity`` requests per second, ``metrics`` the judge's: all means over
    ``seeds``, on the highest ``rung`` it reached. ``value_error`` and ``capacity_error`` are half-widths of 95 %
    confidence intervals, None below the rung ``confirm``. ``tied``: over the seeds that both were confirmed on, the
    95 % interval of its difference to the best includes zero.
    """

    rung: str
    design: Design
    overrides: tuple[str, ...]
    value: float
    value_error: float | None
    capacity: float
    capacity_error: float | None
    metrics: Mapping[str, float]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]  # capacity by seed
    tied: bool = False
    notes: tuple[str, ...] = ()  # why the window, and not the deployment, may have set an answer


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95 % confidence interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else _T_BEYOND
    return float(t * stdev(values) / len(values) ** 0.5)


def feasible(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Answers of the search that hold the SLOs, best first."""
    held = [line for line in lines if line["rung"] != "confirm" and line["state"] == "ok"]
    return sorted(held, key=lambda line: (-line["record"]["value"], line["number"]))


def leaders(lines: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The ``count`` best answers of the search, of those that no confirmation has refuted.

    Among the best ``2 * count`` only: where the two rungs disagree that much, going on would only take time.
    """
    without = refuted(lines)
    return [line for line in feasible(lines)[: 2 * count] if digest(line["design"]) not in without][:count]


def refuted(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Digests of designs that a confirmation found infeasible, or that failed it."""
    return {digest(line["design"]) for line in lines if line["rung"] == "confirm" and line["state"] != "ok"}


def rank(lines: Sequence[Mapping[str, Any]]) -> list[Ranked]:
    """Confirmed designs by their mean at full fidelity, then those that were only searched by that single answer.

    A design that a confirmation has refuted (infeasible on some seed, or failed) is in neither.
    """
    again: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["rung"] == "confirm":
            again.setdefault(digest(line["design"]), {})[line["seeds"][0]] = line
    held = [answers for answers in again.values() if all(line["state"] == "ok" for line in answers.values())]
    held.sort(key=lambda answers: -fmean(line["record"]["value"] for line in answers.values()))
    ranked = [_confirmed(answers, i > 0 and _tied(held[0], answers)) for i, answers in enumerate(held)]
    return ranked + [_searched(line) for line in feasible(lines) if digest(line["design"]) not in again]


def _searched(line: Mapping[str, Any]) -> Ranked:
    record = line["record"]
    return Ranked(
        rung=line["rung"],
        design=line["design"],
        overrides=tuple(line["overrides"]),
        value=record["value"],
        value_error=None,
        capacity=record["capacity"],
        capacity_error=None,
        metrics=record["metrics"],
        seeds=tuple(line["seeds"]),
        rates=(record["capacity"],) * len(line["seeds"]),
        notes=tuple(record.get("notes", ())),
    )


def _confirmed(answers: Mapping[int, Mapping[str, Any]], tied: bool) -> Ranked:
    """The mean over seeds; ``answers`` are lines by seed."""
    line, records = next(iter(answers.values())), [answer["record"] for answer in answers.values()]
    values, capacities = [r["value"] for r in records], [r["capacity"] for r in records]
    names = [name for name in records[0]["metrics"] if all(name in r["metrics"] for r in records)]
    return Ranked(
        rung=line["rung"],
        design=line["design"],
        overrides=tuple(line["overrides"]),
        value=fmean(values),
        value_error=half_width(values),
        capacity=fmean(capacities),
        capacity_error=half_width(capacities),
        metrics={name: fmean(r["metrics"][name] for r in records) for name in names},
        seeds=tuple(answers),
        rates=tuple(capacities),
        tied=tied,
        notes=tuple(dict.fromkeys(note for record in records for note in record.get("notes", ()))),
    )


def _tied(best: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> bool:
    """Seed by seed, because both met the same traffic: what the seeds share does not blur the difference."""
    gaps = [best[seed]["record"]["value"] - other[seed]["record"]["value"] for seed in best if seed in other]
    error = half_width(gaps)
    return error is None or abs(fmean(gaps)) <= error

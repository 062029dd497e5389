"""The answer of a study as a page to publish: README.md and its plots, in one folder.

What a person wrote below the mark in an earlier page is kept; all above it is written anew.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mist.report.objective import OBJECTIVES
from mist.report.plot import Bar, Point, amount, bars, points
from mist.report.ranked import Row, timed
from mist.report.standing import cautions, said
from mist.report.study import Answer, reasons

MARK = "<!-- written by hand from here on -->"
LEADERS = "leaders.svg"
DESIGNS = "designs.svg"

Others = Sequence[tuple[str, Row]]  # what stands beside: label and best design of a run


@dataclass(frozen=True)
class Told:
    """One run to tell: its answer, the question, the overrides of all its designs, and how it came about."""

    answer: Answer
    question: str
    base: Mapping[str, Any]
    manifest: Mapping[str, Any]


def write(file: Path, study: Told, beside: Sequence[Told] = ()) -> None:
    """Write the page of ``study`` to ``file`` and its plots next to it.

    ``beside`` are runs to compare with, each by its best design; ratios are to the first of them, or to the best design
    where there is none.
    """
    kept = file.read_text().partition(MARK)[2] if file.is_file() else "\n"
    confirmed = [row for row in study.answer.rows if row.rung == "confirm"] or list(study.answer.rows[:1])
    others = [(_label(run, study), run.answer.rows[0]) for run in beside if run.answer.rows]
    file.write_text("\n".join([*_page(study, beside, confirmed, others), MARK]) + kept)
    if confirmed:
        (file.parent / LEADERS).write_text(_leaders_plot(confirmed, others, _unit(study)))
    marks = list(_marks(study.answer.lines, confirmed))
    if marks:
        title = "Every feasible design of the search, confirmed ones ringed"
        latency = f"{timed(confirmed)[-1].upper()} P99, ms"
        (file.parent / DESIGNS).write_text(points(title, latency, f"{_unit(study)} per dollar", marks))


def spoken(design: Mapping[str, object]) -> str:
    """A design in one line: ``disaggregated; prefill: a100, tp 1, replicas 6; decode: l40s, tp 1, replicas 2``."""
    groups: dict[str, list[str]] = {}
    for key, value in design.items():
        group, _, name = key.rpartition(".")
        groups.setdefault(group, []).append(str(value) if isinstance(value, str) else f"{name} {value}")
    return "; ".join(f"{group}: {', '.join(said)}" if group else ", ".join(said) for group, said in groups.items())


def _label(run: Told, study: Told) -> str:
    """The best design of a run beside a study: all that the study's designs do not share."""
    own = {key: value for key, value in run.base.items() if key not in study.base or study.base[key] != value}
    return spoken({**own, **run.answer.rows[0].design}) or "the base"


def _page(study: Told, beside: Sequence[Told], rows: Sequence[Row], others: Others) -> Iterator[str]:
    yield f"# {study.manifest['sweep']}\n\n{study.question}\n"
    yield from (f"    {run.manifest['command']}" for run in (study, *beside))
    yield f"\n{_conditions(study)}\n"
    if rows:
        yield from _table(rows, others, OBJECTIVES[study.answer.objective].short)
        yield f"\n{_legend(rows, others)}\n\n![leaders]({LEADERS})"
    states = Counter(line["state"] for line in study.answer.lines if line["rung"] != "confirm")
    judged = sum(states[state] for state in ("ok", "infeasible", "failed"))
    text = f"{states['ok']} feasible, {states['infeasible']} infeasible, {states['failed']} failed"
    yield f"\n{judged} designs judged: {text}."
    if study.answer.decided is not None and rows:
        yield said(study.answer.decided)
    yield from cautions(rows)
    for rung, where in (("confirm", "At full fidelity"), ("", "While searching")):
        lines = [line for line in study.answer.lines if (line["rung"] == "confirm") == bool(rung)]
        for text in list(reasons([line for line in lines if line["state"] == "infeasible"]))[:4]:
            yield f"{where}: {text}."
    yield f"\n![designs]({DESIGNS})\n" if states["ok"] else ""


def _conditions(study: Told) -> str:
    manifest = study.manifest
    limits = ", ".join(f"{_named(name)} <= {limit:g} s" for name, limit in manifest["slo"].items()) or "none"
    screen = ", ".join(f"{key}={value}" for key, value in study.answer.screen.items())
    text = f"SLO: {limits}. Prices: `{manifest['prices']['name']}`, read {manifest['price_date']}."
    text += f" Searched with {screen}; the leaders below without." if screen else ""
    return text + f" Run on {manifest['began'][:10]}, commit {_commit(manifest)}."


def _commit(manifest: Mapping[str, Any]) -> str:
    commit = str(manifest["git"] or "unknown")
    return commit[:12] + (" with changes" if commit.endswith("-dirty") else "")


def _named(name: str) -> str:
    metric, _, percentile = name.rpartition("_")
    return f"{metric.upper()} {percentile.upper()}"


def _table(rows: Sequence[Row], others: Others, unit: str) -> Iterator[str]:
    latencies = timed(rows)
    columns = " | ".join(f"{metric.upper()} P50 / P99, ms" for metric in latencies)
    yield f"| # | design | {unit}/$ | ratio | requests/s | {columns} | $/h |"
    yield "|--:|---|--:|--:|--:|" + "--:|" * (len(latencies) + 1)
    told = [(spoken(row.design) or "the base", row) for row in rows] + list(others)
    reference = (others[0][1] if others else rows[0]).value
    tied = any(row.tied for row in rows)
    places = ["=1" if row.tied or (tied and i == 0) else str(i + 1) for i, row in enumerate(rows)]
    places += ["beside" for _ in others]
    for place, (label, row) in zip(places, told, strict=True):
        rates = f"{row.capacity:.3g}" + (f" ±{row.capacity_error:.2g}" if row.capacity_error is not None else "")
        cells = [place, label, _value(row), f"{row.value / reference:.2f}", rates]
        cells += [*(_tails(row, metric) for metric in latencies), f"{row.metrics['dollars_per_hour']:.2f}"]
        yield f"| {' | '.join(cells)} |"


def _value(row: Row) -> str:
    return amount(row.value) + (f" ±{row.value_error / row.value:.1%}" if row.value_error is not None else "")


def _tails(row: Row, metric: str) -> str:
    tails = [row.metrics.get(f"{metric}_{p}", 0.0) * 1e3 for p in ("p50", "p99")]
    return " / ".join(f"{tail:,.0f}" if tail >= 100 else f"{tail:.3g}" for tail in tails)


def _legend(rows: Sequence[Row], others: Others) -> str:
    seeds = max(len(row.seeds) for row in rows)
    to = "the first row marked beside" if others else "the best design"
    text = f"At capacity, means over {seeds} seeds of traffic; ± is a 95 % confidence interval. Ratio: to {to}."
    return text + (" =1: not to be told from the best, seed by seed." if any(row.tied for row in rows) else "")


def _unit(study: Told) -> str:
    return OBJECTIVES[study.answer.objective].unit


def _leaders_plot(rows: Sequence[Row], others: Others, unit: str) -> str:
    drawn = [Bar(spoken(row.design) or "the base", row.value, row.value_error, "found by the search") for row in rows]
    drawn += [Bar(label, row.value, row.value_error, "set beside it") for label, row in others]
    drawn.sort(key=lambda bar: -bar.value)
    title = f"{unit.capitalize()} per dollar within SLO, at capacity"
    return bars(title, f"{unit.rpartition(' ')[2]} per dollar; line: 95 % interval", drawn)


def _marks(lines: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Iterator[Point]:
    leading, latency = [dict(row.design) for row in rows], f"{timed(rows)[-1]}_p99"
    for line in lines:
        if line["rung"] != "confirm" and line["state"] == "ok" and latency in line["record"]["metrics"]:
            record, design = line["record"], line["design"]
            group = str(design.get("scheduler", design.get("cluster", "")))
            yield Point(record["metrics"][latency] * 1e3, record["value"], group, design in leading)

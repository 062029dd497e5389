"""The ranked table of a study: designs, and what they achieve."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from mist.report.objective import OBJECTIVES
from mist.report.progress import scale, settings

ROWS = 10  # of the table


class Row(Protocol):
    """One ranked design (``mist.sweep.ranking.Ranked``)."""

    @property
    def rung(self) -> str: ...
    @property
    def design(self) -> Mapping[str, object]: ...
    @property
    def value(self) -> float: ...
    @property
    def value_error(self) -> float | None: ...
    @property
    def capacity(self) -> float: ...
    @property
    def capacity_error(self) -> float | None: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...
    @property
    def tied(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


def ranked_table(
    rows: Sequence[Row], limits: Mapping[str, float], console: Console, objective: str = "tokens_per_dollar"
) -> Table:
    """Rank, the keys in which designs differ, and what they achieve; as roomy as the console allows."""
    forms = [(("p50", "p99"), 2), (("p50", "p99"), 1), (("p99",), 1), ((), 1)]
    unit = OBJECTIVES[objective].short
    tables = [_table(rows, limits, percentiles, gap, unit) for percentiles, gap in forms]
    unbound = console.options.update(max_width=1000)
    widths = [console.measure(table, options=unbound).maximum for table in tables]
    return next((table for table, width in zip(tables, widths, strict=True) if width <= console.width), tables[-1])


def _table(
    rows: Sequence[Row], limits: Mapping[str, float], percentiles: tuple[str, ...], gap: int, counted: str
) -> Table:
    shown = rows[:ROWS]
    keys = varied(shown)
    factor, prefix = scale(rows[0].value)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    _columns(table, keys, shown)
    for header in (f"{prefix} {counted}\nper $".strip(), "capacity\nreq/s"):
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    units = {metric: _unit([row.metrics.get(f"{metric}_p99", 0.0) for row in shown]) for metric in timed(shown)}
    for metric, (per_unit, unit) in units.items() if percentiles else ():
        bounds = [limits.get(f"{metric}_{percentile}") for percentile in percentiles]
        allowed = " / ".join("-" if bound is None else f"{bound * per_unit:.4g}" for bound in bounds)
        names = " / ".join(percentiles).upper()
        limit = f"≤ {allowed}" if any(bounds) else _elsewhere(metric, limits, per_unit)
        table.add_column(f"{metric.upper()}, {unit}\n{names}\n{limit}", justify="right", no_wrap=True)
    table.add_column("\n\n$/h", justify="right", no_wrap=True)
    for i, row in enumerate(shown):
        cells = [Text(_place(i, rows)), *(Text(_cell(row.design.get(key, "-"))) for key in keys)]
        cells.append(_estimate(row.value, row.value_error if percentiles else None, factor))
        cells.append(_estimate(row.capacity, row.capacity_error if len(percentiles) == 2 else None))
        cells += [
            _latency(row.metrics, limits, [f"{m}_{p}" for p in percentiles], u[0])
            for m, u in units.items()
            if percentiles
        ]
        cells.append(Text(f"{row.metrics['dollars_per_hour']:,.2f}" if "dollars_per_hour" in row.metrics else "-"))
        once = row.rung != rows[0].rung or row.rung == "screen"
        table.add_row(*cells, style="dim" if once else "bold" if i == 0 else "")
    return table


def _elsewhere(metric: str, limits: Mapping[str, float], per_unit: float) -> str:
    """Limits on percentiles that are not shown."""
    told = [(name.rpartition("_"), limit) for name, limit in limits.items()]
    own = [f"{parts[2].upper()} ≤ {limit * per_unit:.4g}" for parts, limit in told if parts[0] == metric]
    return ", ".join(own) or "no limit"


def timed(rows: Sequence[Row]) -> tuple[str, ...]:
    """The latencies worth a column: of answers that are not tokens there is but one."""
    return ("ttft", "tpot") if any(row.metrics.get("tpot_p99") for row in rows) else ("e2e",)


def varied(shown: Sequence[Row]) -> list[str]:
    """The keys in which these designs differ; all keys of a single one."""
    keys = list(dict.fromkeys(key for row in shown for key in row.design))
    return [key for key in keys if len({row.design.get(key) for row in shown}) > 1] or keys


def _columns(table: Table, keys: Sequence[str], shown: Sequence[Row]) -> None:
    """The rank, and a column for each key, by the last part of its name where that is clear."""
    table.add_column("#", justify="right", no_wrap=True, vertical="bottom")
    last = Counter(key.rpartition(".")[2] for key in keys)
    for key in keys:
        name = key.rpartition(".")[2]
        header = (name if last[name] == 1 else key.replace(".", "\n")).replace("_", "\n")
        numeric = all(isinstance(row.design.get(key, 0), int | float) for row in shown)
        justify: JustifyMethod = "right" if numeric else "left"
        table.add_column(header, justify=justify, style="cyan", no_wrap=True, vertical="bottom")


def _place(i: int, rows: Sequence[Row]) -> str:
    if rows[i].rung == "screen":
        return "screened"
    return "=1" if rows[i].tied or (i == 0 and any(row.tied for row in rows)) else str(i + 1)


def notes(rows: Sequence[Row], screen: Mapping[str, Any]) -> list[str]:
    """What the numbers in the table are."""
    confirmed = [row for row in rows if row.rung == "confirm"]
    told = []
    if confirmed:
        seeds = max(len(row.seeds) for row in confirmed)
        told.append(f"± is a 95 % confidence interval over {seeds} fresh seeds; rows without it were judged once.")
    if any(row.rung == "screen" for row in rows):
        told.append(f"screened: searched with {settings(screen)} and not confirmed; not to be compared with the rest.")
    if any(row.tied for row in rows):
        told.append("=1: seed by seed, the difference to the best is within its 95 % interval: a tie.")
    if len(rows) > ROWS:
        told.append(f"{len(rows) - ROWS} more feasible designs are in trials.jsonl.")
    return told


def _unit(seconds: Sequence[float]) -> tuple[float, str]:
    return (1.0, "s") if max(seconds) >= 10 else (1e3, "ms")


def _latency(metrics: Mapping[str, float], limits: Mapping[str, float], names: Sequence[str], factor: float) -> Text:
    """Percentiles, each coloured by its own limit."""
    text = Text()
    for name in names:
        value, limit = metrics.get(name), limits.get(name)
        style = "" if limit is None or value is None else "green" if value <= limit else "red"
        text.append(" / " if text else "").append("-" if value is None else f"{value * factor:.3g}", style=style)
    return text


def _estimate(value: float, error: float | None, factor: float = 1.0) -> Text:
    """Four digits, and the half-width of the interval to the same place."""
    digits = max(0, 4 - len(str(int(abs(value / factor)))))
    text = Text(f"{value / factor:,.{digits}f}")
    return text if error is None else text.append(f" ±{error / factor:.{digits}f}", style="not bold dim")


def _cell(value: object) -> str:
    large = isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000
    return f"{value:,}" if large else str(value)

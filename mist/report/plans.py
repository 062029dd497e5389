"""What the stages of plans took, and the stations and hosts that served them, as a person reads it in a terminal."""

from collections.abc import Iterator
from math import isfinite

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mist.metrics import Result
from mist.stage_times import Spread

DIM = "dim"


def plans(result: Result) -> Iterator[RenderableType]:
    """A table of stages, of stations and of hosts; nothing where there are none."""
    if result.stages:
        yield Text()
        yield stage_table(result)
    if result.stations:
        yield Text()
        yield station_table(result)
    if result.hosts:
        yield Text()
        yield host_table(result)


def stage_table(result: Result) -> Table:
    """Waits and service of each kind of stage, by visit."""
    table = _table("stage", "visits/request", "wait mean", "P50", "P90", "P99", "service mean", "P50", "P90", "P99")
    for kind, report in (result.stages or {}).items():
        rest = report.service or report.transfer
        assert rest is not None
        table.add_row(
            kind if report.service else f"{kind} (transfer)",
            f"{report.visits_per_request:.3g}",
            *_spread(report.wait),
            *_spread(rest),
        )
    return table


def station_table(result: Result) -> Table:
    """One line per station."""
    columns = "servers", "busy", "batch", "tasks", "items/s", "tokens/s", "recall", "$/h"
    table = _table("station", "service", "on", *columns, words=3)
    for name, at in (result.stations or {}).items():
        busy = f"{at.busy_servers:.3g} servers" if at.utilization is None else f"{at.utilization:.0%}"
        servers = "any" if at.servers is None else str(at.servers)
        read = "" if at.tokens_per_second is None else f"{at.tokens_per_second:,.0f}"
        recall = "" if at.recall is None else f"{at.recall:.3g}"
        figures = f"{at.mean_batch:.3g}", f"{at.tasks:,}", f"{at.items_per_second:.4g}", read, recall
        paid = f"{at.dollars_per_hour:.2f}"
        table.add_row(name, at.service, at.place or "elsewhere", servers, busy, *figures, paid)
    return table


def host_table(result: Result) -> Table:
    """One line per host."""
    table = _table("host", "hardware", "cores", "cores busy", "bandwidth used", "$/h", words=2)
    for name, host in (result.hosts or {}).items():
        shares = f"{host.core_utilization:.1%}", f"{host.bandwidth_utilization:.1%}"
        table.add_row(name, host.hardware, str(host.cores), *shares, f"{host.dollars_per_hour:.2f}")
    return table


def _table(*columns: str, words: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style=DIM)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < words else "right")
    return table


def _spread(spread: Spread) -> Iterator[str]:
    for value in (spread.mean, spread.p50, spread.p90, spread.p99):
        yield seconds(value)


def seconds(value: float) -> str:
    """Three figures, in the unit that suits them; endless where somebody never finished."""
    if not isfinite(value):
        return "endless"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"

"""A Result and a Capacity as a person reads them in a terminal."""

from collections.abc import Iterator, Mapping
from math import isfinite

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mist.metrics import Check, Latency, PoolReport, Result
from mist.sweep.capacity import Capacity

GOOD, BAD, DIM = "green", "red", "dim"


def simulation(result: Result) -> RenderableType:
    """What was deployed, what it did with the load, and whether the SLO held."""
    if result.verdict == "infeasible":
        return Text.assemble(("does not fit: ", BAD), result.reason)
    parts: list[RenderableType] = [deployment(result), Text()]
    parts.extend(_memory(result))
    parts.append(_served(result))
    parts.append(latency_table(result))
    parts.extend(Text(f"note: {note}", "yellow") for note in _notes(result))
    parts.append(_verdict(result))
    return Group(*parts)


def capacity(answer: Capacity) -> RenderableType:
    """The largest rate that holds, its spread over seeds, and the Result there."""
    result = answer.worst
    if not answer.rate:
        return Text.assemble(("capacity 0 requests/s: ", BAD), result.reason)
    head = Text.assemble(("capacity ", ""), (f"{answer.rate:.3g} requests/s", f"bold {GOOD}"))
    rates = answer.by_seed
    if len(rates) > 1:
        spread = (max(rates.values()) - min(rates.values())) / answer.rate
        each = ", ".join(f"{rate:.3g}" for rate in rates.values())
        head.append(f"   {len(rates)} seeds: {each} (spread {spread:.1%})")
    else:
        head.append("   one seed; --seeds 3 shows the spread", DIM)
    head.append(f"\n{answer.tokens_per_dollar:,.0f} output tokens per dollar within SLO", "bold")
    head.append(f"   {answer.probes} simulations", DIM)
    return Group(head, Text(), simulation(result))


def deployment(result: Result) -> Table:
    """One line per pool."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    for name in ("pool", "replicas", "model", "engine", "step time", "KV tokens fit", "peak KV", "busy", "preempted"):
        table.add_column(name, justify="left" if name in ("pool", "model", "engine", "step time") else "right")
    table.add_column("$/h", justify="right")
    for name, pool in (result.pools or {}).items():
        table.add_row(name, *_pool(pool))
    return table


def _pool(pool: PoolReport) -> Iterator[str]:
    yield f"{pool.replicas} x {pool.tp} {pool.hardware}" if pool.tp > 1 else f"{pool.replicas} x {pool.hardware}"
    yield pool.model
    yield pool.engine
    yield pool.perf
    yield f"{pool.kv_tokens:,}"
    yield f"{pool.kv_peak:.0%}"
    yield f"{pool.utilization:.0%}"
    yield f"{pool.preemptions:,}"
    yield f"{pool.dollars_per_hour:.2f}"


def _memory(result: Result) -> Iterator[Text]:
    """What prefix caches found and what was swapped, by pool; nothing where both are off."""
    for name, pool in (result.pools or {}).items():
        if pool.prefix is not None:
            found, asked = pool.prefix.hit_tokens, pool.prefix.looked_up_tokens
            yield Text(f"{name}: prefix cache hit {pool.prefix.hit_rate:.1%} ({found:,} of {asked:,} tokens)")
        if pool.swap is not None:
            swap = pool.swap
            moved = f"{swap.out_bytes / 1e9:,.3g} GB out, {swap.in_bytes / 1e9:,.3g} GB in"
            full = f", {swap.recomputed:,} preemptions recomputed for lack of room" if swap.recomputed else ""
            yield Text(f"{name}: swapped {moved}; host memory at most {swap.host_peak:.0%} full{full}")
    if result.refusal and result.counts is not None:
        yield Text(f"{result.counts.refused:,} requests refused; the first: {result.refusal}", "yellow")


def _served(result: Result) -> Text:
    assert result.counts is not None and result.window is not None
    counts, window = result.counts, result.window
    of_window = window.requests
    text = Text()
    text.append(f"offered {result.rate:.4g} requests/s; ", "bold")
    text.append(f"window {window.start:.1f} to {window.end:.1f} s, {of_window.arrived:,} requests")
    text.append(
        f"\nwhole run: {counts.arrived:,} arrived = {counts.completed:,} completed + {counts.in_flight:,} in flight"
        f" + {counts.refused:,} refused",
        DIM,
    )
    text.append(
        f"\nserved {result.requests_per_second:.4g} requests/s, {result.output_tokens_per_second:,.0f} tokens/s"
    )
    text.append(f"; within SLO {result.attainment:.2%} of requests, {result.goodput_tokens_per_second:,.0f} tokens/s\n")
    return text


def latency_table(result: Result) -> Table:
    """Percentiles against their limits."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    table.add_column("")
    for name in ("mean", "P50", "P90", "P95", "P99"):
        table.add_column(name, justify="right")
    table.add_column("limits", justify="left")
    for metric, figures in (result.latency or {}).items():
        table.add_row(metric.upper(), *_figures(figures), _limits(metric, result.slo or {}))
    return table


def _figures(figures: Latency) -> Iterator[str]:
    for value in (figures.mean, figures.p50, figures.p90, figures.p95, figures.p99):
        yield seconds(value)


def _limits(metric: str, checks: Mapping[str, Check]) -> Text:
    text = Text()
    for name, check in checks.items():
        if name.startswith(metric):
            percentile = name.partition("_")[2].upper()
            text.append(f"{percentile} <= {seconds(check.limit)} ", GOOD if check.met else BAD)
            text.append("met  " if check.met else "MISSED  ", GOOD if check.met else f"bold {BAD}")
    return text


def _notes(result: Result) -> tuple[str, ...]:
    return result.window.notes if result.window else ()


def _verdict(result: Result) -> Text:
    if result.verdict == "ok":
        per_dollar = f"{result.tokens_per_dollar:,.0f} output tokens per dollar"
        return Text.assemble(("SLO held: ", GOOD), (per_dollar, "bold"), f" at ${result.dollars_per_hour:.2f}/h")
    name = {"slo_missed": "SLO missed: ", "unstable": "unstable, not scored: "}[result.verdict]
    return Text.assemble((name, f"bold {BAD}"), result.reason)


def seconds(value: float) -> str:
    """Three figures, in the unit that suits them; endless where somebody never finished."""
    if not isfinite(value):
        return "endless"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"

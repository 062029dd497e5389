"""A Result as a person reads it in a terminal."""

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mist.metrics import Check, Latency, PoolReport, Result
from mist.report.plans import plans, seconds

GOOD, BAD, DIM = "green", "red", "dim"


def simulation(result: Result) -> RenderableType:
    """What was deployed, what it did with the load, and whether the SLO held."""
    if result.verdict == "infeasible":
        return Text.assemble(("does not fit: ", BAD), result.reason)
    parts: list[RenderableType] = [deployment(result), *_speculation(result), Text()] if result.pools else []
    parts.extend(_dynamics(result))
    parts.extend(_memory(result))
    parts.extend(_sources(result))
    parts.append(_served(result))
    parts.append(latency_table(result))
    parts.extend(plans(result))
    if result.classes:
        parts.extend((Text(), class_table(result)))
    parts.append(Text())
    parts.extend(Text(f"note: {note}", "yellow") for note in _notes(result))
    if result.prices:
        parts.append(Text(f"prices of {result.prices}", DIM))
    parts.append(_verdict(result))
    return Group(*parts)


def deployment(result: Result) -> Table:
    """One line per pool."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    words = ("pool", "model", "engine", "scheduler", "step time")
    figures = ("KV tokens fit", "peak KV", "busy", "preempted")
    for name in ("pool", "replicas", *words[1:], *figures):
        table.add_column(name, justify="left" if name in words else "right")
    table.add_column("W/device", justify="right")
    table.add_column("$/h", justify="right")
    for name, pool in (result.pools or {}).items():
        table.add_row(name, *_pool(pool))
    return table


def _pool(pool: PoolReport) -> Iterator[str]:
    each = pool.devices // pool.replicas
    cut = f" ({pool.layout})" if pool.layout != f"tp {pool.tp}" and pool.layout else ""
    at = f" on {pool.node}" if pool.node not in ("", "isolated") else ""
    yield (f"{pool.replicas} x {each} {pool.hardware}" if each > 1 else f"{pool.replicas} x {pool.hardware}") + cut + at
    yield pool.model
    yield pool.engine
    yield pool.scheduler
    yield pool.perf
    yield f"{pool.kv_tokens:,}"
    yield f"{pool.kv_peak:.0%}"
    yield f"{pool.utilization:.0%}"
    yield f"{pool.preemptions:,}"
    yield f"{pool.watts:.0f}"
    yield f"{pool.dollars_per_hour:.2f}"


def _speculation(result: Result) -> Iterator[Text]:
    for name, pool in (result.pools or {}).items():
        if (drafts := pool.speculation) is not None:
            yield Text(
                f"{name} speculates: {drafts.drafter} drafts {drafts.tokens} a step, {drafts.acceptance_rate:.0%}"
                f" accepted, {drafts.tokens_per_step:.2f} tokens a step"
            )


def _dynamics(result: Result) -> Iterator[Text]:
    """One line per pool whose replicas, or station whose servers, came and went."""
    roles = {name: pool.role for name, pool in (result.pools or {}).items()}
    fleets = {name: pool.fleet for name, pool in (result.pools or {}).items()}
    fleets |= {name: station.fleet for name, station in (result.stations or {}).items()}
    for name, fleet in fleets.items():
        if fleet is None:
            continue
        what = "replica" if name in roles else "server"
        text = f"{name}: paid for {fleet.mean_replicas:.3g} {what}s on average, {fleet.fewest} to {fleet.most}"
        text += f", {fleet.replica_seconds:,.0f} {what}-seconds"
        if fleet.failures:
            text += f"; {fleet.failures} failure{'s' * (fleet.failures > 1)}, {fleet.availability:.3%} available"
        if fleet.joined:
            text += f"; {fleet.joined} replica{'s' * (fleet.joined > 1)} changed to {roles[name]}"
        yield Text(text)


SOURCES = {"transferred": "transferred from other shapes or like kernels"}


def _sources(result: Result) -> Iterator[Text]:
    """How the step times are known, by pool."""
    for name, pool in (result.pools or {}).items():
        known = sorted((pool.step_time_sources or {}).items(), key=lambda part: -part[1])
        if known:
            parts = ", ".join(f"{share:.0%} {SOURCES.get(source, source)}" for source, share in known)
            yield Text(f"{name}: step time {parts}", DIM)


def _memory(result: Result) -> Iterator[Text]:
    """What prefix caches found and what was swapped, by pool; nothing where both are off."""
    for name, pool in (result.pools or {}).items():
        if pool.prefix is not None:
            found, asked = pool.prefix.hit_tokens, pool.prefix.looked_up_tokens
            yield Text(f"{name}: prefix cache hit {pool.prefix.hit_rate:.1%} ({found:,} of {asked:,} tokens)")
        if pool.cascade is not None and pool.cascade.steps:
            each = pool.cascade.spared_tokens / pool.cascade.steps
            often = f"in {pool.cascade.steps / pool.steps:.0%} of steps"
            yield Text(f"{name}: cascade attention {often}, each spared reading {each:,.0f} tokens of KV again")
        if pool.swap is not None:
            swap = pool.swap
            moved = f"{swap.out_bytes / 1e9:,.3g} GB out, {swap.in_bytes / 1e9:,.3g} GB in"
            full = f", {swap.recomputed:,} preemptions recomputed for lack of room" if swap.recomputed else ""
            yield Text(f"{name}: swapped {moved}; host memory at most {swap.host_peak:.0%} full{full}")
        yield from _tiers(name, pool)
    if result.refusal and result.counts is not None:
        yield Text(f"{result.counts.refused:,} requests refused; the first: {result.refusal}", "yellow")


def _tiers(name: str, pool: PoolReport) -> Iterator[Text]:
    """What was found behind the devices of a pool, tier by tier; nothing where there is none."""
    if pool.tiers is None:
        return
    use = pool.tiers
    again = f", {use.recomputed_tokens:,} computed again by choice" if use.recomputed_tokens else ""
    wasted = f", {use.wasted_tokens:,} fetched for nothing" if use.wasted_tokens else ""
    found = f"{name}: of {use.requests:,} requests {use.found:,} found KV in tiers and {use.fetched:,} fetched it"
    lost = f", {use.lost_tokens:,} for requests that did not stay" if use.lost_tokens else ""
    yield Text(f"{found}, {use.fetched_tokens:,} tokens{again}{wasted}{lost}")
    for tier, did in use.tiers.items():
        read = f"{did.reads:,} reads, {did.hit_tokens:,} tokens, {did.read_bytes / 1e9:,.3g} GB"
        took = f"{seconds(did.transfer_time)} each (P99 {seconds(did.transfer_time_p99)}), {seconds(did.wait)} waiting"
        read = f"{read}, {took}" if did.reads else "nothing read"
        kept = f"; {did.written_bytes / 1e9:,.3g} GB written" if did.written_bytes else ""
        kept += f", at most {did.peak:.0%} full" if did.peak is not None else ""
        kept += f", {did.evicted:,} blocks evicted" if did.evicted else ""
        kept += f", {did.expired:,} expired" if did.expired else ""
        kept += f", {did.lost:,} lost with replicas" if did.lost else ""
        kept += f", {did.turned_away:,} turned away" if did.turned_away else ""
        yield Text(f"  {tier}: {read}{kept}")


def _served(result: Result) -> Text:
    assert result.counts is not None and result.window is not None
    counts, window = result.counts, result.window
    of_window = window.requests
    text = Text()
    text.append(f"offered {result.rate:.4g} requests/s; ", "bold")
    text.append(f"window {window.start:.1f} to {window.end:.1f} s, {of_window.arrived:,} requests")
    text.append(
        f"\nwhole run: {counts.arrived:,} arrived = {counts.completed:,} completed + {counts.in_flight:,} in flight"
        f" + {counts.refused:,} refused" + (f" + {counts.lost:,} lost with a replica" if counts.lost else ""),
        DIM,
    )
    served = f"\nserved {result.requests_per_second:.4g} requests/s"
    good = f"; within SLO {result.attainment:.2%} of requests" if result.slo else ""
    if not result.pools:  # nothing is generated
        return text.append(f"{served}{good}\ndrew {result.watts:,.0f} W\n")
    text.append(f"{served}, {result.output_tokens_per_second:,.0f} tokens/s")
    text.append(f"{good}, {result.goodput_tokens_per_second:,.0f} tokens/s\n" if good else "\n")
    if result.joules_per_token is not None:
        text.append(f"drew {result.watts:,.0f} W: {result.joules_per_token:.3g} J per output token")
        text.append(f", {result.tokens_per_joule:.3g} tokens per joule\n")
    return text


def latency_table(result: Result) -> Table:
    """Percentiles against their limits."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    table.add_column("")
    for name in ("mean", "P50", "P90", "P95", "P99"):
        table.add_column(name, justify="right")
    table.add_column("limits", justify="left")
    checks = {} if _by_class(result) else result.slo or {}
    for metric, figures in (result.latency or {}).items():
        if metric != "e2e" and not result.pools:
            continue  # there are no tokens
        table.add_row(metric.upper(), *_figures(figures), _limits(metric, checks))
    return table


def _by_class(result: Result) -> bool:
    """Whether some limits hold for one class only, so that none holds for everybody."""
    return any(name.startswith("classes.") for name in result.slo or {})


def class_table(result: Result) -> Table:
    """Every request class against the limits it is held to; those of no class are told of all who share them."""
    table = Table(box=None, pad_edge=False, header_style=DIM)
    columns = ("class", "requests", "within SLO", "goodput", "TTFT P50", "P99", "TPOT P50", "P99", "limits")
    for name in columns:
        table.add_column(name, justify="left" if name in ("class", "limits") else "right")
    for name, got in (result.classes or {}).items():
        tails = [seconds(value) for m in ("ttft", "tpot") for value in (got.latency[m].p50, got.latency[m].p99)]
        share, tokens = f"{got.attainment:.2%}", f"{got.goodput_tokens_per_second:,.0f} tok/s"
        limits = _class_limits(name, result.slo or {}) if _by_class(result) else Text("as above", DIM)
        table.add_row(name, f"{got.requests.arrived:,}", share, tokens, *tails, limits)
    return table


def _class_limits(name: str, checks: Mapping[str, Check]) -> Text:
    prefix = f"classes.{name}."
    own = {limit.removeprefix(prefix): check for limit, check in checks.items() if limit.startswith(prefix)}
    text = Text()
    for metric in ("ttft", "tpot", "e2e"):
        limits = _limits(metric, own or checks)
        if limits:
            text.append(f"{metric.upper()} ").append(limits)
    return text


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
        if not result.pools:
            worth = f"{result.requests_per_dollar:,.0f} requests per dollar"
            per_dollar = worth if result.dollars_per_hour else "free"
        price = f" at ${result.dollars_per_hour:.2f}/h"
        if result.stages is not None and result.pools:  # queries take different work
            each = 1000 * result.dollars_per_query
            price += f", ${each:,.2f} per 1,000 queries" if each >= 1 else f", ${each:.3g} per 1,000 queries"
        held = ("SLO held: ", GOOD) if result.slo else ("no limits in slo: ", DIM)
        return Text.assemble(held, (per_dollar, "bold"), price)
    name = {"slo_missed": "SLO missed: ", "unstable": "unstable, not scored: "}[result.verdict]
    return Text.assemble((name, f"bold {BAD}"), result.reason)

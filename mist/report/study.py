"""A study on the terminal: live progress, then the ranked answer."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

ROWS = 10  # of the ranked table
_LINES = 20  # progress lines where there is no terminal


@dataclass(frozen=True)
class Progress:
    """How far a study is; ``at_start`` of ``done`` were there when this driver began."""

    phase: str
    done: int
    total: int
    at_start: int
    feasible: int
    infeasible: int
    failed: int
    repeats: int
    flying: int
    elapsed_s: float
    best_value: float | None
    best_design: Mapping[str, object]

    @property
    def left_s(self) -> float | None:
        """Seconds to go, at the pace so far."""
        here = self.done - self.at_start
        return self.elapsed_s / here * (self.total - self.done) if here > 0 else None


class Row(Protocol):
    """One ranked design (``mist.sweep.ranking.Ranked``)."""

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


class Watch:
    """Shows a study while it runs: a live panel on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, question: str, run: Path, console: Console | None = None) -> None:
        self.name, self.question, self.run = name, question, run
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 140)
        self.began = time.monotonic()
        self._live: Live | None = None
        self._shown_at = 0.0
        self._told: tuple[str, int] = ("", -1)

    def start(self, hands: str, address: str | None) -> None:
        where = "in this process" if hands == "serial" else f"on Ray at {address}" if address else "on a private Ray"
        self.console.print(Text.assemble((self.name, "bold"), f"  {self.question}"))
        self.console.print(Text(f"{where}, into {self.run}", style="dim"))

    def show(self, progress: Callable[[], Progress], *, last: bool = False) -> None:
        """Called as often as one likes; looks at the progress a few times a second, and when a phase ends."""
        now = time.monotonic()
        if now - self._shown_at < 0.2 and not last:
            return
        self._shown_at = now
        if not self.console.is_terminal:
            self._tell(progress())
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(panel(progress()), refresh=True)

    def _tell(self, progress: Progress) -> None:
        part = progress.done * _LINES // max(1, progress.total)
        if (progress.phase, part) != self._told and progress.done > progress.at_start:
            self._told = progress.phase, part
            self.console.print(" | ".join(text.plain for text in sentences(progress)), soft_wrap=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def interrupted(self, judged: int, budget: int, command: str) -> None:
        self.stop()
        self.console.print(f"Stopped; {judged} of {budget} designs are judged and kept. Go on with:")
        self.console.print(Text(f"  {command}", style="bold"), soft_wrap=True)


def panel(progress: Progress) -> Group:
    """The live display."""
    bar = Table.grid(padding=(0, 1))
    style = "green" if progress.phase == "confirming" else "cyan"
    head, *rest = sentences(progress)
    bar.add_row(
        ProgressBar(progress.total, progress.done, width=24, complete_style=style), head, Text("  ").join(rest[:-1])
    )
    return Group(bar, rest[-1])


def sentences(progress: Progress) -> list[Text]:
    """What is done, how it goes, how long it takes, what is best."""
    what = "designs" if progress.phase == "judging" else "confirmations of the leaders"
    judged = progress.feasible + progress.infeasible + progress.failed
    share = f"feasible {100 * progress.feasible / judged:.0f} %" if judged else "feasible -"
    left = progress.left_s
    texts = [Text(f"{progress.done}/{progress.total} {what}", style="bold"), Text(share)]
    texts.append(Text(f"failed {progress.failed}", style="red" if progress.failed else ""))
    if progress.repeats:
        texts.append(Text(f"repeats {progress.repeats}"))
    texts.append(Text(f"{clock(progress.elapsed_s)} gone, {'-:--' if left is None else clock(left)} left", style="dim"))
    best = Text("best so far: none feasible yet", style="dim")
    if progress.best_value is not None:
        best = Text.assemble("best so far: ", (f"{amount(progress.best_value)} tokens/$", "bold green"))
        best.append(f"  {in_short(progress.best_design)}")
    return [*texts, best]


def print_answer(
    watch: Watch,
    rows: Sequence[Row],
    limits: Mapping[str, float],
    lines: Sequence[Mapping[str, Any]],
    commands: Mapping[str, str],
) -> None:
    """The ranked table, what it rests on, and how to replay the best; or why there is none."""
    watch.stop()
    console = watch.console
    console.print()
    if rows:
        console.print(ranked_table(rows, limits, console))
        for note in notes(rows):
            console.print(Text(note, style="dim"))
    else:
        console.print(Text("No design is feasible.", style="bold red"))
        reasons = Counter(line["record"]["reason"] for line in lines if line["state"] == "infeasible")
        for reason, count in reasons.most_common(5):
            console.print(f"  {count} x {reason}", soft_wrap=True)
    for line in _distinct([line for line in lines if line["state"] == "failed"])[:3]:
        told = (
            f"{line['error']['type']}: {line['error']['message'].splitlines()[0] if line['error']['message'] else ''}"
        )
        console.print(Text(f"failed  {told}", style="red"), soft_wrap=True)
        console.print(Text(f"        mist capacity {shlex.join(line['overrides'])}", style="dim"), soft_wrap=True)
    console.print()
    counts = Counter(line["state"] for line in lines)
    judged = counts["ok"] + counts["infeasible"] + counts["failed"]
    console.print(
        f"{judged} designs judged: {counts['ok']} feasible, {counts['infeasible']} infeasible, "
        f"{counts['failed']} failed; "
        f"{counts['repeat']} repeats answered from memory; {clock(time.monotonic() - watch.began)} of wall time"
    )
    for name, command in commands.items():
        label = {"capacity": "judge the best again", "simulate": "simulate it at capacity"}.get(name, name)
        console.print(Text.assemble((f"{label}:", "dim"), f"\n  {command}"), soft_wrap=True)
    console.print(Text.assemble(("results: ", "dim"), str(watch.run)), soft_wrap=True)


def ranked_table(rows: Sequence[Row], limits: Mapping[str, float], console: Console) -> Table:
    """Rank, the keys in which designs differ, and what they achieve; as roomy as the console allows."""
    forms = [(("p50", "p99"), 2), (("p50", "p99"), 1), (("p99",), 1), ((), 1)]
    tables = [_table(rows, limits, percentiles, gap) for percentiles, gap in forms]
    unbound = console.options.update(max_width=1000)
    widths = [console.measure(table, options=unbound).maximum for table in tables]
    return next((table for table, width in zip(tables, widths, strict=True) if width <= console.width), tables[-1])


def _table(rows: Sequence[Row], limits: Mapping[str, float], percentiles: tuple[str, ...], gap: int) -> Table:
    shown = rows[:ROWS]
    keys = list(dict.fromkeys(key for row in shown for key in row.design))
    keys = [key for key in keys if len({row.design.get(key) for row in shown}) > 1] or keys
    factor, prefix = _scale(rows[0].value)
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    _columns(table, keys, shown)
    for header in (f"{prefix} tokens\nper $".strip(), "capacity\nreq/s"):
        table.add_column(header, justify="right", no_wrap=True, vertical="bottom")
    units = {metric: _unit([row.metrics.get(f"{metric}_p99", 0.0) for row in shown]) for metric in ("ttft", "tpot")}
    for metric, (per_unit, unit) in units.items() if percentiles else ():
        bounds = [limits.get(f"{metric}_{percentile}") for percentile in percentiles]
        allowed = " / ".join("-" if bound is None else f"{bound * per_unit:.4g}" for bound in bounds)
        names = " / ".join(percentiles).upper()
        limit = f"≤ {allowed}" if any(bounds) else "no limit"
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
        once = row.value_error is None and rows[0].value_error is not None
        table.add_row(*cells, style="bold" if i == 0 else "dim" if once else "")
    return table


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
    return "=1" if rows[i].tied or (i == 0 and any(row.tied for row in rows)) else str(i + 1)


def notes(rows: Sequence[Row]) -> list[str]:
    """What the numbers in the table are."""
    confirmed = [row for row in rows if row.value_error is not None]
    told = []
    if confirmed:
        seeds = max(len(row.seeds) for row in confirmed)
        told.append(f"± is a 95 % confidence interval over {seeds} fresh seeds; rows without it were judged once.")
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


def _distinct(failures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    first = {(line["error"]["type"], line["error"]["message"]): line for line in reversed(failures)}
    return list(reversed(first.values()))


def _cell(value: object) -> str:
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000 else str(value)
    )


def in_short(design: Mapping[str, object]) -> str:
    """``h100 tp=2 token_budget=1024``: names alone, numbers with the last word of their key."""
    words = []
    for key, value in design.items():
        words.append(str(value) if isinstance(value, str) else f"{key.rpartition('.')[2]}={value}")
    return " ".join(words)


def _scale(value: float) -> tuple[float, str]:
    return next(((f, s) for f, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= 0.9995 * f), (1.0, ""))


def amount(value: float) -> str:
    """``4.81 M``: three digits that one can compare at a glance."""
    factor, prefix = _scale(value)
    return f"{value / factor:.{max(0, 3 - len(str(int(abs(value / factor)))))}f} {prefix}".strip()


def clock(seconds: float) -> str:
    """``1:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

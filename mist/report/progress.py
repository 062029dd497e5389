"""A study on the terminal while it runs."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
    best_rung: str
    ruled_out: int = 0  # by their bounds
    unit: str = "tokens"

    @property
    def left_s(self) -> float | None:
        """Seconds to go, at the pace so far."""
        here = self.done - self.at_start
        return self.elapsed_s / here * (self.total - self.done) if here > 0 else None


class Watch:
    """Shows a study while it runs: a live panel on a terminal, a line now and then elsewhere."""

    def __init__(self, name: str, question: str, run: Path, console: Console | None = None) -> None:
        self.name, self.question, self.run = name, question, run
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 140)
        self.began = time.monotonic()
        self._live: Live | None = None
        self._shown_at = 0.0
        self._told: tuple[str, int] = ("", -1)

    def start(self, hands: str, address: str | None, screen: Mapping[str, object]) -> None:
        where = "in this process" if hands == "serial" else f"on Ray at {address}" if address else "on a private Ray"
        self.console.print(Text.assemble((self.name, "bold"), f"  {self.question}"))
        self.console.print(Text(f"{where}, into {self.run}", style="dim"))
        if screen:
            self.console.print(Text(f"searching with {settings(screen)}; the leaders again without", style="dim"))

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
    what = {"judging": "designs", "bounding": "bounds"}.get(progress.phase, "confirmations of the leaders")
    judged = progress.feasible + progress.infeasible + progress.failed
    share = f"feasible {100 * progress.feasible / judged:.0f} %" if judged else "feasible -"
    left = progress.left_s
    texts = [Text(f"{progress.done}/{progress.total} {what}", style="bold"), Text(share)]
    texts.append(Text(f"failed {progress.failed}", style="red" if progress.failed else ""))
    if progress.ruled_out:
        texts.append(Text(f"ruled out {progress.ruled_out}"))
    if progress.repeats:
        texts.append(Text(f"repeats {progress.repeats}"))
    texts.append(Text(f"{clock(progress.elapsed_s)} gone, {'-:--' if left is None else clock(left)} left", style="dim"))
    best = Text("best so far: none feasible yet", style="dim")
    if progress.best_value is not None:
        best = Text.assemble("best so far: ", (f"{amount(progress.best_value)} {progress.unit}/$", "bold green"))
        best.append(f"  {in_short(progress.best_design)}")
        best.append(" (screened)" if progress.best_rung == "screen" else "", style="dim")
    return [*texts, best]


def in_short(design: Mapping[str, object]) -> str:
    """``h100 tp=2 token_budget=1024``: names alone, numbers with the last word of their key."""
    words = []
    for key, value in design.items():
        words.append(str(value) if isinstance(value, str) else f"{key.rpartition('.')[2]}={value}")
    return " ".join(words)


def scale(value: float) -> tuple[float, str]:
    """The factor and the prefix in which ``value`` is short to write."""
    return next(((f, s) for f, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if abs(value) >= 0.9995 * f), (1.0, ""))


def amount(value: float) -> str:
    """``4.81 M``: three digits that one can compare at a glance."""
    factor, prefix = scale(value)
    return f"{value / factor:.{max(0, 3 - len(str(int(abs(value / factor)))))}f} {prefix}".strip()


def clock(seconds: float) -> str:
    """``1:05`` or ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def settings(overrides: Mapping[str, object]) -> str:
    """``workload.requests=2000 perf=roofline``."""
    return " ".join(f"{key}={value}" for key, value in overrides.items())

"""The answer of a study on the terminal: ranked designs, or why there is none."""

import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mist.report.progress import clock, settings
from mist.report.ranked import ROWS, Row, notes, ranked_table, varied
from mist.report.standing import Decided, cautions, said

_OBSERVED = re.compile(
    r"\d[\d.e+-]* s(?= > )|(?<=takes )\d[\d.e+-]* s"
)  # what one design did, in a reason that many share


@dataclass(frozen=True)
class Answer:
    """What a run has found out, ``lines`` being those of its ``trials.jsonl``.

    ``limits`` are seconds by name (``ttft_p99``), ``commands`` replay the best, ``screen`` holds while searching only.
    ``wall_s``: of the driver that has just finished; ``unfinished``: the command that goes on, if the run is not done.
    """

    run: Path
    rows: Sequence[Row]
    lines: Sequence[Mapping[str, Any]]
    limits: Mapping[str, float]
    commands: Mapping[str, str]
    screen: Mapping[str, Any]
    objective: str = "tokens_per_dollar"
    decided: Decided | None = None
    wall_s: float | None = None
    unfinished: str | None = None


def console() -> Console:
    """Where answers are printed: as wide as the terminal, or roomy where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def print_answer(answer: Answer, to: Console) -> None:
    """The ranked table, what it rests on, and how to replay the best; or why there is none."""
    to.print()
    if answer.rows:
        to.print(ranked_table(answer.rows, answer.limits, to, answer.objective))
        same = {key: value for key, value in answer.rows[0].design.items() if key not in varied(answer.rows[:ROWS])}
        if same:
            to.print(Text(f"All of these: {settings(same)}."), soft_wrap=True)
        for note in notes(answer.rows, answer.screen):
            to.print(Text(note, style="dim"), soft_wrap=True)
        for note in cautions(answer.rows[:ROWS]):
            to.print(Text(note, style="yellow"), soft_wrap=True)
    elif not answer.unfinished:
        to.print(Text("No design is feasible.", style="bold red"))
    refuted = [line for line in answer.lines if line["rung"] == "confirm" and line["state"] == "infeasible"]
    for text in reasons(refuted):
        to.print(Text(f"  at full fidelity {text}", style="red"), soft_wrap=True)
    if not answer.rows:
        searched = [line for line in answer.lines if line["rung"] != "confirm" and line["state"] == "infeasible"]
        for text in reasons(searched):
            to.print(Text(f"  {text}"), soft_wrap=True)
    _print_failures(answer.lines, to)
    to.print()
    to.print(_counted(answer), soft_wrap=True)
    if answer.decided is not None and answer.rows:
        to.print(said(answer.decided), soft_wrap=True)
    for name, command in answer.commands.items():
        label = {"capacity": "judge the best again", "simulate": "simulate it at capacity"}.get(name, name)
        to.print(Text.assemble((f"{label}:", "dim"), f"\n  {command}"), soft_wrap=True)
    to.print(Text.assemble(("results: ", "dim"), str(answer.run)), soft_wrap=True)
    if answer.unfinished:
        to.print(Text.assemble(("not finished; go on with: ", "yellow"), answer.unfinished), soft_wrap=True)


def reasons(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why designs are infeasible, ``41 x even when idle, ttft_p99 0.5 to 1.2 s > 0.45 s``, the most frequent first.

    Reasons that differ only in what was observed are one.
    """
    told: dict[str, list[list[str]]] = defaultdict(list)
    for line in lines:
        reason = line["record"]["reason"]
        told[_OBSERVED.sub("{}", reason)].append(_OBSERVED.findall(reason))
    for form, observed in sorted(told.items(), key=lambda item: -len(item[1])):
        spans = [sorted(column, key=_seconds) for column in zip(*observed, strict=True)]
        words = [span[0] if span[0] == span[-1] else f"{span[0][:-2]} to {span[-1]}" for span in spans]
        parts = form.split("{}")
        yield f"{len(observed)} x " + "".join(a + b for a, b in zip(parts, [*words, ""], strict=True))


def _seconds(text: str) -> float:
    return float(text.removesuffix(" s"))


def _print_failures(lines: Sequence[Mapping[str, Any]], to: Console) -> None:
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    count: Counter[tuple[str, str]] = Counter()
    for line in lines:
        if line["state"] == "failed":
            kind = line["error"]["type"], (line["error"]["message"].splitlines() or [""])[0]
            first.setdefault(kind, line)
            count[kind] += 1
    for kind, times in count.most_common(3):
        to.print(Text(f"failed  {times} x {kind[0]}: {kind[1]}", style="red"), soft_wrap=True)
        to.print(Text(f"        mist capacity {shlex.join(first[kind]['overrides'])}", style="dim"), soft_wrap=True)


def _counted(answer: Answer) -> str:
    lines = answer.lines
    states = Counter(line["state"] for line in lines if line["rung"] != "confirm")
    again = [line for line in lines if line["rung"] == "confirm"]
    judged = states["ok"] + states["infeasible"] + states["failed"]
    text = f"{judged} designs judged: {states['ok']} feasible, {states['infeasible']} infeasible, "
    text += f"{states['failed']} failed; {len(again)} trials of confirmation; "
    text += f"{states['repeat']} repeats answered from memory"
    return text if answer.wall_s is None else f"{text}; {clock(answer.wall_s)} of wall time"

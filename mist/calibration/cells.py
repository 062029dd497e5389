"""Measured cells to calibrate on: what was measured, and how to replay it with other scalars."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from yaml import safe_load

from mist.calibration.load import deployment, facts, harness, told
from mist.calibration.readers import Run, read
from mist.calibration.run import METRICS
from mist.catalog import choice_file
from mist.errors import InputError
from mist.validation.harness import Facts, Overrides
from mist.validation.measured import MeasuredSet, Metric, measured_sets, recognised, table_of
from mist.validation.replay import Job

NEEDED = {"model": "llama-3.1-8b", "hardware": "h100", "tp": "2", "engine": "vllm"}  # to be said, with an example
FITTED = ("mean", "p90")  # statistics to fit; others only where a metric has neither


@dataclass(frozen=True, eq=False)
class Measured:
    """One load on one deployment: figures as the harness calls them (``ttft_mean``), in SI units.

    ``overrides`` are the deployment as the file tells it and ``replay`` predicts with others on top; ``problem`` is why
    it cannot be replayed.
    """

    name: str  # of the set, or the tool that measured it
    file: str
    facts: Facts
    figures: Mapping[str, float]
    overrides: Overrides
    replay: Callable[[Overrides], Mapping[str, float]]
    noise: Mapping[str, float | None] = field(default_factory=dict)
    problem: str = ""
    said: Mapping[str, str] = field(default_factory=dict)  # of model and engine, in the file's own words

    @property
    def fitted(self) -> list[str]:
        """The figures to fit: nothing is counted twice.

        ITL is left to TPOT, and E2E to TTFT and TPOT, whose sum it is, where those are there.
        """
        by_metric: dict[str, list[str]] = {}
        for figure in self.figures:
            by_metric.setdefault(figure.split("_")[0] if figure.startswith(METRICS) else figure, []).append(figure)
        if "tpot" in by_metric:
            by_metric.pop("itl", None)
        if {"ttft"} & by_metric.keys() and {"tpot", "itl"} & by_metric.keys():
            by_metric.pop("e2e", None)
        return [figure for found in by_metric.values() for figure in _statistics(found)]


def _statistics(found: Sequence[str]) -> Sequence[str]:
    chosen = [figure for figure in found if figure.rpartition("_")[2] in FITTED]
    return chosen or found[:1]


def cells(files: Sequence[str], own: Overrides) -> list[Measured]:
    """The cells of all files, deployed as ``own`` and the files say.

    Raises InputError where something is said by neither, naming all of it at once.
    """
    sets = measured_sets()
    found = [cell for file in files for cell in _of_file(file, sets, own)]
    _refuse_unsaid(found, own)
    return [cell if cell.problem else _with_perf(cell, own) for cell in found]


def _of_file(file: str, sets: Mapping[str, MeasuredSet], own: Overrides) -> list[Measured]:
    path = Path(file)
    name = recognised(path, sets) if path.suffix == ".csv" and path.is_file() else None
    if name is None:
        return [_of_run(run, path.name, own) for run in read(file)]
    table, kind = table_of(path), sets[name]
    if not kind.deployed:
        raise InputError("", file, f"is of {name}: no serving engine was measured, so there is no profile to fit")
    return [_of_set(Job(name, kind, path, cell, "")) for cell in kind.cells(table, path.stem)]


def _of_set(job: Job) -> Measured:
    cell, kind = job.cell, job.kind
    once: dict[tuple[str, str], tuple[str, Metric]] = {}  # a column read in two ways is fitted as the first says
    for metric, how in kind.metrics.items():
        once.setdefault((how.column, how.statistic), (metric, how))
    columns = {} if kind.grouped else {str(name): value for name, value in cell.rows.iloc[0].items()}
    return Measured(
        job.name,
        job.file.name,
        {**columns, **cell.facts},
        {how.of: cell.measured[metric] for metric, how in once.values() if cell.measured[metric] > 0},
        {} if cell.problem else job.overrides(),
        lambda overrides: kind.harness.replay(cell.facts, cell.rows, overrides),
        {how.of: how.noise for _, how in once.values()},
        cell.problem,
    )


def _of_run(run: Run, file: str, own: Overrides) -> Measured:
    figures = {name: value for name, value in run.latency.items() if value > 0 and not name.endswith("_p95")}
    run = told(run, own)
    try:
        how, problem = harness(run, own), ""
    except InputError as error:
        how, problem = None, _placed(run, file, error)
    rows = pd.DataFrame() if run.requests is None else run.requests

    def replay(overrides: Overrides) -> Mapping[str, float]:
        assert how is not None
        return how.replay(facts(run, own), rows, overrides)

    said = {"model": run.model, "engine": run.engine}
    return Measured(run.tool, file, facts(run, own), figures, deployment(run, own), replay, problem=problem, said=said)


def _placed(run: Run, file: str, error: InputError) -> str:
    """Why a run cannot be replayed, and which of its file's it is."""
    place = run.source.rpartition(file)[2].strip(": ")
    return f"{'line ' if place.isdigit() else ''}{place}: {error.why}" if place else error.why


def _refuse_unsaid(found: Sequence[Measured], own: Overrides) -> None:
    said = {address.rpartition(".")[2] for address in own}
    for cell in found:
        unsaid = [name for name in NEEDED if name not in said and name not in cell.overrides]
        if unsaid and not cell.problem:
            example = " ".join(f"{name}={NEEDED[name]}" for name in unsaid)
            unknown = [f"{name} {word!r}" for name in unsaid if (word := cell.said.get(name))]
            why = f"does not say {', '.join(unsaid)}"
            if unknown:
                why += f" in words that conf/ and conf/names.yaml know ({', '.join(unknown)})"
            raise InputError("", cell.file, f"{why}: add it, for example {example}")


def _with_perf(cell: Measured, own: Overrides) -> Measured:
    """With operator tables where its device has them, unless something else was asked for."""
    asked = {**cell.overrides, **own}
    if any(address.rpartition(".")[2] == "perf" for address in asked):
        return cell
    devices = {value for address, value in asked.items() if address.rpartition(".")[2] == "hardware"}
    perf = "measured" if all(_has_tables(device) for device in devices) else "roofline"
    return Measured(**{**vars(cell), "overrides": {**cell.overrides, "perf": perf}})


def _has_tables(hardware: str) -> bool:
    sheet: dict[str, Any] = safe_load(choice_file("hardware", hardware).read_text(encoding="utf-8"))
    return bool(sheet.get("tables"))

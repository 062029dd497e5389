"""Replay measured cells and keep what was measured beside what was predicted."""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from yaml import safe_load

from mist.catalog import choice_file
from mist.errors import InputError, MistError
from mist.validation.facts import devices
from mist.validation.harness import Facts, Overrides, Unanswered
from mist.validation.layout import DEGREES, placed
from mist.validation.measured import Cell, MeasuredSet, measured_sets, recognised, table_of


@dataclass(frozen=True)
class Comparison:
    """One metric of one cell: measured and predicted in SI units, or why there is no prediction."""

    name: str  # of the set
    file: str
    variant: str  # the overrides it was predicted with, "" for the set's own
    metric: str
    measured: float
    predicted: float | None
    problem: str = ""
    fitted: bool = False  # the engine's scalars were set on this cell
    noise: float | None = None
    facts: Facts = field(default_factory=dict)

    @property
    def error(self) -> float | None:
        """Relative, signed: predicted over measured, less one."""
        return None if self.predicted is None else self.predicted / self.measured - 1


@dataclass(frozen=True)
class Job:
    """A cell to replay with one choice of overrides."""

    name: str
    kind: MeasuredSet
    file: Path
    cell: Cell
    variant: str

    def compare(self) -> Iterator[Comparison]:
        """One line per metric that was measured."""
        predicted, problem = self._replayed()
        for metric, how in self.kind.metrics.items():
            measured, found = self.cell.measured[metric], predicted.get(how.of)
            if measured > 0:  # NaN where the file has none
                answered = found is not None and isfinite(found) and found > 0
                why = problem or ("" if answered else f"no {how.of} comes of it, as of answers of one token")
                yield Comparison(
                    self.name, self.file.name, self.variant, metric, measured, found if answered else None, why,
                    self.kind.fitted_on(self.cell.facts) and not self.cell.note, how.noise, self.cell.facts,
                )  # fmt: skip

    def _replayed(self) -> tuple[Mapping[str, float], str]:
        """What the cell comes to, or why it does not; a defect loses its own cell, and no other."""
        if self.cell.problem or self.unsaid:
            return {}, self.cell.problem or f"neither the row nor the file's name says {' or '.join(self.unsaid)}"
        try:
            return self.kind.harness.replay(self.cell.facts, self.cell.rows, self.overrides()), ""
        except (Unanswered, MistError) as error:
            return {}, str(error)
        except Exception as error:  # told with its place, and counted as not predicted
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {}, f"{DEFECT}: {type(error).__name__} {error} ({Path(where.filename).name}:{where.lineno})"

    @property
    def unsaid(self) -> list[str]:
        """Which of model and device nobody says."""
        if not (self.kind.deployed and self.kind.computed):
            return []
        typed = {address.rpartition(".")[2] for address in as_overrides(self.variant)}
        return [role for role in ("model", "hardware") if role not in self.cell.facts and role not in typed]

    def overrides(self) -> Overrides:
        """The deployment: of the set, its engine, the cell and the variant; the later outranks the former."""
        facts, kind, typed = self.cell.facts, self.kind, as_overrides(self.variant)
        said = {str(role): str(facts[role]) for role in ("model", "hardware", "engine") if role in facts}
        of_engine = kind.engines.get({**said, **typed}.get("engine", "").partition("_")[0], {})
        if facts.get("hardware") in kind.node:
            said["node"] = kind.node[facts["hardware"]]
        model, hardware = ({**said, **typed}.get(role) for role in ("model", "hardware"))
        cut = {**{name: devices(facts, name) for name in DEGREES if name in facts}, **_degrees(typed)}
        laid = placed(model, hardware, cut) if model and hardware and cut else {}
        formats = _formats(model, facts["precision"], kind.kv_dtype) if model and "precision" in facts else {}
        limits = _limits({**kind.overrides, **of_engine}, int(laid.get("dp", "1")))
        return {**limits, **laid, **said, **formats, **typed}


DEFECT = "a defect of MIST, which should be reported"


def _limits(overrides: Overrides, copies: int) -> Overrides:
    """A set's overrides; the limits of a step are each copy's of attention, and together a replica's here (vLLM
    documentation, "Data Parallel Deployment")."""
    several = {"scheduler.token_budget", "scheduler.max_running"} if copies > 1 else set()
    return {name: str(copies * int(value)) if name in several else value for name, value in overrides.items()}


def _degrees(typed: Overrides) -> dict[str, int]:
    return {name: int(typed[name]) for name in DEGREES if typed.get(name, "").isdigit()}


def as_overrides(variant: str) -> Overrides:
    """``perf=roofline engine=vllm`` by address; InputError where a word is none."""
    pairs = {}
    for word in variant.split():
        address, equals, value = word.partition("=")
        if not equals:
            raise InputError("", word, "not an override: address=value is needed")
        pairs[address] = value
    return pairs


def _formats(model: str, precision: str, kv_dtype: Mapping[str, str]) -> Overrides:
    """Number formats of weights and cache; a model published in this precision keeps its own mixture."""
    sheet: dict[str, Any] = safe_load(choice_file("model", model).read_text(encoding="utf-8"))
    cache = {"model.kv_dtype": kv_dtype[precision]} if precision in kv_dtype else {}
    if precision in (sheet.get("weight_dtype", "bf16"), sheet.get("expert_dtype")):
        return cache
    experts = {"model.expert_dtype": precision} if sheet.get("expert_dtype") else {}
    return {"model.weight_dtype": precision, **experts, **cache}


def files(path: Path) -> list[Path]:
    """The CSV files at ``path``, below it (or its folder ``measured``) where it is a directory; InputError where
    there are none."""
    path = path / "measured" if (path / "measured").is_dir() else path
    found = sorted(path.rglob("*.csv")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise InputError("", path, "no file of measurements (.csv) is there")
    return found


@dataclass(frozen=True)
class Source:
    """A file that a set describes: how many ``rows`` it has, and how many of them are no cells, by reason."""

    name: str  # of the set
    file: Path
    rows: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Answered:
    """A job and its comparisons; none where its cell has no figure."""

    job: Job
    lines: Sequence[Comparison]


def jobs(path: Path, variants: Sequence[str]) -> tuple[list[Job], list[Source], list[Path]]:
    """What there is to replay at ``path``, the files it is in, and those that no set describes."""
    sets, found, sources, foreign = measured_sets(), list[Job](), list[Source](), list[Path]()
    for file in files(path):
        name = recognised(file, sets)
        if name is None:
            foreign.append(file)
            continue
        table = table_of(file)
        left_out = Counter(str(reason) for reason in sets[name].left_out(table) if reason)
        sources.append(Source(name, file, len(table), dict(left_out)))
        cells = list(sets[name].cells(table, file.stem))
        found.extend(Job(name, sets[name], file, cell, variant) for variant in variants for cell in cells)
    return found, sources, foreign


def replayed(work: Sequence[Job], each: Callable[[Job], None] = lambda _job: None) -> list[Answered]:
    """All comparisons by job; ``each`` is called before every cell."""
    answered: list[Answered] = []
    for job in work:
        each(job)
        answered.append(Answered(job, list(job.compare())))
    return answered

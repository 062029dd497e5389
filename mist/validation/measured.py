"""Measured sets: what a file of measurements says, and under which conditions it was measured."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from yaml import safe_load

from mist.build import build
from mist.catalog import groups, roots
from mist.errors import InputError, TraceError
from mist.units import TIME
from mist.validation.harness import Facts, Harness
from mist.validation.layout import layout
from mist.validation.names import GROUPS, engine_in, known, named_in, nearest_profile
from mist.validation.spelling import engine_words, stored_as

Statistic = Literal["value", "mean", "p50", "p90", "p99"]
AS_PUBLISHED = "auto"  # vLLM's word for the number format of the checkpoint


@dataclass(frozen=True)
class Metric:
    """A measured quantity: the ``column`` it is in, its ``unit`` there, and what the harness calls it (``of``).

    ``statistic`` is taken over the rows of a cell; *value* is the one row's. ``noise`` is the relative difference of
    two measurements of the same thing, where somebody has measured that.
    """

    column: str
    of: str
    unit: Literal["s", "ms", "us", "tokens/s", "req/s"] = "ms"
    statistic: Statistic = "value"
    noise: float | None = None

    def measured(self, rows: pd.DataFrame) -> float:
        """In SI units; NaN where the file has none."""
        if self.column not in rows:
            return float("nan")
        column = pd.to_numeric(rows[self.column], errors="coerce").to_numpy(dtype=float)
        scale = TIME.parse(f"1 {self.unit}") if self.unit in ("s", "ms", "us") else 1.0
        if self.statistic in ("value", "mean"):
            known = column[~np.isnan(column)]
            return float(known.mean() * scale) if len(known) else float("nan")
        q = float(self.statistic[1:])
        column = column[~np.isnan(column)]
        if not len(column):
            return float("nan")
        return float(np.percentile(column, q, method="inverted_cdf") * scale)


class Derived(Protocol):
    """Columns that are worked out of a file's own."""

    @property
    def needs(self) -> Collection[str]:
        """Columns of the file that it looks at and no fact is in."""

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with its columns beside the file's."""


@dataclass(frozen=True)
class MeasuredSet:
    """How to read files of one kind, and how to replay them.

    A file belongs to the set if it has the set's columns and at least one of its metrics; of several such sets the one
    whose ``prefix`` begins the file's name, else the one that knows most of its columns. ``columns`` are the harness's
    facts by the column they are in, or several that it may be in with | between, ``optional`` the same for
    columns that a file may lack (its name may say it, or ``given`` does). ``grouped`` takes rows with equal facts as
    one cell, else every row is one. Rows with ``drop`` (column -> value) are left out. ``calibration`` (fact ->
    values with | between) marks the cells the engine's scalars were set on; all others are held out. ``slices``
    are the facts to break errors down by. ``node`` is the server that a device stood in, where it mattered. ``derived``
    columns are optional ones. ``limits`` say what the cells can judge and what not. ``engines`` are overrides by the
    name of an engine, over those of the set, for cells of that engine. A set that is not ``deployed`` is
    of a stage without a serving engine: no override changes its replays. A set with ``computed`` off is of no model on
    a device; of all others model and device must be said, by row or by name of the file.
    """

    about: str
    prefix: str
    harness: Harness
    columns: Mapping[str, str]
    metrics: Mapping[str, Metric]
    optional: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)
    kv_dtype: Mapping[str, str] = field(default_factory=dict)  # by precision of the weights
    drop: Mapping[str, str] = field(default_factory=dict)
    node: Mapping[str, str] = field(default_factory=dict)  # by hardware
    calibration: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, str] = field(default_factory=dict)  # fact -> what to call it
    grouped: bool = False
    derived: Derived | None = None
    limits: str = ""
    engines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    deployed: bool = True
    computed: bool = True

    def fits(self, columns: Collection[str]) -> bool:
        """Whether a file with these columns is of this kind."""
        looked_at = {*(self.derived.needs if self.derived else ()), *getattr(self.harness, "reads", ())}
        there = all(_column(names, columns) for names in self.columns.values())
        return there and looked_at <= {*columns} and any(how.column in columns for how in self.metrics.values())

    def knows(self, columns: Collection[str]) -> int:
        """How many of a file's columns it has a use for."""
        named = [_column(names, columns) for names in (*self.columns.values(), *self.optional.values())]
        return len({*filter(None, named), *({how.column for how in self.metrics.values()} & {*columns})})

    def left_out(self, table: pd.DataFrame) -> "pd.Series[Any]":
        """Why each row is no cell, empty where it is one."""
        reasons = pd.Series("", index=table.index)
        for column, value in self.drop.items():
            if column in table:
                reasons[table[column].astype(str).str.removesuffix(".0") == value] = f"{column} = {value}"
        return reasons

    def cells(self, table: pd.DataFrame, stem: str) -> Iterator["Cell"]:
        """The measurements of a file."""
        table = table[self.left_out(table) == ""]
        table = self.derived.of(table) if self.derived else table
        named = {fact: _column(names, table.columns) for fact, names in {**self.columns, **self.optional}.items()}
        present = {fact: column for fact, column in named.items() if column is not None}
        if self.grouped and present:
            groups = table.groupby(list(dict.fromkeys(present.values())), sort=False, dropna=False)
            parts: list[pd.DataFrame] = [part for _, part in groups]
        else:
            parts = [table] if self.grouped else [table.iloc[[index]] for index in range(len(table))]
        for rows in parts:
            if len(rows):
                row = {fact: rows[column].iloc[0] for fact, column in present.items()}
                yield self._cell(rows, row, stem)

    def _cell(self, rows: pd.DataFrame, row: Mapping[str, Any], stem: str) -> "Cell":
        measured = {name: metric.measured(rows) for name, metric in self.metrics.items()}
        needed = row if self.derived else self.columns  # what was worked out, somebody wanted
        empty = [fact for fact in needed if pd.isna(row[fact])]
        row = {fact: value for fact, value in row.items() if not pd.isna(value)} | dict.fromkeys(empty)
        said = {**self.given, **row}
        if str(said.get("precision", "")).lower() == AS_PUBLISHED:
            del said["precision"]
        if empty:
            return Cell(said, rows, measured, f"the row has no {', '.join(empty)}")
        engine, facts = _engine(row, self.given, stem), Facts()
        try:
            for role in (*GROUPS, "precision"):
                spoken = engine if role == "engine" else _said(role, said, stem)
                if spoken is not None:
                    facts[role] = known(role, spoken)
            if self.deployed and self.computed:
                facts |= {"tp": 1, **layout(said, stem)}
        except InputError as error:
            return Cell({**said, **facts}, rows, measured, str(error))
        if "tp" in said:
            facts["tp"] = said["tp"]  # as the file labels it
        if engine is not None:
            facts["engine_version"] = engine_words(engine)[1]
        return Cell({**said, **facts}, rows, measured, note=nearest_profile(engine))

    def fitted_on(self, facts: Facts) -> bool:
        """Whether the engine's scalars were set on this cell."""
        return bool(self.calibration) and all(
            _plain(facts.get(fact)) in values.split("|") for fact, values in self.calibration.items()
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """One configuration that was measured: facts by name, rows of the file, measured values in SI, or why it cannot
    be replayed."""

    facts: Facts
    rows: pd.DataFrame
    measured: Mapping[str, float]
    problem: str = ""
    note: str = ""  # what stands for something that conf/ does not have

    @property
    def unmeasured(self) -> bool:
        """Whether its rows hold no figure to compare."""
        return not any(value > 0 for value in self.measured.values())


def _column(names: str, columns: Collection[str]) -> str | None:
    """The first of ``names`` (| between) that is a column."""
    return next((name for name in names.split("|") if name in columns), None)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _said(role: str, said: Mapping[str, Any], stem: str) -> str | None:
    """A role in the words of the row, or else of the file's name."""
    if role in said:
        return str(said[role])
    if role == "precision" and "model" in said and stored_as(str(said["model"])):
        return str(said["model"])
    return named_in(role, stem) if role in ("model", "hardware", "precision") else None


def _engine(row: Mapping[str, Any], given: Mapping[str, str], stem: str) -> str | None:
    """Engine and version in the words of the row, of the file's name where the row is silent, else of the set.

    A row that names the set's engine and no version means the set's.
    """
    name, version = row.get("engine"), row.get("engine_version")
    of_set = " ".join(given[fact] for fact in ("engine", "engine_version") if fact in given)
    if name is None and version is None:
        return engine_in(stem) or of_set or None
    if name is None:
        return f"{engine_words(engine_in(stem) or of_set)[0]} {version}"
    if version is None:
        return of_set if str(name).lower() == given.get("engine") else str(name)
    return f"{name} {version}"


def measured_sets() -> dict[str, MeasuredSet]:
    """Every set of conf/validation by name."""
    found = {}
    for name in groups().get("validation", ()):
        file = next(root / "validation" / f"{name}.yaml" for root in roots("conf") if (root / "validation").is_dir()
                    and (root / "validation" / f"{name}.yaml").is_file())  # fmt: skip
        found[name] = build(MeasuredSet, safe_load(file.read_text(encoding="utf-8")), f"validation.{name}")
    return found


def recognised(file: Path, sets: Mapping[str, MeasuredSet]) -> str | None:
    """The set a file belongs to; None where no set describes it."""
    columns = {*table_of(file, 0).columns}
    fitting = [name for name, kind in sets.items() if kind.fits(columns)]
    by_name = [name for name in fitting if file.name.startswith(sets[name].prefix)]
    return max(by_name or fitting, key=lambda name: sets[name].knows(columns), default=None)


def table_of(file: Path, most: int | None = None) -> pd.DataFrame:
    """The rows of a CSV file, ``most`` of them at most; TraceError where it is none."""
    versions = re.compile("version|release", re.IGNORECASE)  # 0.10 is no number
    try:
        names = [str(name) for name in pd.read_csv(file, nrows=0).columns]
        return pd.read_csv(file, nrows=most, dtype={name: str for name in names if versions.search(name)})
    except (OSError, ValueError) as error:  # of pandas: empty, ragged, not UTF-8
        raise TraceError(str(file), file.suffix, f"cannot be read as CSV: {str(error).splitlines()[0]}") from None

"""Measured sets: what a file of measurements says, and under which conditions it was measured."""

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
from mist.validation.names import GROUPS, known, named_in

Statistic = Literal["value", "mean", "p50", "p90", "p99"]


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
        column = pd.to_numeric(rows[self.column], errors="coerce").to_numpy(dtype=float)
        scale = TIME.parse(f"1 {self.unit}") if self.unit in ("s", "ms", "us") else 1.0
        if self.statistic in ("value", "mean"):
            return float(column.mean() * scale)
        q = float(self.statistic[1:])
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

    A file belongs to the set if it has the set's columns; of several such sets the one whose ``prefix`` begins the
    file's name. ``columns`` are the harness's facts by the column they are in, ``optional`` the same for
    columns that a file may lack (its name may say it, or ``given`` does). ``grouped`` takes rows with equal facts as
    one cell, else every row is one. Rows with ``drop`` (column -> value) are left out. ``calibration`` (fact ->
    values with | between) marks the cells the engine's scalars were set on; all others are held out. ``slices``
    are the facts to break errors down by. ``node`` is the server that a device stood in, where it mattered. ``derived``
    columns are optional ones. ``limits`` say what the cells can judge and what not. A set that is not ``deployed`` is
    of a stage without a serving engine: no override changes its replays.
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
    deployed: bool = True

    def fits(self, columns: set[str]) -> bool:
        """Whether a file with these columns is of this kind."""
        looked_at = self.derived.needs if self.derived else ()
        return {*self.columns.values(), *(metric.column for metric in self.metrics.values()), *looked_at} <= columns

    def cells(self, table: pd.DataFrame, stem: str) -> Iterator["Cell"]:
        """The measurements of a file."""
        for column, value in self.drop.items():
            if column in table:
                table = table[table[column].astype(str) != value]
        table = self.derived.of(table) if self.derived else table
        present = {**self.columns, **{fact: c for fact, c in self.optional.items() if c in table}}
        if self.grouped and present:
            parts: list[pd.DataFrame] = [part for _, part in table.groupby(list(present.values()), sort=False)]
        else:
            parts = [table] if self.grouped else [table.iloc[[index]] for index in range(len(table))]
        for rows in parts:
            said = {**self.given, **{fact: rows[column].iloc[0] for fact, column in present.items()}}
            yield self._cell(rows, said, stem)

    def _cell(self, rows: pd.DataFrame, said: dict[str, Any], stem: str) -> "Cell":
        measured = {name: metric.measured(rows) for name, metric in self.metrics.items()}
        facts: Facts = {}
        empty = [fact for fact, value in said.items() if pd.isna(value)]
        if empty:
            return Cell(said, rows, measured, f"the row has no {', '.join(empty)}")
        try:
            for role in (*GROUPS, "precision"):
                if (value := _said(role, said, stem)) is not None:
                    facts[role] = known(role, value)
        except InputError as error:
            return Cell({**said, **facts}, rows, measured, str(error))
        facts = {**said, **facts}
        return Cell(facts, rows, measured)

    def fitted_on(self, facts: Facts) -> bool:
        """Whether the engine's scalars were set on this cell."""
        return bool(self.calibration) and all(
            str(facts.get(fact)) in values.split("|") for fact, values in self.calibration.items()
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """One configuration that was measured: facts by name, rows of the file, measured values in SI, or why it cannot
    be replayed."""

    facts: Facts
    rows: pd.DataFrame
    measured: Mapping[str, float]
    problem: str = ""


def _said(role: str, said: Mapping[str, Any], stem: str) -> str | None:
    if role == "engine" and "engine" in said and "engine_version" in said:
        return f"{said['engine']} {said['engine_version']}"
    return str(said[role]) if role in said else named_in(role, stem) if role in ("model", "hardware") else None


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
    return next(iter(by_name or fitting), None)


def table_of(file: Path, most: int | None = None) -> pd.DataFrame:
    """The rows of a CSV file, ``most`` of them at most; TraceError where it is none."""
    try:
        return pd.read_csv(file, nrows=most)
    except (OSError, ValueError) as error:  # of pandas: empty, ragged, not UTF-8
        raise TraceError(str(file), file.suffix, f"cannot be read as CSV: {str(error).splitlines()[0]}") from None

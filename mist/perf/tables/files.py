"""The operator tables of aiconfigurator-core: where they lie, and columns of their rows.

``<root>/<system>/<family>/<kernels>/<version>/<file>.parquet``, one row per timed operator, latencies in
milliseconds (https://github.com/ai-dynamo/aiconfigurator, Apache-2.0).
"""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError

PACKAGE = "aiconfigurator-core"
MILLISECOND = 1e-3

Column = NDArray[Any]


class Rows(NamedTuple):
    """Columns of equal length, and the file they came from."""

    path: str
    columns: Mapping[str, Column]

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["latency"])

    def where(self, mask: Column) -> "Rows":
        return Rows(self.path, {name: column[mask] for name, column in self.columns.items()})


class System(NamedTuple):
    """The tables of one device for the kernels of one engine."""

    name: str  # folder
    kernels: str

    def newest(self, family: str, file: str, kernels: str = "") -> list[Path]:
        """Versions of a table, newest first; none where the device has no such table."""
        folder = root() / self.name / family / (kernels or self.kernels)
        return sorted(folder.glob(f"*/{file}.parquet"), key=lambda path: _release(path.parent.name), reverse=True)

    def refuse(self, what: str) -> InputError:
        """The error to raise where a table lacks what is asked."""
        why = f"{PACKAGE} {installed()} has no {what} for {self.kernels} kernels on {self.name}"
        return InputError("perf", "measured", why, ["roofline"])


def rows(path: Path, **wanted: object) -> Rows:
    """The rows of a table whose columns have the wanted values; a column that the table lacks matches anything."""
    table = _table(path)
    mask = np.ones(len(table["latency"]), dtype=bool)
    for name, value in wanted.items():
        if name in table:
            mask &= table[name] == value
    return Rows(str(path), {name: column[mask] for name, column in table.items()})


@lru_cache(8)
def _table(path: Path) -> Mapping[str, Column]:
    from pyarrow.parquet import read_table  # noqa: PLC0415  # only where a table is really read

    unused = {"framework", "version", "device", "op_name", "beam_width"} - ({"op_name"} if "nccl" in path.name else set())
    table = read_table(path)
    names = [name for name in table.column_names if name not in unused]
    columns: dict[str, Column] = {}
    for name in names:
        column = table.column(name).combine_chunks()
        if str(column.type) in {"string", "large_string"}:
            coded = column.dictionary_encode()
            words = np.array(coded.dictionary.to_pylist(), dtype=object)
            columns[name] = _Words(words, coded.indices.to_numpy(zero_copy_only=False))  # type: ignore[assignment]
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


class _Words:
    """A column of few distinct words, compared by their numbers."""

    def __init__(self, words: Column, codes: Column) -> None:
        self.words, self.codes = words, codes

    def __eq__(self, word: object) -> Column:  # type: ignore[override]
        found = np.flatnonzero(self.words == word)
        return self.codes == (found[0] if len(found) else -1)

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, mask: Column) -> "_Words":
        return _Words(self.words, self.codes[mask])

    def present(self) -> list[str]:
        return sorted(str(self.words[code]) for code in np.unique(self.codes))


@cache
def root() -> Path:
    """The folder of the tables; InputError where the package is not installed."""
    found = find_spec("aiconfigurator_core")  # located, not imported: only its data are used
    if found is None or found.origin is None:
        raise InputError("perf", "measured", f"{PACKAGE}, which holds the operator tables, is not installed", ["roofline"])
    return Path(found.origin).parent / "systems" / "data"


@cache
def installed() -> str:
    """The version of the tables."""
    return version(PACKAGE)


def _release(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]

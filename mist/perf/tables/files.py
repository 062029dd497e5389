"""The operator tables of aiconfigurator-core: where they lie, and columns of their rows.

``<root>/<system>/<family>/<kernels>/<version>/<file>.parquet``, one row per timed operator, latencies in
milliseconds (https://github.com/ai-dynamo/aiconfigurator, Apache-2.0).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError

PACKAGE = "aiconfigurator-core"
MILLISECOND = 1e-3

Column = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Columns of equal length; of text the number of the word, of which there are few."""

    columns: Mapping[str, Column]
    words: Mapping[str, tuple[str, ...]]

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, mask: Column) -> "Rows":
        return Rows({name: column[mask] for name, column in self.columns.items()}, self.words)

    def which(self, **wanted: object) -> "Rows":
        """Those with these values; a column that the table lacks matches anything."""
        mask = np.ones(len(self), dtype=bool)
        for name, value in wanted.items():
            if name in self.words:
                words = self.words[name]
                mask &= self[name] == (words.index(str(value)) if value in words else -1)
            elif name in self:
                mask &= self[name] == value
        return self.where(mask)


OWN_KERNELS = "torch"  # what mist profile ops times


class System(NamedTuple):
    """The tables of one device for the kernels of one engine; a name with a / is a folder of the user's own tables."""

    name: str  # folder
    kernels: str
    memory_bandwidth: float = inf  # bytes/s, as published: what no kernel that reads memory can beat

    @property
    def own(self) -> bool:
        """Whether mist profile ops wrote them: their kernels are torch's, whatever the engine."""
        return "/" in self.name

    def newest(self, family: str, file: str, kernels: str = "") -> list[Path]:
        """Versions of a table, newest first; none where the device has no such table."""
        if self.own:
            folder = Path(self.name) / family / (kernels or OWN_KERNELS)
        else:
            folder = root() / self.name / family / (kernels or self.kernels)
        return sorted(folder.glob(f"*/{file}.parquet"), key=lambda path: _release(path.parent.name), reverse=True)

    def refuse(self, what: str) -> InputError:
        """The error to raise where a table lacks what is asked."""
        if self.own:
            why = f"{self.name} has no {what} (mist profile ops writes such tables, and goes on where it ended)"
        else:
            why = f"{PACKAGE} {installed()} has no {what} for {self.kernels} kernels on {self.name}"
        return InputError("perf", "measured", why, ["roofline"])

    def identity(self) -> str:
        """The same for tables that hold the same."""
        if not self.own:
            return f"{PACKAGE} {installed()}"
        parts = [f"{path}:{_content(path, *_stamp(path))}" for path in sorted(Path(self.name).rglob("*.parquet"))]
        return sha256("\n".join(parts).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(4096)
def _content(path: Path, size: int, changed: int) -> str:  # noqa: ARG001 (they tell versions of a file apart)
    """sha256 of a file, read once by a process for as long as it stays as it is."""
    return sha256(path.read_bytes()).hexdigest()


UNUSED = {"framework", "version", "device", "beam_width"}


def rows(path: Path, **wanted: object) -> Rows:
    """The rows of a table whose columns have the wanted values; a column that the table lacks matches anything."""
    return _table(path).which(**wanted)


@lru_cache(8)
def _table(path: Path) -> Rows:
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415  # only where a table is really read

    file = ParquetFile(path)
    table = file.read([name for name in file.schema_arrow.names if name not in UNUSED])
    columns: dict[str, Column] = {}
    words: dict[str, tuple[str, ...]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if str(column.type) == "null":
            continue
        if str(column.type) in {"string", "large_string"}:
            coded = column.dictionary_encode()
            words[name] = tuple(coded.dictionary.to_pylist())
            column = coded.indices
        columns[name] = _plain(column)
    return Rows(columns, words)


def _plain(array: Any) -> Column:
    """The numbers of an Arrow array; its own way there would load pandas first, half a second."""
    if array.null_count:
        return np.asarray(array.to_pylist(), dtype=float)
    numbers = np.frombuffer(array.buffers()[1], dtype=array.type.to_pandas_dtype())
    return numbers[array.offset : array.offset + len(array)]


@cache
def root() -> Path:
    """The folder of the tables; InputError where the package is not installed."""
    found = find_spec("aiconfigurator_core")  # located, not imported: only its data are used
    if found is None or found.origin is None:
        raise InputError(
            "perf", "measured", f"{PACKAGE}, which holds the operator tables, is not installed", ["roofline"]
        )
    return Path(found.origin).parent / "systems" / "data"


@cache
def installed() -> str:
    """The version of the tables."""
    beside = root().parents[2].glob("aiconfigurator_core-*.dist-info")  # far quicker than to search the whole path
    found = [path.name.removesuffix(".dist-info").rpartition("-")[2] for path in beside]
    return found[0] if len(found) == 1 else version(PACKAGE)


def _release(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]

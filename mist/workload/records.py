"""Rows of a trace file as arrays: read in bulk, and once more line by line if anything is wrong with them."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from mist.errors import TraceError
from mist.workload.content import PassageIds

FORMATS = (".csv", ".jsonl", ".parquet")
ARRIVAL = ("arrival", "arrival_time", "timestamp", "time")
INPUT = ("input", "input_tokens", "input_length", "prompt_tokens", "contexttokens", "request tokens")
OUTPUT = ("output", "output_tokens", "output_length", "completion_tokens", "generatedtokens", "response tokens")
MILLISECONDS_BESIDE = "input_length"  # "timestamp" is in ms there (kvcache-ai/Mooncake, README)
HASHES = "hash_ids"  # chained hashes of the prompt's blocks (kvcache-ai/Mooncake, README)
MOST_TOKENS = 2**31 - 1  # far beyond any context; what lies above is not a token count

Row = tuple[str, Any, Any, Any]  # place, arrival, input, output


@dataclass(frozen=True, eq=False)
class Records:
    """Arrival instants in seconds (shape [n], non-decreasing) with input and output tokens (each at least 1)."""

    arrivals: NDArray[np.float64]
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]
    hashes: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # ids of all prompts, where each one's end
    reaches: NDArray[np.int64] | None = None  # where in its prompt each id ends, tokens; None is equal lengths
    sessions: NDArray[np.int64] | None = None  # shape [n]
    passages: PassageIds | None = None

    def __len__(self) -> int:
        return len(self.arrivals)

    def mean_gap(self) -> float:
        """Seconds between arrivals on average; 0 if they all come at once."""
        n = len(self)
        return float(self.arrivals[-1] - self.arrivals[0]) / (n - 1) if n > 1 else 0.0

    def sound(self) -> bool:
        """Whether they can be replayed as they are."""
        return bool(
            len(self)
            and np.isfinite(self.arrivals).all()
            and (np.diff(self.arrivals) >= 0).all()
            and min(self.inputs.min(), self.outputs.min()) >= 1
            and max(self.inputs.max(), self.outputs.max()) <= MOST_TOKENS
        )


def read(path: Path) -> Records:
    """The rows of a trace file; TraceError names the first line that cannot be replayed, and why."""
    try:
        if path.suffix.lower() != ".jsonl":
            rows = _bulk(path)
            if rows is not None and rows.sound():
                return rows
        hashes: list[list[int]] = []
        rows = _one_by_one(path, _jsonl_rows(path, hashes) if path.suffix.lower() == ".jsonl" else _rows(path))
        return replace(rows, hashes=flat(hashes)) if hashes else rows
    except (UnicodeDecodeError, pa.ArrowInvalid, csv.Error, OSError) as error:
        raise TraceError(str(path), path.suffix, f"cannot be read: {str(error).splitlines()[0]}") from None


def _bulk(path: Path) -> Records | None:
    """The columns converted whole; None if any of them holds something else."""
    table = _table(path)
    if table is None or not table.num_rows:
        return None
    arrival, inputs, outputs, unit = columns(table.column_names, str(path))
    times, lengths = table.column(arrival), (table.column(inputs), table.column(outputs))
    if any(column.null_count or not pa.types.is_integer(column.type) for column in lengths) or times.null_count:
        return None
    if pa.types.is_timestamp(times.type):
        nanoseconds = times.cast(pa.timestamp("ns", times.type.tz)).cast(pa.int64()).to_numpy()
        arrivals = (nanoseconds - nanoseconds[0]) * 1e-9
    elif pa.types.is_integer(times.type) or pa.types.is_floating(times.type):
        arrivals = times.to_numpy().astype(np.float64) * unit
    else:
        return None
    return Records(arrivals, *(column.to_numpy().astype(np.int64) for column in lengths))


def _table(path: Path) -> Any:
    if path.suffix.lower() == ".parquet":
        names = pa.parquet.read_schema(path).names
        return pa.parquet.read_table(path, columns=list(columns(names, str(path))[:3]))
    try:
        return pa.csv.read_csv(path)
    except pa.ArrowInvalid:  # a row of another width: the slow pass will find its line
        return None


def columns(names: Iterable[str], place: str) -> tuple[str, str, str, float]:
    """The columns of arrival, input and output, and how many seconds a plain number in the first one is."""
    names = list(names)
    by_name = {name.strip().lower(): name for name in names}
    if len(by_name) < len(names):
        raise TraceError(place, ", ".join(names), "two columns have the same name")
    found = []
    for what, spellings in (("arrival", ARRIVAL), ("input", INPUT), ("output", OUTPUT)):
        known = [name for name in spellings if name in by_name]
        if not known:
            raise TraceError(place, ", ".join(by_name) or "(nothing)", f"needs a column of {what}", spellings)
        found.append(known[0])
    unit = 1e-3 if found[0] == "timestamp" and found[1] == MILLISECONDS_BESIDE else 1.0
    return by_name[found[0]], by_name[found[1]], by_name[found[2]], unit


def _one_by_one(path: Path, rows: Iterator[tuple[Row, float]]) -> Records:
    arrivals: list[float] = []
    lengths: list[tuple[int, int]] = []
    for (place, arrival, tokens_in, tokens_out), unit in rows:
        instant = seconds_of(arrival, unit, place)
        if arrivals and instant < arrivals[-1]:
            raise TraceError(place, arrival, "arrives before the row above it; sort the rows by arrival")
        arrivals.append(instant)
        lengths.append((tokens_of(tokens_in, "input", place), tokens_of(tokens_out, "output", place)))
    if not arrivals:
        raise TraceError(str(path), "(nothing)", "holds no requests")
    start = arrivals[0] if arrivals[0] > 1e8 else 0.0  # a date: keep the precision of its fractions
    table = np.array(lengths, dtype=np.int64)
    return Records(np.array(arrivals) - start, table[:, 0], table[:, 1])


def _rows(path: Path) -> Iterator[tuple[Row, float]]:
    """Every row with its place (``path:line``), whatever is in it."""
    reader = {".csv": _csv_rows, ".parquet": _parquet_rows}[path.suffix.lower()]
    return reader(path)


def _csv_rows(path: Path) -> Iterator[tuple[Row, float]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if not header:
            raise TraceError(str(path), "(nothing)", "holds no requests, not even a header")
        *names, unit = columns(header, f"{path}:1")
        wanted = [header.index(str(name)) for name in names]
        for line in lines:
            place = f"{path}:{lines.line_num}"
            if not line:
                continue
            if len(line) != len(header):
                raise TraceError(place, ",".join(line), f"{len(line)} fields where the header has {len(header)}")
            arrival, tokens_in, tokens_out = (line[i].strip() for i in wanted)
            yield (place, arrival, tokens_in, tokens_out), unit


def _jsonl_rows(path: Path, hashes: list[list[int]]) -> Iterator[tuple[Row, float]]:
    """``hashes`` collects the hash ids, if rows have them."""
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                place = f"{path}:{number}"
                try:
                    data = json.loads(text)
                except ValueError:
                    data = None
                if not isinstance(data, Mapping):
                    raise TraceError(place, clipped(text), "not a JSON object on one line")
                arrival, tokens_in, tokens_out, unit = columns(data, place)
                if HASHES in data:
                    hashes.append(_hashes(data[HASHES], place))
                yield (place, data[arrival], data[tokens_in], data[tokens_out]), unit


def _hashes(ids: Any, place: str) -> list[int]:
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
        raise TraceError(place, clipped(ids), f"{HASHES} must be a list of whole numbers, 0 or more")
    return ids


def flat(hashes: Sequence[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All ids in a row, and where each prompt's end."""
    ids = np.array([i for row in hashes for i in row], dtype=np.int64)
    return ids, np.cumsum([len(row) for row in hashes])


def _parquet_rows(path: Path) -> Iterator[tuple[Row, float]]:
    table = _table(path)
    *names, unit = columns(table.column_names, str(path))
    values = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    for number, (arrival, tokens_in, tokens_out) in enumerate(values, 1):
        yield (f"{path}: row {number}", arrival, tokens_in, tokens_out), unit


def seconds_of(value: Any, unit: float, place: str) -> float:
    """Seconds, from a number (of ``unit`` seconds) or a date."""
    try:
        if not isinstance(value, bool | datetime) and isfinite(float(value)):
            return float(value) * unit
    except (TypeError, ValueError):
        pass
    try:
        date = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError):
        needed = "the arrival must be seconds or a date and time (ISO 8601)"
        raise TraceError(place, clipped(value), needed) from None


def tokens_of(value: Any, what: str, place: str) -> int:
    """A whole number of tokens, at least one, or TraceError."""
    try:
        if isinstance(value, bool) or (isinstance(value, float) and int(value) != value):
            raise ValueError
        tokens = int(value)
    except (TypeError, ValueError, OverflowError):
        raise TraceError(place, clipped(value), f"the {what} must be a whole number of tokens") from None
    if tokens > MOST_TOKENS:
        raise TraceError(place, clipped(value), f"no request has more than {MOST_TOKENS} {what} tokens")
    if tokens < 1:
        raise TraceError(place, value, f"every request needs at least one {what} token; drop the rows that failed")
    return tokens


def clipped(value: object) -> str:
    """As an error message shows it."""
    text = str(value).strip() or "(nothing)"
    return text if len(text) <= 80 else f"{text[:77]}..."

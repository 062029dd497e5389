"""A user's step log: which batch took how long.

A ``.csv`` or ``.parquet`` file, one row per step or per batch shape, column names not case-sensitive, others ignored:

- ``decodes``: sequences that computed one token (also ``decode_requests``, ``num_decodes``, ``batch_size``);
- ``context``: KV tokens those read, together (``decode_kv_tokens``), or each on average: ``mean_context``
  (``mean_decode_kv``, ``kv_len``);
- ``tokens``: prompt tokens computed (``chunk_tokens``, ``ctx_tokens``, ``prefill_tokens``, ``num_prefill_tokens``);
- ``chunks``: prompts they belong to (``ctx_requests``, ``prefill_requests``, ``num_prefills``), 1 where there is no
  such column;
- ``past``: their tokens cached before, together (``ctx_kv_tokens``, ``cached_tokens``, ``num_computed_tokens``);
- ``ms``: how long it took (``median_ms``, ``latency_ms``, ``step_ms``, ``time_ms``), or ``us``, ``latency_us``,
  ``seconds``, ``latency_s``.

Columns ``model``, ``hardware``, ``tp``, ``pp``, ``dp`` and ``ep``, where there are any, say what was measured: a
deployment takes the rows that are its own. Rows of equal shape count once, with their median.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from mist.errors import InputError, TraceError
from mist.perf.base import Replica

FORMATS = (".csv", ".parquet")
COLUMNS: dict[str, tuple[str, ...]] = {
    "decodes": ("decodes", "decode_requests", "num_decodes", "num_decode_requests", "batch_size"),
    "context": ("context", "decode_kv_tokens", "context_tokens"),
    "mean_context": ("mean_context", "mean_decode_kv", "mean_kv", "kv_len"),
    "tokens": ("tokens", "chunk_tokens", "ctx_tokens", "prefill_tokens", "num_prefill_tokens"),
    "chunks": ("chunks", "ctx_requests", "prefill_requests", "num_prefills"),
    "past": ("past", "ctx_kv_tokens", "past_tokens", "cached_tokens", "num_computed_tokens"),
}
SECONDS = {
    **dict.fromkeys(("ms", "median_ms", "latency_ms", "step_ms", "time_ms"), 1e-3),
    **dict.fromkeys(("us", "median_us", "latency_us", "step_us", "time_us"), 1e-6),
    **dict.fromkeys(("seconds", "latency_s", "step_s", "time_s"), 1.0),
}
SHAPE = ("decodes", "context", "tokens", "chunks", "past")
MOST_NAMES = 50  # distinct texts of a column that names something; a column of times has more
MEASURED = ("model", "hardware", "tp", "pp", "dp", "ep")  # columns that name a deployment


@dataclass(frozen=True, eq=False)
class StepLog:
    """Rows of a log with the columns of SHAPE and ``seconds``, and the columns that tell deployments apart."""

    path: str
    frame: pd.DataFrame

    def of(self, deployment: tuple[tuple[str, str], ...]) -> pd.DataFrame:
        """The deployment's rows, one per shape; InputError, with what there is, where none are its own."""
        frame = self.frame
        for column, value in deployment:
            if column in frame:
                frame = _rows(frame, column, value, "path", self.path)
        refuse_mixture(frame)
        return frame.groupby(list(SHAPE), as_index=False).agg({"seconds": "median"})


def deployment(replica: Replica) -> tuple[tuple[str, str], ...]:
    """What the columns of MEASURED say of a replica."""
    degrees = ((degree, str(getattr(replica, degree))) for degree in ("tp", "pp", "dp", "ep"))
    return (("model", replica.model.name), ("hardware", replica.hardware.name), *degrees)


def read(path: str, where: Mapping[str, object]) -> StepLog:
    """The rows of the log at ``path`` whose columns are as ``where`` says; InputError or TraceError if unsound."""
    file = existing(path)
    status = file.stat()
    frame = _read(str(file), status.st_mtime_ns, status.st_size)
    for column, value in where.items():
        if column.lower() not in frame:
            raise InputError(f"where.{column}", value, f"{path} has no such column", sorted(map(str, frame.columns)))
        frame = _rows(frame, column.lower(), value, f"where.{column}", str(value))
    return StepLog(path, frame)


def content(path: str) -> str:
    """SHA-256 of the file."""
    file = existing(path)
    status = file.stat()
    return _sha256(str(file), status.st_mtime_ns, status.st_size)


def existing(name: str) -> Path:
    """The file; InputError if there is none that can be read."""
    if name in ("", "???"):
        raise InputError("path", "(nothing)", "name a step log: perf.path=FILE", FORMATS)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError("path", name, "is a directory" if path.is_dir() else "no such file")
    if path.suffix.lower() not in FORMATS:
        raise InputError("path", name, "no format is known for this file ending", FORMATS)
    return path


def _rows(frame: pd.DataFrame, column: str, value: object, field: str, shown: str) -> pd.DataFrame:
    text = frame[column].astype(str).str.lower()
    chosen = frame[text == str(value).lower()]
    if chosen.empty:
        raise InputError(field, shown, f"the log has no rows with {column} = {value}", sorted(text.unique()))
    return chosen


def refuse_mixture(frame: pd.DataFrame) -> None:
    """InputError where one shape was measured under several names of some column: a median would mix them up."""
    for column in frame.columns.difference([*SHAPE, "seconds", *MEASURED]):
        names = frame[column]
        if pd.api.types.is_numeric_dtype(names) or not 1 < names.nunique() <= MOST_NAMES:
            continue
        if (frame.groupby(list(SHAPE))[column].nunique() > 1).any():
            why = "the log has the same shapes under several names; choose one"
            raise InputError(f"where.{column}", "(nothing)", why, sorted(map(str, names.unique())))


@lru_cache(maxsize=4)
def _sha256(path: str, modified: int, size: int) -> str:  # noqa: ARG001 (they tell versions of a file apart)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4)
def _read(path: str, modified: int, size: int) -> pd.DataFrame:  # noqa: ARG001
    try:
        raw = pd.read_parquet(path) if path.lower().endswith(".parquet") else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise TraceError(path, Path(path).suffix, f"cannot be read: {str(error).splitlines()[0]}") from None
    raw.columns = [str(name).strip().lower() for name in raw.columns]
    frame, unit = _shapes(raw, path)
    _check(frame, path, raw[unit])
    return frame


def _shapes(raw: pd.DataFrame, path: str) -> tuple[pd.DataFrame, str]:
    """Every row's shape and seconds, and the column the seconds came from."""
    found = {what: next((name for name in names if name in raw), None) for what, names in COLUMNS.items()}
    timed = next((name for name in SECONDS if name in raw), None)
    if timed is None:
        raise TraceError(path, ", ".join(raw.columns), "needs a column of how long a step took", SECONDS)
    if found["decodes"] is None and found["tokens"] is None:
        raise TraceError(
            path, ", ".join(raw.columns), "needs a column of decodes or of tokens", sum(COLUMNS.values(), ())
        )

    def column(what: str) -> pd.Series:
        name = found[what]
        values = raw[name] if name is not None else pd.Series(0.0, raw.index)
        return pd.to_numeric(values, errors="coerce").astype(float)

    decodes, tokens = column("decodes"), column("tokens")
    if found["context"] is None and found["mean_context"] is None and (decodes > 0).any():
        why = "rows with decodes need the KV tokens these read"
        raise TraceError(path, ", ".join(raw.columns), why, COLUMNS["context"] + COLUMNS["mean_context"])
    context = column("context") if found["context"] is not None else decodes * column("mean_context")
    chunks = column("chunks") if found["chunks"] is not None else (tokens > 0).astype(float)
    frame = pd.DataFrame(
        {"decodes": decodes, "context": context, "tokens": tokens, "chunks": chunks, "past": column("past")}
    )
    frame["seconds"] = pd.to_numeric(raw[timed], errors="coerce").astype(float) * SECONDS[timed]
    spoken = {name for name in found.values() if name is not None} | {timed}
    return frame.join(raw[[name for name in raw.columns if name not in spoken and name not in frame]]), timed


def _check(frame: pd.DataFrame, path: str, times: pd.Series) -> None:
    """TraceError naming the first row that is no step."""
    if frame.empty:
        raise TraceError(path, "(nothing)", "holds no steps")
    figures = frame[[*SHAPE, "seconds"]]
    wrong = {
        "a shape and a time are whole numbers and seconds, every field of them": ~np.isfinite(figures).all(axis=1),
        "must not be negative": (figures < 0).any(axis=1),
        "a step takes more than no time": frame["seconds"] <= 0,
        "a step computes something": frame["decodes"] + frame["tokens"] <= 0,
        "prompt tokens belong to at least one chunk": (frame["tokens"] > 0) & (frame["chunks"] < 1),
    }
    for why, rows in wrong.items():
        if rows.any():
            first = int(np.flatnonzero(np.asarray(rows))[0])
            row = frame.iloc[first]
            shown = ", ".join(f"{name} {row[name]:g}" for name in SHAPE) + f", {times.name} {times.iloc[first]}"
            raise TraceError(f"{path}: row {first + 1}", shown, why)

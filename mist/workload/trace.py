"""Replay of a recorded trace, row for row.

Formats, by file ending; other columns are ignored and names are not case-sensitive:

- ``.csv``: a header, then one request a row. The Azure LLM inference traces (TIMESTAMP, ContextTokens,
  GeneratedTokens), BurstGPT (Timestamp, Request tokens, Response tokens), or any of the names below.
- ``.jsonl``: one object a line; the Mooncake traces (timestamp, input_length, output_length) or the names below.
- ``.parquet``: the same columns.

The arrival column is ``arrival``, ``arrival_time``, ``timestamp`` or ``time``: seconds from any origin, or a
date and time (ISO 8601); a numeric ``timestamp`` beside ``input_length`` (Mooncake) is milliseconds, as published.
Lengths are ``input``, ``input_tokens``, ``input_length`` or ``prompt_tokens``, and ``output``, ``output_tokens``,
``output_length`` or ``completion_tokens``: whole tokens, at least one. A row without an output is a request
that failed where it was recorded; it is refused by line number, not dropped, since a trace silently thinned
is a lower load. Rows are in order of arrival.

``hash_ids`` of a ``.jsonl`` row (Mooncake) are chained hashes of the prompt's blocks of ``hash_tokens`` tokens, the
last one cut short: rows with an equal id have the same tokens up to its end. They are what prefix caching
finds again; a file has them in every row or in none.

Two formats say more (mist/workload/annotated.py): RAGPulse's ``.jsonl``, whose prompts are made of components, and
agent calls, ``.jsonl`` or ``.jsonl.gz``, with sessions and prefix hashes.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mist.errors import InputError, TraceError
from mist.units import PerSecond, Seconds
from mist.workload.annotated import GZIPPED, beside, read_annotated
from mist.workload.content import HashedBlocks, PassageIds
from mist.workload.records import FORMATS, Records, read
from mist.workload.traffic import Traffic, check_rate


@dataclass(frozen=True)
class Trace:
    """The file at ``path`` (relative to the working directory) as one cycle of requests.

    ``rate`` rescales time so that this many requests per second arrive on average; None keeps the recorded
    rate. The cycle closes with one mean gap between the last row and the first of the next round. Gaps longer than
    ``longest_gap`` are cut to it: between recordings nothing was measured. ``passage_tokens`` is the length of
    passages that the trace names and gives no length of (RAGPulse without the files beside it).
    """

    path: str
    rate: PerSecond | None = None
    hash_tokens: int = 512  # tokens of a hash id; kvcache-ai/Mooncake, README
    longest_gap: Seconds | None = None
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        check_rate(self.rate)
        if self.longest_gap is not None and not self.longest_gap > 0:
            raise InputError("longest_gap", self.longest_gap, "must be positive, or null for the gaps as recorded")
        if self.passage_tokens is not None and self.passage_tokens < 1:
            raise InputError("passage_tokens", self.passage_tokens, "must be at least 1, or null")
        if self.hash_tokens < 1:
            raise InputError("hash_tokens", self.hash_tokens, "must be at least 1")

    def own_rate(self) -> float:
        """Requests per second as recorded; TraceError if no time passes between first and last row."""
        gap = self._records().mean_gap()
        if gap == 0:
            raise TraceError(self.path, f"{len(self._records())} requests", "all arrive at one instant: give a rate")
        return 1 / gap

    def traffic(self, seed: int) -> Traffic:  # noqa: ARG002 (a replay leaves nothing to chance)
        """The rows as they are, whatever the seed."""
        rows = self._records()
        gap = rows.mean_gap()
        times = (rows.arrivals - rows.arrivals[0]) / (gap if gap > 0 else 1.0)
        return Traffic(times, rows.inputs, rows.outputs, contents=self._contents(rows))

    def content(self) -> str:
        """SHA-256 of the file, or of its and those of the files beside it that say more about its rows."""
        path = _existing(self.path)
        own, *others = (_sha256(str(file), _version(file)) for file in (path, *beside(path)))
        return hashlib.sha256("".join([own, *others]).encode()).hexdigest() if others else own

    def _contents(self, rows: Records) -> HashedBlocks | None:
        if rows.hashes is None:
            return None
        ids, ends = rows.hashes
        if rows.reaches is not None:
            told = self._passages(rows)
            return HashedBlocks(ids, ends, rows.inputs, self.hash_tokens, rows.reaches, rows.sessions, told)
        if len(ends) != len(rows):
            raise TraceError(self.path, f"{len(ends)} of {len(rows)} rows", "hash_ids must be in every row or in none")
        counts = np.diff(ends, prepend=0)
        wrong = np.flatnonzero(
            (counts != -(-rows.inputs // self.hash_tokens)) & (counts != rows.inputs // self.hash_tokens)
        )
        if len(wrong):
            tokens, found = rows.inputs[wrong[0]], counts[wrong[0]]
            why = f"request {wrong[0] + 1} has {found} hash_ids for {tokens} tokens: not {self.hash_tokens} tokens each"
            raise TraceError(self.path, "hash_ids", f"{why} (workload.hash_tokens)")
        return HashedBlocks(ids, ends, rows.inputs, self.hash_tokens, sessions=rows.sessions)

    def names_passages(self) -> bool:
        """Whether prompts say which passages they hold, and how long these are."""
        told = self._passages(self._records())
        return told is not None and bool(told.tokens.any())

    def _passages(self, rows: Records) -> PassageIds | None:
        told = rows.passages
        if self.passage_tokens is None:
            return told
        if told is None or told.tokens.all():
            why = "has no effect: no passage of this trace is of unknown length"
            raise InputError("passage_tokens", self.passage_tokens, why, ["null"])
        return told._replace(tokens=np.where(told.tokens, told.tokens, self.passage_tokens))

    def _records(self) -> Records:
        path = _existing(self.path)
        rows = _read(str(path), tuple(_version(file) for file in (path, *beside(path))))
        if self.longest_gap is None:
            return rows
        gaps = np.minimum(np.diff(rows.arrivals, prepend=rows.arrivals[0]), self.longest_gap)
        return replace(rows, arrivals=np.cumsum(gaps))


def _existing(name: str) -> Path:
    if name in ("", "???"):
        raise TraceError("workload.path", "(nothing)", "name a trace file: workload.path=FILE", FORMATS)
    path = Path(name).expanduser()
    if not path.is_file():
        raise TraceError("workload.path", name, "is a directory" if path.is_dir() else "no such file")
    if path.suffix.lower() not in FORMATS and not path.name.lower().endswith(GZIPPED):
        raise TraceError("workload.path", name, "no format is known for this file ending", FORMATS)
    return path


def _version(path: Path) -> tuple[int, int]:
    """Tells versions of a file apart."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _read(path: str, versions: tuple[tuple[int, int], ...]) -> Records:  # noqa: ARG001
    return read_annotated(Path(path)) or read(Path(path))


@lru_cache(maxsize=16)
def _sha256(path: str, version: tuple[int, int]) -> str:  # noqa: ARG001
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Traces that say which parts of their prompts are the same: RAGPulse, and agent calls.

RAGPulse (flashserve/RAGPulse, README; arXiv:2511.12979): a prompt is a system prompt, retrieved passages, history, web
results and the question, in this order, each a list of ids. ``timestamp`` is in seconds. How long a part is stands in
files beside the trace (``BESIDE``), which are read where they are. Without them a prompt is known up to the last part
of its system prompt: those before it have ``PART`` tokens.

Agent calls (LMCache/lmcache-agent-trace, texts dropped): ``est_input_tokens`` and ``est_output_tokens`` are characters
divided by four; a call without text (a tool call alone) counts as one token, the fewest that can be asked or answered.
``hash_ids_2048ch`` are chained hashes of 2048 characters, 512 such tokens. ``timestamp_us`` is in microseconds.

Both are recorded session by session; rows are sorted by arrival here.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mist.errors import TraceError
from mist.workload.content import PassageIds
from mist.workload.records import HASHES, Records, clipped, flat, seconds_of, tokens_of

GZIPPED = ".jsonl.gz"
PART = 512  # tokens; flashserve/RAGPulse, data/1_sys_prompt.jsonl
BESIDE = ("1_sys_prompt.jsonl", "2_passages.jsonl", "3_history.jsonl", "4_user_input.jsonl", "5_web_search.jsonl")
COMPONENTS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")  # in the order of the prompt
AGENT_HASHES = "hash_ids_2048ch"

Line = tuple[str, Mapping[str, Any]]  # place, row


def read_annotated(path: Path) -> Records | None:
    """The rows of a file in one of the two formats, by arrival; None for another. TraceError names the line."""
    if path.suffix.lower() != ".jsonl" and not path.name.lower().endswith(GZIPPED):
        return None
    lines = _lines(path)
    try:
        first = next(lines, None)
        if first is not None and isinstance(first[1].get(HASHES), Mapping):
            return _ragpulse(path)
        if first is not None and AGENT_HASHES in first[1]:
            return _agents(path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(str(path), path.suffix, f"cannot be read: {str(error).splitlines()[0]}") from None
    if path.suffix.lower() == ".gz":
        raise TraceError(str(path), path.name, f"holds no agent calls ({AGENT_HASHES}): unpack it to be read as .jsonl")
    return None


def _lines(path: Path) -> Iterator[Line]:
    opened: Callable[..., Any] = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                try:
                    data = json.loads(text)
                except ValueError:
                    data = None
                yield f"{path}:{number}", data if isinstance(data, Mapping) else {}


def _agents(path: Path) -> Records:
    rows: list[tuple[float, int, int]] = []
    hashes, sessions = [], []
    for place, row in _lines(path):
        asked, answered = (_field(row, f"est_{what}_tokens", place) for what in ("input", "output"))
        tokens = tokens_of(asked or 1, "input", place), tokens_of(answered or 1, "output", place)
        rows.append((seconds_of(_field(row, "timestamp_us", place), 1e-6, place), *tokens))
        hashes.append(_ids(row.get(AGENT_HASHES), AGENT_HASHES, place))
        sessions.append((row.get("dataset"), row.get("session")))
    return _sorted(rows, hashes, None, sessions)


def _ragpulse(path: Path) -> Records:
    lengths = _lengths(beside(path))
    chains: dict[tuple[int, int], int] = {}  # (prefix, part) -> the prefix that ends with it; 0 is nothing
    rows, hashes, reaches, sessions, passages = [], [], [], [], []
    for place, row in _lines(path):
        asked, answered = (tokens_of(_field(row, f"{what}_length", place), what, place) for what in ("input", "output"))
        rows.append((seconds_of(_field(row, "timestamp", place), 1.0, place), asked, answered))
        ids, ends, prefix, end = [], [], 0, 0
        for part, length in _parts(_field(row, HASHES, place), lengths, place):
            end += length
            if end > asked:
                break
            prefix = chains.setdefault((prefix, part), len(chains) + 1)
            ids.append(prefix)
            ends.append(end)
        hashes.append(ids)
        reaches.append(ends)
        sessions.append(row.get("session_id"))
        passages.append(_passages(row[HASHES], lengths, place))
    return _sorted(rows, hashes, reaches, sessions, passages)


def _passages(
    components: Mapping[str, Any], lengths: Mapping[int, int], place: str
) -> tuple[int, list[int], list[int]]:
    """Where a prompt's passages begin, as far as that is known, which they are, and their tokens; 0 is not known."""
    system = _ids(components.get("sys_prompt", []), f"{HASHES}.sys_prompt", place)
    ids = _ids(components.get("passages_ids", []), f"{HASHES}.passages_ids", place)
    begin = sum(lengths.get(part, PART if number < len(system) else 0) for number, part in enumerate(system, 1))
    return begin, ids, [lengths.get(part, 0) for part in ids]


def _parts(components: Any, lengths: Mapping[int, int], place: str) -> Iterator[tuple[int, int]]:
    """Parts of a prompt from its beginning, with their tokens, as far as those are known."""
    if not isinstance(components, Mapping):
        raise TraceError(place, clipped(components), f"{HASHES} must have components, as in the rows above")
    for name in COMPONENTS:
        ids = _ids(components.get(name, []), f"{HASHES}.{name}", place)
        for number, part in enumerate(ids, 1):
            length = lengths.get(part, PART if number < len(ids) and name == "sys_prompt" else 0)
            if not length:
                return
            yield part, length


def beside(path: Path) -> list[Path]:
    """The files beside a RAGPulse trace that say how long its parts are."""
    return [found for name in BESIDE if (found := path.parent / name).is_file()]


def _lengths(paths: Iterable[Path]) -> dict[int, int]:
    """Tokens of each part."""
    found: dict[int, int] = {}
    for path in paths:
        for place, row in _lines(path):
            ids = [value for key, value in row.items() if key.endswith("id") and isinstance(value, int)]
            if len(ids) != 1:
                raise TraceError(place, clipped(dict(row)), "must be an id and its token_length")
            found[ids[0]] = tokens_of(_field(row, "token_length", place), "part", place)
    return found


def _field(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise TraceError(place, clipped(dict(row)), f"needs {name}")
    return row[name]


def _ids(ids: Any, name: str, place: str) -> list[int]:
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
        raise TraceError(place, clipped(ids), f"{name} must be a list of whole numbers, 0 or more")
    return ids


def _sorted(
    rows: list[tuple[float, int, int]],
    hashes: list[list[int]],
    reaches: list[list[int]] | None,
    sessions: list[Any],
    passages: Sequence[tuple[int, list[int], list[int]]] = (),
) -> Records:
    table = np.array(rows, dtype=np.float64)
    order = np.argsort(table[:, 0], kind="stable")
    numbers: dict[Any, int] = {}
    named = np.array([numbers.setdefault(session, len(numbers)) for session in sessions], dtype=np.int64)
    ends: NDArray[np.int64] | None = None if reaches is None else flat([reaches[i] for i in order])[0]
    arrivals = table[order, 0] - table[order[0], 0]
    inputs, outputs = (table[order, column].astype(np.int64) for column in (1, 2))
    told = None
    if any(ids for _, ids, _ in passages):
        begins, which, tokens = zip(*[passages[i] for i in order], strict=True)
        ids, their_ends = flat(which)
        told = PassageIds(ids, flat(tokens)[0], their_ends, np.array(begins, dtype=np.int64))
    return Records(arrivals, inputs, outputs, flat([hashes[i] for i in order]), ends, named[order], told)

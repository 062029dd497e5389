"""Traffic as ServeGen describes it: many clients, each with a rate, a burstiness and lengths of its own, over a day.

ServeGen (Xiang et al., NSDI 2026, arXiv:2505.09999, sections 5 and 6; github.com/alibaba/ServeGen, ``data/``) publishes
what it measured of every client: ``chunk-K-trace.csv``, for each 600 s of a day the rate (requests/s), the
coefficient of variation of the gaps, the distribution that fits them (Gamma or Weibull), its shape and its scale; and
``chunk-K-dataset.json``, for each quarter of the day the probabilities of input tokens, output tokens and, of
reasoning models, of the share of the output that is thinking.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError, TraceError
from mist.streams import stream
from mist.units import PerSecond, Seconds
from mist.workload.traffic import Traffic, check_rate, check_requests

Floats = NDArray[np.float64]
WINDOW, DAY = 600.0, 86400.0  # s, of a row of the trace files; of all rows
NAME = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)$")


class Pdf(NamedTuple):
    """A distribution as published: values and their probabilities."""

    values: Floats
    shares: Floats

    def draw(self, n: int, chance: np.random.Generator) -> Floats:
        drawn: Floats = chance.choice(self.values, n, p=self.shares)
        return drawn


class Lengths(NamedTuple):
    """One client's requests in one part of the day."""

    inputs: Pdf  # tokens
    outputs: Pdf  # tokens
    reason: Pdf | None  # share of the output that is thinking


class Client(NamedTuple):
    """One client of the recording."""

    rates: Floats  # requests/s, by window of the day
    shapes: Floats  # of the gaps
    weibull: NDArray[np.bool_]  # gaps are Weibull, else Gamma
    lengths: dict[float, Lengths]  # by the second of the day from which they hold


@dataclass(frozen=True)
class ServeGen:
    """A cycle of ``requests`` requests of all clients in the folder or ``.tar.gz`` at ``path``.

    They are those of ``hours`` of a day from ``start`` on, however many these were, shared out over clients and windows
    as recorded; within a window, a client's gaps are Gamma or Weibull with the recorded shape, given their number.
    Lengths are drawn from the client's own distributions, each for itself, as they were published. ``outputs``
    are *whole*, *answers* without the thinking, for a pipeline that has a stage for it, or *thinking* alone.
    ``rate`` is the mean rate; None is the recorded one.
    """

    path: str
    requests: int
    start: Seconds = 0.0
    hours: float = 24.0
    outputs: Literal["whole", "answers", "thinking"] = "whole"
    rate: PerSecond | None = None

    def __post_init__(self) -> None:
        check_requests(self.requests)
        check_rate(self.rate)
        if not (0 <= self.start < DAY and self.start % WINDOW == 0):
            raise InputError("start", self.start, "must be a whole number of windows of 600 s within a day")
        if not (0 < self.hours <= 24 and (self.hours * 3600) % WINDOW == 0):
            raise InputError("hours", self.hours, "must be whole windows of 600 s, at most 24 hours")

    def own_rate(self) -> float:
        """Requests per second as recorded in these hours."""
        windows = self._windows()
        return float(sum(client.rates[windows].sum() for client in self._clients()) / len(windows))

    def content(self) -> str:
        """SHA-256 over all files."""
        return _read(self.path, _version(self.path))[1]

    def traffic(self, seed: int) -> Traffic:
        clients, windows = self._clients(), self._windows()
        expected = np.array([client.rates[windows] for client in clients])
        if not expected.any():
            raise TraceError("workload.start", f"{self.start:g} s", "nobody sends anything in these hours")
        counts = _shared_out(expected.ravel(), self.requests, stream(seed, "workload.counts")).reshape(expected.shape)
        gaps = stream(seed, "workload.gaps")
        chances = [stream(seed, f"workload.{name}") for name in ("inputs", "outputs", "reason")]
        parts = [
            (position + _arrivals(client, window, int(n), gaps), *self._lengths(client, window, int(n), chances))
            for client, row in zip(clients, counts, strict=True)
            for position, (window, n) in enumerate(zip(windows.tolist(), row, strict=True))
            if n
        ]
        times, inputs, outputs = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(times, kind="stable")
        n = self.requests
        unit = np.minimum(times[order] * (n / len(windows)), np.nextafter(n, 0))
        return Traffic(unit, _whole(inputs[order]), _whole(outputs[order]))

    def _windows(self) -> NDArray[np.int64]:
        first, number = int(self.start / WINDOW), int(self.hours * 3600 / WINDOW)
        return np.arange(first, first + number) % int(DAY / WINDOW)

    def _lengths(
        self, client: Client, window: int, n: int, chances: list[np.random.Generator]
    ) -> tuple[Floats, Floats]:
        known = client.lengths[max(start for start in client.lengths if start <= window * WINDOW)]
        inputs, outputs = known.inputs.draw(n, chances[0]), known.outputs.draw(n, chances[1])
        if self.outputs == "whole":
            return inputs, outputs
        if known.reason is None:
            raise TraceError("workload.outputs", self.outputs, "these clients do not reason", ["whole"])
        thinking = np.rint(outputs * known.reason.draw(n, chances[2]))
        return inputs, thinking if self.outputs == "thinking" else outputs - thinking

    def _clients(self) -> tuple[Client, ...]:
        return _read(self.path, _version(self.path))[0]


def _shared_out(expected: Floats, n: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """``n`` requests over cells in proportion to what is expected of each, never more than one off."""
    ends = np.cumsum(expected) * (n / expected.sum())
    ends[-1] = n
    whole: NDArray[np.int64] = np.diff(np.floor(ends + chance.random()), prepend=0).astype(np.int64)
    whole[np.flatnonzero(expected)[-1]] += n - whole.sum()
    return whole


def _arrivals(client: Client, window: int, n: int, chance: np.random.Generator) -> Floats:
    """``n`` instants in [0, 1) of a window, their gaps of the client's kind, begun anywhere."""
    shape = client.shapes[window]
    gaps = chance.weibull(shape, n) if client.weibull[window] else chance.gamma(shape, 1.0, n)
    ends = np.cumsum(gaps)
    within: Floats = (ends / ends[-1] if ends[-1] > 0 else chance.random(n)) + chance.random()
    return within % 1.0


def _whole(tokens: Floats) -> NDArray[np.int64]:
    return np.maximum(np.rint(tokens), 1).astype(np.int64)


# files


def _version(name: str) -> tuple[int, int]:
    path = Path(name).expanduser()
    if not name or not path.exists():
        raise TraceError("workload.path", name or "(nothing)", "name a folder or .tar.gz of ServeGen's clients")
    every = [file.stat() for file in (path, *(path.rglob("chunk-*") if path.is_dir() else ()))]
    return max(file.st_mtime_ns for file in every), sum(file.st_size for file in every)


@lru_cache(maxsize=2)
def _read(name: str, version: tuple[int, int]) -> tuple[tuple[Client, ...], str]:  # noqa: ARG001
    """The clients, by number, and a hash of their files."""
    files = {(int(m[1]), m[2]): data for path, data in _files(Path(name).expanduser()) if (m := NAME.search(path))}
    numbers = sorted({number for number, _ in files})
    if not numbers:
        raise TraceError("workload.path", name, "has no chunk-K-trace.csv and chunk-K-dataset.json")
    clients, digest = [], hashlib.sha256()
    for number in numbers:
        trace, lengths = (files.get((number, kind), b"") for kind in ("trace.csv", "dataset.json"))
        digest.update(trace + lengths)
        if trace and lengths:  # the others' sizes were over what the repository keeps
            clients.append(_client(f"{name}: chunk-{number}", trace.decode(), lengths.decode()))
    return tuple(clients), digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        yield from ((str(file), file.read_bytes()) for file in sorted(path.rglob("chunk-*")))
        return
    with tarfile.open(path) as archive:
        for member in archive:
            held = archive.extractfile(member) if member.isfile() else None
            if held is not None:
                yield member.name, held.read()


def _client(where: str, trace: str, lengths: str) -> Client:
    try:
        rows = [line.split(",") for line in trace.split()]
        tables = {float(start): _tables(data) for start, data in json.loads(lengths).items()}
        known = {start: table for start, table in tables.items() if table is not None}
        rates, shapes = np.array([float(row[1]) for row in rows]), np.array([float(row[4] or 0) for row in rows])
        weibull = np.array([row[3] == "Weibull" for row in rows])
    except (ValueError, KeyError, IndexError) as error:
        raise TraceError("workload.path", where, f"is not as ServeGen writes it: {error}") from None
    if len(rates) != int(DAY / WINDOW):
        raise TraceError("workload.path", where, f"has {len(rates)} windows, a day has {DAY / WINDOW:g} of 600 s")
    starts = (np.arange(len(rates)) * WINDOW)[:, None] >= np.array(sorted(known) or [DAY])
    return Client(np.where(starts.any(axis=1), rates, 0.0), np.where(shapes > 0, shapes, 1.0), weibull, known)


def _tables(data: dict[str, str]) -> Lengths | None:
    """None for a part of the day in which the client was not there."""
    inputs, outputs, reason = (_pdf(data.get(name, "{}")) for name in ("input_tokens", "output_tokens", "reason_ratio"))
    return None if inputs is None or outputs is None else Lengths(inputs, outputs, reason)


def _pdf(text: str) -> Pdf | None:
    """What a mapping as Python prints it says; None where it is empty."""
    numbers = [float(number) for number in text.strip("{} ").replace(":", ",").split(",") if number]
    values, shares = np.array(numbers[::2]), np.array(numbers[1::2])
    values, shares = values[shares > 0], shares[shares > 0]
    if not len(values):
        return None
    return Pdf(values, shares / shares.sum())

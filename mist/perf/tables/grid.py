"""Attention times over batch and length: filled where nothing was measured, quick to look up."""

from bisect import bisect_right
from math import ceil, floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mist.perf.tables.curve import Floats, Source, envelope


class Grid(NamedTuple):
    """Seconds by batch (rows) and tokens of each sequence (columns), and what of it was measured."""

    batches: tuple[float, ...]
    lengths: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]
    longest: tuple[float, ...]  # by batch: the greatest length measured
    source: Source = "measured"
    uneven: bool = False  # whether the kernel waits for its longest sequence
    whole: bool = False  # whether one tile of queries passes over all that it attends to by itself
    slots: float = 0.0  # sequences that multiprocessors take at once, whole; 0: not known, or of no account

    def source_at(self, batch: float, length: float) -> Source:
        """How the time of ``batch`` sequences of ``length`` tokens each is known."""
        row = max(bisect_right(self.batches, batch) - 1, 0)
        if batch > self.batches[-1] or length > self.longest[row]:
            return "extrapolated"
        on_grid = batch in self.batches and length in self.lengths
        return "interpolated" if self.source == "measured" and not on_grid else self.source

    def row(self, batch: float, launched: float = 0) -> tuple[float, ...]:
        """Seconds over ``lengths`` of a batch of this size, linear in it.

        Where the multiprocessors are counted it is linear in what the busiest of them has to read. ``launched``
        (0: ``batch``) is the batch that the kernel is launched for.
        """
        at = min(max(bisect_right(self.batches, batch) - 1, 0), len(self.batches) - 2)
        low, high = self.batches[at], self.batches[at + 1]
        if self.slots and self.turn(low) < self.turn(high):
            batch, low, high = self.turn(batch, launched), self.turn(low), self.turn(high)
        share = max((batch - low) / (high - low), 0.0)
        return tuple(a + (b - a) * share for a, b in zip(self.seconds[at], self.seconds[at + 1], strict=True))

    def turn(self, batch: float, launched: float = 0) -> float:
        """Sequences that the busiest multiprocessor reads, one KV head of each: a part of one, or some in turn.

        TensorRT-LLM's generated kernels cut every sequence of the batch they are launched for into as many equal parts
        as find a multiprocessor of their own; where not even the whole ones do, each takes every so many-th in turn,
        and absent ones cost nothing (FlashInfer, trtllm/fmha/fmhaKernels.cuh, computeCtaAndClusterConfig).
        """
        launched = max(batch, launched)
        return 1 / floor(self.slots / launched) if launched <= self.slots else float(ceil(batch / self.slots))


def decode_grid(batches: Floats, lengths: Floats, seconds: Floats, source: Source = "measured") -> Grid:
    """Of a kernel that reads the cache once: linear in length beyond what fitted the device it was timed on.

    There every batch reads at one rate, the median of what the batches showed between their two longest timings: the
    rate of a single one is a difference of two noisy times, and of few sequences it is not yet the memory's.
    """
    batches, seconds, longest = _timed(batches, lengths, seconds)
    timed = [np.flatnonzero(~np.isnan(row)) for row in seconds]
    rate = _reading_rate(batches, lengths, seconds, timed)
    for row, (batch, known) in enumerate(zip(batches, timed, strict=True)):
        last = known[-1]
        seconds[row, last + 1 :] = seconds[row, last] + rate * batch * (lengths[last + 1 :] - lengths[last])
        seconds[row] = np.interp(lengths, lengths[~np.isnan(seconds[row])], seconds[row][~np.isnan(seconds[row])])
    return _grid(batches, lengths, _uncached(batches, lengths, seconds), longest, source)


def _reading_rate(batches: Floats, lengths: Floats, seconds: Floats, timed: list[NDArray[np.int64]]) -> float:
    """Seconds per cached token, median over the batches, of those that read most of it."""
    rates = [
        (seconds[row, known[-1]] - seconds[row, known[-2]]) / (batch * (lengths[known[-1]] - lengths[known[-2]]))
        for row, (batch, known) in enumerate(zip(batches, timed, strict=True))
        if len(known) > 1
    ]
    return max(float(np.median(rates)), 0.0) if rates else 0.0


def from_memory(grid: Grid, token_time: float, share: float) -> Grid:
    """``grid``, unless most batches read their cache faster than memory can deliver it: then no faster than ``share``
    of that, whatever was timed.

    ``token_time`` is what one cached token takes at the published bandwidth. Sequences that were timed on the same
    few blocks read them from the L2 cache: decode attention of TensorRT-LLM 1.0 on A100 was timed at up to 3.4 TB/s.
    """
    ends = [row[grid.lengths.index(length)] for row, length in zip(grid.seconds, grid.longest, strict=True)]
    delivered = np.asarray(grid.batches) * np.asarray(grid.longest) * token_time
    if np.median(delivered / np.asarray(ends)) <= 1:
        return grid
    rows = np.maximum(np.asarray(grid.seconds), np.outer(grid.batches, grid.lengths) * token_time / share)
    return grid._replace(seconds=tuple(tuple(map(float, row)) for row in rows), source="extrapolated")


def _uncached(batches: Floats, lengths: Floats, seconds: Floats) -> Floats:
    """As if no KV cache were left in the L2 cache from the run before.

    Timed over and over, a cache of some tens of megabytes is never read from memory; in a model the weights of
    a layer pass between two reads. So each time is at least the shortest of its batch and the cache at the
    memory rate of the largest that were timed.
    """
    rate = min(
        (row[-1] - row[-2]) / (batch * (lengths[-1] - lengths[-2])) for batch, row in zip(batches, seconds, strict=True)
    )
    uncached: Floats = seconds[:, :1] + rate * batches[:, None] * (lengths - lengths[0])
    return np.maximum(seconds, uncached)


def prompt_grid(batches: Floats, lengths: Floats, seconds: Floats, source: Source = "measured") -> Grid:
    """Of a kernel over whole prompts: as the next smaller batch grows beyond what was timed, at last quadratically."""
    batches, seconds, longest = _timed(batches, lengths, seconds)
    for row in range(len(batches)):
        known = ~np.isnan(seconds[row])
        last = np.flatnonzero(known)[-1]
        seconds[row, : last + 1] = np.interp(lengths[: last + 1], lengths[known], seconds[row][known])
        like = seconds[row - 1] if row else lengths**2
        seconds[row, last + 1 :] = seconds[row, last] * like[last + 1 :] / like[last]
    beyond = np.column_stack([seconds, 16 * seconds[:, -1]])
    return _grid(batches, np.append(lengths, 4 * lengths[-1]), beyond, longest, source)


def windowed(grid: Grid, window: int) -> Grid:
    """Decode times where only the last ``window`` tokens are read."""
    kept = [length for length in grid.lengths if length < window]
    ends = [float(np.interp(window, grid.lengths, row)) for row in grid.seconds]
    rows = tuple((*row[: len(kept)], end, end) for row, end in zip(grid.seconds, ends, strict=True))
    return grid._replace(lengths=(*kept, float(window), 2.0 * window), seconds=rows, source="interpolated")


def windowed_prompt(grid: Grid, window: int) -> Grid:
    """Prompt times where each token sees the last ``window``: beyond it in proportion to the pairs."""
    kept = [length for length in grid.lengths if length < window]
    beyond = [length for length in grid.lengths if length > window]
    growth = [1.0, *((2 * length - window) / window for length in beyond)]
    ends = [float(np.interp(window, grid.lengths, row)) for row in grid.seconds]
    rows = tuple(
        (*row[: len(kept)], *(end * more for more in growth)) for row, end in zip(grid.seconds, ends, strict=True)
    )
    return grid._replace(lengths=(*kept, float(window), *beyond), seconds=rows, source="extrapolated")


def _timed(batches: Floats, lengths: Floats, seconds: Floats) -> tuple[Floats, Floats, Floats]:
    """Batches of which at least something was timed, and their longest sequences."""
    known = ~np.isnan(seconds)
    kept = known.any(axis=1)
    last = known.shape[1] - 1 - np.argmax(known[kept][:, ::-1], axis=1)
    return batches[kept], seconds[kept].copy(), lengths[last]


def _grid(batches: Floats, lengths: Floats, seconds: Floats, longest: Floats, source: Source) -> Grid:
    seconds = envelope(envelope(seconds, 0), 1)
    if len(batches) == 1:  # a larger batch takes its turn
        batches, longest = np.append(batches, 2 * batches), np.tile(longest, 2)
        seconds = np.vstack([seconds, 2 * seconds])
    rows = tuple(tuple(map(float, row)) for row in seconds)
    return Grid(tuple(map(float, batches)), tuple(map(float, lengths)), rows, tuple(map(float, longest)), source)

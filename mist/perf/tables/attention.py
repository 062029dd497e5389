"""Attention kernels over a paged KV cache: whole prompts, and one token of each of a batch."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mist.model import BYTES_PER_ELEMENT
from mist.perf.tables.curve import Floats, Source
from mist.perf.tables.files import MILLISECOND, Rows, System, rows
from mist.perf.tables.grid import Grid, decode_grid, from_memory, prompt_grid, windowed, windowed_prompt

KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
# Part of the name of TensorRT-LLM's generated kernels (trtllm-gen), as the tables have it: they split each cache of a
# batch into equally many parts, so that all wait for the longest. FlashAttention 3 balances the parts by length.
UNEVEN = "trtllm"


class Heads(NamedTuple):
    """Attention on one device."""

    query: int
    kv: int
    size: int  # elements of a head
    kv_dtype: str


def decode_attention(system: System, heads: Heads, window: int, bandwidth: float, share: float) -> Grid:
    """Seconds of one layer by sequences and tokens each attends to, its own included.

    ``bandwidth`` is the memory's in bytes/s, and ``share`` what a kernel reaches of it whose timings beat it.
    """
    token_time = 2 * heads.kv * heads.size * BYTES_PER_ELEMENT[heads.kv_dtype] / bandwidth
    return _of(system, heads, window, "generation_attention_perf", lambda grid: from_memory(grid, token_time, share))


def prompt_attention(system: System, heads: Heads, window: int) -> Grid:
    """Seconds of one layer by sequences and tokens of each."""
    return _of(system, heads, window, "context_attention_perf", lambda grid: grid)


def _of(system: System, heads: Heads, window: int, file: str, checked: Callable[[Grid], Grid]) -> Grid:
    prompt = file.startswith("context")
    kind = KV_DTYPES.get(heads.kv_dtype, heads.kv_dtype)
    for path in system.newest("attention", file):
        table = rows(path, kv_cache_dtype=kind)
        for own in (window, 0) if window else (0,):
            grid = _of_size(_of_window(table, own), heads, prompt)
            if grid is not None:
                grid = grid._replace(uneven=not prompt and _waits(table))
                cut = windowed_prompt if prompt else windowed
                return grid if own else cut(checked(grid), window) if window else checked(grid)
    what = f"{'prompt' if prompt else 'decode'} attention with {heads.query} heads, {heads.kv} KV heads of "
    raise system.refuse(f"{what}{heads.size} elements and a {kind} cache")


def _waits(table: Rows) -> bool:
    """Whether the kernel of most rows waits for its longest sequence."""
    if "kernel_source" not in table or not len(table):
        return False
    word = np.bincount(table["kernel_source"]).argmax()
    return UNEVEN in table.words["kernel_source"][word]


def _of_window(table: Rows, window: int) -> Rows:
    if "window_size" not in table and window:
        return table.where(np.zeros(len(table), dtype=bool))
    return table.which(window_size=window)


def _of_size(table: Rows, heads: Heads, prompt: bool) -> Grid | None:
    """Of heads of this size; between two sizes that were timed, or scaled from the nearest one.

    Cache and arithmetic grow in proportion to the size, what a launch takes does not.
    """
    sizes = np.unique(table["head_dim"])
    timed = {int(size): _shaped(table.which(head_dim=size), heads, prompt) for size in _nearest(sizes, heads.size)}
    known = {size: grid for size, grid in timed.items() if grid is not None}
    if not known:
        return None
    if len(known) == 2:
        (small, low), (large, high) = sorted(known.items())
        if low.lengths == high.lengths:
            return _mean(low, high, (heads.size - small) / (large - small))
    size, grid = min(known.items(), key=lambda pair: abs(pair[0] - heads.size))
    return grid if size == heads.size else _scaled(grid, heads.size / size)


def _nearest(sizes: Floats, size: int) -> list[int]:
    """The size itself, or the next below and above."""
    if size in sizes:
        return [size]
    return [int(near) for near in (*sizes[sizes < size][-1:], *sizes[sizes > size][:1])]


def _mean(low: Grid, high: Grid, share: float) -> Grid:
    shared = tuple(batch for batch in low.batches if batch in high.batches)
    mixed = tuple(
        tuple(float(a + (b - a) * share) for a, b in zip(low.row(batch), high.row(batch), strict=True))
        for batch in shared
    )
    longest = tuple(min(low.longest[low.batches.index(b)], high.longest[high.batches.index(b)]) for b in shared)
    return Grid(shared, low.lengths, mixed, longest, "interpolated")


def _scaled(grid: Grid, ratio: float) -> Grid:
    once = grid.seconds[0][0]  # the smallest problem is all launch
    seconds = tuple(tuple(once + (time - once) * ratio for time in row) for row in grid.seconds)
    return grid._replace(seconds=seconds, source="extrapolated")


def _shaped(table: Rows, heads: Heads, prompt: bool) -> Grid | None:
    """Of these heads, or of an equal share of them at so much larger a batch.

    Kernels run each KV head of each sequence apart: 32 heads of 4 sequences are 8 heads of 16.
    """
    for parts in _divisors(heads.kv):
        kv, query = heads.kv // parts, heads.query / parts
        found = _kv_rows(table, kv, query)
        if not len(found):
            continue
        counts = np.unique(found["num_heads"])
        source: Source = "measured" if parts == 1 and query in counts else "interpolated"
        if query in counts:
            batches, lengths, seconds = matrix(found.which(num_heads=query))
        else:
            below, above = counts[counts < query], counts[counts > query]
            if not len(below) or not len(above):
                continue
            share = (query - below[-1]) / (above[0] - below[-1])
            batches, lengths, seconds = _mixed(found, int(below[-1]), int(above[0]), share)
        return (prompt_grid if prompt else decode_grid)(batches / parts, lengths, seconds, source)
    return None


def _kv_rows(table: Rows, kv: int, query: float) -> Rows:
    """Rows with so many KV heads; without grouping the tables may say 0."""
    mask = table["num_key_value_heads"] == kv
    if kv == query:
        mask |= (table["num_key_value_heads"] == 0) & (table["num_heads"] == query)
    return table.where(mask)


def matrix(found: Rows) -> tuple[Floats, Floats, Floats]:
    """Batches, lengths and the least seconds at each; NaN where nothing was timed."""
    length = found["isl"] + found["step"]
    batches, lengths = np.unique(found["batch_size"]), np.unique(length)
    seconds = np.full((len(batches), len(lengths)), np.inf)
    place = np.searchsorted(batches, found["batch_size"]), np.searchsorted(lengths, length)
    np.minimum.at(seconds, place, found["latency"] * MILLISECOND)
    seconds[np.isinf(seconds)] = np.nan
    return batches.astype(float), lengths.astype(float), seconds


def _mixed(found: Rows, below: int, above: int, share: float) -> tuple[Floats, Floats, Floats]:
    """Between two counts of query heads."""
    (b0, s0, low), (b1, s1, high) = (matrix(found.which(num_heads=count)) for count in (below, above))
    batches, lengths = np.intersect1d(b0, b1), np.intersect1d(s0, s1)
    low = low[np.ix_(np.isin(b0, batches), np.isin(s0, lengths))]
    high = high[np.ix_(np.isin(b1, batches), np.isin(s1, lengths))]
    return batches, lengths, low + (high - low) * share


def _divisors(count: int) -> Iterator[int]:
    return (parts for parts in range(1, count + 1) if count % parts == 0)

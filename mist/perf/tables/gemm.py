"""Matrix products: seconds of (m x k) by (k x n) over m, for every stored dtype."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mist.model import BYTES_PER_ELEMENT
from mist.perf.tables.curve import Curve, Floats, Source, between, through
from mist.perf.tables.files import MILLISECOND, System, rows

GEMM_DTYPES: dict[str, tuple[str, ...]] = {
    "bf16": ("bfloat16",),
    "fp8": ("fp8", "fp8_block"),
    "fp8_block": ("fp8_block", "fp8"),  # a scale for every 128 x 128 weights
    "int8": ("int8_wo", "sq"),
    "int4": ("int4_wo",),
    "fp4": ("nvfp4",),
}
# vLLM's products of FP8 in blocks were timed with their launch by the host, which a CUDA graph does not wait for: even
# the smallest take 55 us (H100) to 360 us (GB300) there, and 3 to 6 us in SGLang's table of the same DeepGEMM kernels.
SAME_KERNELS = {("vllm", "fp8_block"): "sglang"}


class Grid(NamedTuple):
    """Times [m, n, k]; NaN where nothing was measured."""

    m: Floats
    n: Floats
    k: Floats
    seconds: Floats


def gemm(system: System, dtype: str, n: int, k: int) -> Curve:
    """Seconds over m, bilinear in n and k, and no less than reading the weights from memory takes.

    Timed over and over, weights that fit the L2 cache (96 MB on an L40S, 128 MB on an RTX PRO 6000) are not read from
    memory; in a model the weights of everything else pass between.

    The tables go to 65,536 and have a hole from 16,384 to 51,200: large matrices are interpolated over it, or
    extrapolated in proportion (a language head).
    """
    kind, path = _kind(system, dtype)
    grid = _grid(path, kind)
    wide, deep = max(n / grid.n[-1], 1.0), max(k / grid.k[-1], 1.0)
    (i, along_n), (j, along_k) = between(grid.n, n / wide), between(grid.k, k / deep)
    seconds, weight = np.zeros(len(grid.m)), np.zeros(len(grid.m))
    for di, share_n in ((0, 1 - along_n), (1, along_n)):
        for dj, share_k in ((0, 1 - along_k), (1, along_k)):
            corner = grid.seconds[:, i + di, j + dj]
            if share_n * share_k:
                known = ~np.isnan(corner)
                seconds[known] += share_n * share_k * corner[known]
                weight[known] += share_n * share_k
    known = weight > 1 - 1e-9
    if not known.any():
        raise system.refuse(f"{kind} GEMM with n = {n}, k = {k}")
    exact = along_n in (0, 1) and along_k in (0, 1)
    source: Source = "extrapolated" if wide * deep > 1 else "measured" if exact else "interpolated"
    read = n * k * BYTES_PER_ELEMENT[dtype.removesuffix("_block")] / system.memory_bandwidth
    return through(grid.m[known], sustained(grid.m[known], seconds[known] * wide * deep), source).at_least(read)


def sustained(m: Floats, seconds: Floats) -> Floats:
    """Times no shorter than at the rate of the largest products (the median of three).

    A middling product that is timed alone ends before the device reaches its power limit and lowers its clocks; in
    a prompt step it follows others like it, and runs at the clocks of the largest, which are timed for longest.
    """
    rate = float(np.median(seconds[-3:] / m[-3:]))
    return np.maximum(seconds, m * rate)


def _kind(system: System, dtype: str) -> tuple[str, Path]:
    fewest = 2 if system.own else 4  # fewer widths are a remainder of another kernel; one's own grids begin with three
    for kind in GEMM_DTYPES.get(dtype, ()):
        other = "" if system.own else SAME_KERNELS.get((system.kernels, kind), "")
        for path in system.newest("gemm", "gemm_perf", other):
            if len(np.unique(rows(path, gemm_dtype=kind)["n"])) >= fewest:
                return kind, path
    raise system.refuse(f"{dtype} GEMM")


@lru_cache(8)
def _grid(path: Path, kind: str) -> Grid:
    found = rows(path, gemm_dtype=kind)
    m, n, k = (np.unique(found[name]).astype(float) for name in "mnk")
    seconds = np.full((len(m), len(n), len(k)), np.inf)
    place = tuple(np.searchsorted(axis, found[name]) for axis, name in zip((m, n, k), "mnk", strict=True))
    np.minimum.at(seconds, place, found["latency"] * MILLISECOND)
    seconds[np.isinf(seconds)] = np.nan
    timed = np.isfinite(seconds).any(axis=0)
    wide, deep = (
        timed.sum(axis=axis) > timed.shape[axis] / 2 for axis in (1, 0)
    )  # a few sizes were timed for one model
    return Grid(m, n[wide], k[deep], seconds[:, wide][:, :, deep])


def quantisation(system: System, k: int) -> Curve | None:
    """Seconds to scale m rows of k activations to FP8, over m; None where the kernels have no table of it."""
    paths = system.newest("quantize", "scale_matrix_perf")
    if not paths:
        return None
    found = rows(paths[0], quant_dtype="fp8")
    widths, m = np.unique(found["k"]), np.unique(found["m"])
    index, along = between(widths.astype(float), k)
    both = [found.which(k=width) for width in widths[index : index + 2]]
    low, high = (np.interp(m, np.sort(part["m"]), part["latency"][np.argsort(part["m"])]) for part in both)
    return through(
        m, (low * (1 - along) + high * along) * MILLISECOND, "measured" if along in (0, 1) else "interpolated"
    )

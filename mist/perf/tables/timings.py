"""What was timed of routed experts: shapes, cuts and kernels in the rows of a table."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mist.perf.tables.curve import envelope
from mist.perf.tables.files import MILLISECOND, Column, Rows, System, rows
from mist.perf.tables.grouped import FEWEST, Shape, Timed

# Hidden size and width of the experts without a gate matrix that were timed (Nemotron 3; kernel source
# moe_torch_flow_nongated in the tables of TensorRT-LLM 1.3): other engines' tables do not say which they timed.
UNGATED = {(2688, 1856), (1024, 2688), (4096, 2688), (2048, 5120), (8192, 5120)}
SIZES = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size")


def shapes(system: System, kernels: str, kind: str, ep: int, distribution: str) -> list[Timed]:
    """All that were timed with experts in so many groups, of the newest version that has several sizes."""
    timed: list[Timed] = []
    for path in system.newest("moe", "moe_perf", kernels):
        found = timings(rows(path, moe_dtype=kind, moe_ep_size=ep, distribution=distribution))
        if _families(found) > _families(timed):
            timed = found
        if _families(timed) >= FEWEST:
            break
    return timed


def timings(found: Rows) -> list[Timed]:
    """All shapes and cuts in the rows of one dtype, distribution and number of groups."""
    found = found.where(np.isfinite(found["latency"]) & (found["latency"] > 0))
    if not len(found):
        return []
    sizes = np.stack([found[name].astype(np.int64) for name in SIZES], axis=1)
    keys, place = np.unique(sizes, axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    ends = np.searchsorted(place.ravel()[order], np.arange(1, len(keys)))
    parts = zip(keys, np.split(order, ends), strict=True)
    return [_one(found, key, own) for key, own in parts if (key[0], key[1]) not in UNGATED]


def usual(timed: Sequence[Timed]) -> list[Timed]:
    """Those of the kernel that most sizes were timed with: which an engine takes of an unseen shape is not known."""
    sizes = Counter(kernel for kernel, _ in {(each.kernel, each.shape.family) for each in timed})
    most = max(sorted(sizes), key=lambda kernel: sizes[kernel], default=0)
    return [each for each in timed if each.kernel == most]


def _families(timed: list[Timed]) -> int:
    return len({each.shape.family for each in timed})


def _one(found: Rows, key: Column, own: Column) -> Timed:
    counts, place = np.unique(found["num_tokens"][own].astype(float), return_inverse=True)
    seconds = np.full(len(counts), np.inf)
    np.minimum.at(seconds, place.ravel(), found["latency"][own] * MILLISECOND)
    kernel = int(np.bincount(found["kernel_source"][own]).argmax()) if "kernel_source" in found else 0
    *shape, cut = map(int, key)
    return Timed(Shape(*shape), cut, kernel, counts, envelope(seconds))

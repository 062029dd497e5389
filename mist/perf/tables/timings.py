"""What was timed of routed experts: shapes, cuts and kernels in the rows of a table."""

import numpy as np

from mist.perf.tables.curve import Floats, envelope
from mist.perf.tables.files import MILLISECOND, Rows, System, rows
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
    """All shapes and cuts in the rows of one dtype, distribution and number of groups.

    Only of the kernel that most sizes were timed with: which one an engine takes of an unseen shape is not known.
    """
    fine = np.isfinite(found["latency"]) & (found["latency"] > 0)
    found = found.where(fine)
    if not len(found):
        return []
    sizes = np.stack([found[name].astype(np.int64) for name in SIZES], axis=1)
    keys, place = np.unique(sizes, axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    starts = np.searchsorted(place.ravel()[order], np.arange(len(keys) + 1))
    kernels: dict[Shape, int] = {}
    timed = []
    for key, begin, end in zip(keys, starts[:-1], starts[1:], strict=True):
        own, shape = order[begin:end], Shape(*map(int, key[:4]))
        if shape.family in UNGATED:
            continue
        kernels.setdefault(shape, _most(found["kernel_source"][own]) if "kernel_source" in found else 0)
        timed.append(_one(shape, int(key[4]), found["num_tokens"][own], found["latency"][own]))
    usual = _usual(kernels)
    return [each for each in timed if kernels[each.shape] == usual]


def _families(timed: list[Timed]) -> int:
    return len({each.shape.family for each in timed})


def _one(shape: Shape, cut: int, tokens: Floats, latency: Floats) -> Timed:
    counts, place = np.unique(tokens.astype(float), return_inverse=True)
    seconds = np.full(len(counts), np.inf)
    np.minimum.at(seconds, place.ravel(), latency * MILLISECOND)
    return Timed(shape, cut, counts, envelope(seconds))


def _usual(kernels: dict[Shape, int]) -> int:
    """The kernel of most sizes."""
    sizes = {(kernel, shape.family) for shape, kernel in kernels.items()}
    return _most(np.array([kernel for kernel, _ in sorted(sizes)])) if sizes else 0


def _most(words: Floats) -> int:
    return int(np.bincount(words.astype(np.int64)).argmax())

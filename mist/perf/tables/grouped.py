"""Experts of a shape that nobody timed, from the shapes that were timed on the same device.

A grouped product of P token-expert pairs with the e experts of a device, each of ``matrices`` x hidden x width weights,
takes at best

    launch + max(touched weights / memory bandwidth, arithmetic / peak rate) + activations / memory bandwidth

with e (1 - exp(-P / e)) experts touched. How much longer a kernel really takes is read from those that were timed, as
a function of P / e, the pairs of an expert, at which both terms of the maximum grow alike with hidden x width x e.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mist.hardware import HardwareSpec
from mist.model import BYTES_PER_ELEMENT, Dtype
from mist.perf.tables.curve import Curve, Floats, through

# Of each kernel's dtype: what weights are stored as, and what is multiplied.
STORED: dict[str, tuple[Dtype, Dtype]] = {
    "bfloat16": ("bf16", "bf16"),
    "fp8": ("fp8", "fp8"),
    "fp8_block": ("fp8", "fp8"),
    "int4_wo": ("int4", "bf16"),
    "w4a16_mxfp4": ("fp4", "bf16"),
    "nvfp4": ("fp4", "fp4"),
    "w4a8_mxfp4_mxfp8": ("fp4", "fp8"),
}
ACTIVATION = 2.0  # bytes per element
FEWEST = 3  # of hidden size and width, for a shape of another
NEAREST = 3
OFFSET = 0.25  # octaves, so that the nearest does not count alone


class Shape(NamedTuple):
    """Experts of a layer."""

    hidden: int
    width: int
    chosen: int  # by a token
    experts: int

    def __str__(self) -> str:
        return f"{self.hidden} x {self.width}, {self.chosen} of {self.experts}"

    @property
    def family(self) -> tuple[int, int]:
        """Of one expert's matrices."""
        return self.hidden, self.width


class Timed(NamedTuple):
    """One shape, each expert cut ``cut`` ways: seconds over the tokens of the group."""

    shape: Shape
    cut: int
    kernel: int  # most of its timings are of
    tokens: Floats
    seconds: Floats


class Law(NamedTuple):
    """What no kernel of one dtype beats on a device."""

    launch: float  # s: the least that was timed of anything
    bandwidth: float  # bytes/s, published
    rate: float  # operations/s, published
    element: float  # bytes per weight
    groups: int  # the experts lie in
    matrices: int = 3  # of an expert: with a gate

    def time(self, shape: Shape, cut: int, tokens: Floats) -> Floats:
        """Seconds of one group's share, spread evenly."""
        width, here = shape.width / cut, shape.experts / self.groups
        pairs = tokens * shape.chosen / self.groups
        touched = -here * np.expm1(-pairs / here)
        weights = self.matrices * shape.hidden * width
        work = np.maximum(touched * weights * self.element / self.bandwidth, 2 * pairs * weights / self.rate)
        passed = pairs * (2 * shape.hidden + self.matrices * width) * ACTIVATION  # in, out, and between the products
        return np.asarray(self.launch + work + passed / self.bandwidth)


def law(hardware: HardwareSpec, kind: str, timed: Sequence[Timed], groups: int) -> Law:
    """Of kernels of this dtype on this device; what was timed has the launch."""
    stored, multiplied = STORED[kind]
    launch = min(float(each.seconds[0]) for each in timed)
    return Law(launch, hardware.memory_bandwidth, hardware.peak(multiplied), BYTES_PER_ELEMENT[stored], groups)


def suffices(timed: Sequence[Timed], shape: Shape) -> bool:
    """Whether this shape can be told from those: they are of several sizes, or of its own cut another way."""
    families = {each.shape.family for each in timed}
    return len(families) >= FEWEST or shape.family in families


def transferred(timed: Sequence[Timed], known: Law, own: Law, shape: Shape, cut: int) -> Curve:
    """Seconds over tokens: its ``own`` law, times what the nearest shapes took of theirs at as many pairs an expert.

    ``known`` is the law of what was timed. Nearest in the logarithms of hidden size, width on a device, experts and
    choices; three count, weighted by the inverse square of their distance (Shepard, 1968, "A two-dimensional
    interpolation function"). A shape that was timed (with a like kernel) stands for itself.
    """
    tokens = np.unique(np.concatenate([each.tokens for each in timed]))
    near = sorted(_closest_cuts(timed, shape, cut), key=lambda each: _distance(each, shape, cut))[:NEAREST]
    near = near[:1] if not _distance(near[0], shape, cut) else near
    weights = [(_distance(each, shape, cut) + OFFSET) ** -2 for each in near]
    shares = [_excess(each, known, tokens * (shape.chosen / shape.experts)) for each in near]
    excess = np.exp(np.average(shares, axis=0, weights=weights))
    return through(tokens, own.time(shape, cut, tokens) * excess, "transferred")


def _excess(each: Timed, known: Law, pairs: Floats) -> Floats:
    """Logarithm of the time over the law's, at so many token-expert pairs an expert; level beyond what was timed."""
    own = each.tokens * (each.shape.chosen / each.shape.experts)
    return np.interp(np.log(pairs), np.log(own), np.log(each.seconds / known.time(each.shape, each.cut, each.tokens)))


def _closest_cuts(timed: Sequence[Timed], shape: Shape, cut: int) -> list[Timed]:
    """Of every shape the cut that leaves it most like this one."""
    closest: dict[Shape, Timed] = {}
    for each in timed:
        known = closest.get(each.shape)
        if known is None or _distance(each, shape, cut) < _distance(known, shape, cut):
            closest[each.shape] = each
    return list(closest.values())


def _distance(each: Timed, shape: Shape, cut: int) -> float:
    """Octaves."""
    own = (each.shape.hidden, each.shape.width / each.cut, each.shape.chosen, each.shape.experts)
    wanted = (shape.hidden, shape.width / cut, shape.chosen, shape.experts)
    return float(np.linalg.norm(np.log2(own) - np.log2(wanted)))

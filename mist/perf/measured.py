"""Step times composed of operators that were timed on the device (aiconfigurator-core, Apache-2.0).

T = layers x [ projections(tokens) + MLP or experts(tokens) + attention per chunk(chunk, past)
               + decode attention(batch, context) + collectives(tokens) + norms(tokens) ]
    + language head(rows) + the engine's overheads
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from mist.errors import InputError
from mist.perf.attended import Attention, Chunks
from mist.perf.base import Explained, Replica, StepModel, StepShape, Stretch, Table, overhead
from mist.perf.launched import launched
from mist.perf.scanned import Scanned
from mist.perf.tables.curve import total
from mist.perf.tables.deepep import Exchange
from mist.perf.tables.experts import Distribution
from mist.perf.tables.operators import Asked, Operators
from mist.perf.tables.store import stored
from mist.units import Seconds


@dataclass(frozen=True)
class Measured:
    """Operator tables for what was timed; norms and links that were not are analytical.

    ``distribution`` is how unevenly the router loads the experts that were timed. ``kernel_time`` is the time of the
    smallest kernel, ``bandwidth_efficiency`` the share of memory bandwidth that norms reach, ``matmul_efficiency`` that
    of the peak rate at which a device draws full power (no time depends on it), ``link_efficiency``
    that of links over which nothing was timed (between nodes, between pipeline stages). With ``dp`` > 1 tokens reach
    their experts by ``exchange``: all-gather and reduce-scatter, or DeepEP in one of its modes (vLLM
    documentation, "Expert Parallel Deployment", all2all backends).
    """

    distribution: Distribution
    kernel_time: Seconds
    bandwidth_efficiency: float
    matmul_efficiency: float
    link_efficiency: float
    exchange: Exchange = "gather"

    def __post_init__(self) -> None:
        if self.kernel_time < 0:
            raise InputError("kernel_time", self.kernel_time, "must not be negative")
        for field in ("bandwidth_efficiency", "matmul_efficiency", "link_efficiency"):
            if not 0 < getattr(self, field) <= 1:
                raise InputError(field, getattr(self, field), "must lie in (0, 1]")

    def of(self, replica: Replica) -> StepModel:
        if self.exchange != "gather" and replica.dp == 1:
            raise InputError("perf.exchange", self.exchange, "has no effect with dp = 1", ["gather"])
        return launched(self._timed, replica, replica.engine.kernel_factor)

    def asked(self, replica: Replica) -> Asked:
        """What is read from the tables for it."""
        return Asked(
            replica,
            self.distribution,
            self.bandwidth_efficiency,
            self.kernel_time,
            self.link_efficiency,
            self.exchange,
        )

    def _timed(self, replica: Replica) -> "MeasuredSteps":
        return MeasuredSteps(stored(self.asked(replica)), replica, self._merge(replica))

    def _merge(self, replica: Replica) -> Callable[[int], float]:
        """Seconds of merging the outputs of cascade attention in one layer, by sequences: one small kernel."""
        model, bandwidth = replica.model, replica.hardware.memory_bandwidth * self.bandwidth_efficiency
        output = 2 * model.heads / replica.tp * model.head_dim  # bytes: 16 bits per element
        return lambda decodes: self.kernel_time + 3 * decodes * output / bandwidth


class MeasuredSteps:
    """Step times of one stage of a replica, on the busiest device of its group."""

    def __init__(self, found: Operators, replica: Replica, merge: Callable[[int], float]) -> None:
        self._found, self._engine, self._dp, self._merge = found, replica.engine, replica.dp, merge
        self._local = Table(total(list(found.local.values())).__call__)
        self._group = Table(total(list(found.group.values())).__call__)
        rows = replica.engine.computed
        self._linear = Table(lambda tokens: self._local[rows(tokens)] + self._group[rows(tokens)])
        self._computed = rows
        self._head = Table(self._head_time)
        self._kinds: tuple[Attention | Scanned, ...] = tuple(Attention(layers) for layers in found.attention)
        if found.scan is not None:
            self._kinds = (*self._kinds, Scanned(found.scan))
        self.uneven = any(kind.uneven for kind in self._kinds)  # whether the longest sequence counts
        self._graph = rows if self.uneven else _none  # sequences that decode kernels are launched for, where it matters

    def step_time(self, shape: StepShape) -> float:
        decodes, context, chunks, drafted, longest, shared = shape
        if self._dp > 1:
            return self._spread_time(shape)
        time = self._engine.step_overhead
        tokens = decodes + drafted
        if chunks:
            time += self._engine.mixed_overhead + self._prompts(chunks)
            tokens += sum(chunk for chunk, _ in chunks)
        if shared:
            time += self._cascade(decodes, context, longest, shared)
            time += 0.0 if chunks else self._engine.cascade_overhead
        elif drafted:
            time += self._verification(decodes, context, drafted, longest)
        elif decodes:
            time += self._decoding(decodes, context, longest, 0 if chunks else self._graph(decodes))
        rows = decodes + len(chunks)
        if drafted:
            time -= drafted * self._engine.request_overhead
        return time + self._linear[tokens] + self._head[rows + drafted]

    def _spread_time(self, shape: StepShape) -> float:
        """Requests are spread over ``dp`` copies of attention; the busiest keeps the others waiting."""
        decodes, context = self._share(shape.decodes, shape.context)
        prompts, busiest = self._fullest(shape.chunks)
        time = self._engine.step_overhead + self._prompts(busiest)
        time += self._engine.mixed_overhead if shape.chunks else 0.0
        launched = 0 if shape.chunks else self._graph(decodes)
        time += self._decoding(decodes, context, shape.longest, launched) if decodes else 0.0
        time += self._spread(decodes + prompts, shape.tokens)
        return time + self._head[-(-shape.requests // self._dp)]

    def _spread(self, most: int, tokens: int) -> float:
        """Copies of attention, ``most`` tokens in the fullest, and the experts of all their ``tokens``."""
        return self._local[self._computed(most)] + self._group[self._computed(tokens, self._dp)]

    def _fullest(self, chunks: Chunks) -> tuple[int, Chunks]:
        """Most prompt tokens of a copy, and the chunks of the copy whose attention takes longest."""
        if self._dp == 1:
            return sum(chunk for chunk, _ in chunks), chunks
        ranks: list[list[tuple[int, int]]] = [[] for _ in range(self._dp)]
        for chunk in sorted(chunks, reverse=True):  # longest first, to whom has least
            min(ranks, key=lambda rank: sum(tokens for tokens, _ in rank)).append(chunk)
        tokens = max(sum(chunk for chunk, _ in rank) for rank in ranks)
        return tokens, max((tuple(rank) for rank in ranks), key=self._prompts)

    def _share(self, decodes: int, context: float) -> tuple[int, float]:
        """The decodes of the fullest copy and their context."""
        share = -(-decodes // self._dp)
        return share, context * share / max(decodes, 1)

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:
        share, cached = self._share(decodes, context) if self._dp > 1 else (decodes, float(context))
        linear = self._spread(share, decodes) if self._dp > 1 else self._linear[decodes]
        first = self._engine.step_overhead + linear + self._head[share]
        slope, steps, launched = 0.0, inf, 0 if shared else self._graph(share)
        if shared:
            first += self._prefix(decodes, shared) + self._engine.cascade_overhead
        for kind in self._kinds:
            apart = 0 if kind.windowed else shared
            time, own, left = kind.stretch(share, cached - share * apart, max(longest - apart, 0), launched)
            first, slope = first + time, slope + own
            steps = min(steps, left)
        return Stretch(steps, first, slope)

    def explain(self, shape: StepShape) -> tuple[Explained, ...]:
        """Every operator of this step: seconds, and how they are known; the engine's overheads come last."""
        decodes, context = self._share(shape.decodes, shape.context)
        most, prompts = self._fullest(shape.chunks)
        tokens = decodes + shape.drafted + most
        rows = -(-(shape.requests + shape.drafted) // self._dp)
        parts = [
            Explained(name, curve(count), curve.source_at(count))
            for curves, count in (
                (self._found.local, self._computed(tokens)),
                (self._found.group, self._computed(shape.tokens, self._dp)),
                (self._found.head, rows),
            )
            for name, curve in curves.items()
        ]
        if shape.shared:
            parts.extend(self._explain_prefix(decodes, shape.shared))
        launched = 0 if shape.chunks or shape.drafted or shape.shared else self._graph(decodes)
        for kind in self._kinds:
            apart = 0 if kind.windowed else shape.shared
            more = {"drafted": shape.drafted, "longest": max(shape.longest - apart, 0), "launched": launched}
            parts.extend(kind.explain(decodes, context - decodes * apart, prompts, **more))
        return (*parts, Explained("engine overheads", overhead(self._engine, shape, self._dp), "fitted"))

    def _explain_prefix(self, decodes: int, shared: int) -> Iterator[Explained]:
        for kind in self._kinds:
            if isinstance(kind, Attention) and not kind.windowed:
                yield kind.explain_cascade(decodes, shared)
                yield Explained("merging with the rest", kind.layers * self._merge(decodes), "analytical")

    def _head_time(self, rows: int) -> float:
        seconds = sum(curve(rows) for curve in self._found.head.values())
        return seconds + rows * self._engine.request_overhead

    def _prompts(self, chunks: Chunks) -> float:
        time = 0.0
        if chunks:
            for kind in self._kinds:
                time += kind.prompts(chunks)
        return time

    def _decoding(self, decodes: int, context: float, longest: int, launched: int) -> float:
        """``launched``: of the CUDA graph that a step without prompts replays (0: none is)."""
        time = 0.0
        for kind in self._kinds:
            time += kind.decode(decodes, context, longest, launched)
        return time

    def _cascade(self, decodes: int, context: float, longest: int, shared: int) -> float:
        """Decode attention where every sequence begins with the same ``shared`` tokens, read once."""
        time = self._prefix(decodes, shared)
        for kind in self._kinds:
            apart = 0 if kind.windowed else shared
            time += kind.decode(decodes, context - decodes * apart, max(longest - apart, 0))
        return time

    def _prefix(self, decodes: int, shared: int) -> float:
        """Attention to what is read once, and merging it with the rest."""
        return sum(
            kind.cascade(decodes, shared) + kind.layers * self._merge(decodes)
            for kind in self._kinds
            if isinstance(kind, Attention) and not kind.windowed
        )

    def _verification(self, decodes: int, context: float, drafted: int, longest: int) -> float:
        return sum(kind.verification(decodes, context, drafted, longest) for kind in self._kinds)


def _none(decodes: int) -> int:  # noqa: ARG001
    return 0

"""Analytical step times: per operator, the larger of compute and memory time (Williams et al., CACM 52(4), 2009)."""

from dataclasses import dataclass, fields
from functools import partial
from math import floor, inf
from typing import NamedTuple

from mist.errors import InputError
from mist.model import BYTES_PER_ELEMENT, ModelSpec
from mist.perf.base import Explained, Replica, StepModel, StepShape, Stretch, Table, overhead
from mist.perf.cascade import MERGED
from mist.perf.collective import allreduce, exchange, fabric
from mist.perf.experts import busiest_load, destinations, touched
from mist.perf.launched import launched
from mist.perf.recurrence import recurrence
from mist.units import Seconds

ACTIVATION = 2.0  # bytes per element: activations are 16 bits wide in every engine modelled here


@dataclass(frozen=True)
class Roofline:
    """Shares of the published peaks that kernels reach.

    ``layer_time`` is what a layer takes however little there is to compute: its kernels start one after another, and
    the first and last of their thread blocks leave the device half empty. ``expert_skew`` is the Zipf exponent of the
    experts' popularity, where they are spread over devices; 0 leaves only chance to unbalance them.
    """

    matmul_efficiency: float
    attention_efficiency: float
    bandwidth_efficiency: float
    link_efficiency: float
    layer_time: Seconds = 0.0
    expert_skew: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layer_time", "expert_skew"):
            if getattr(self, name) < 0:
                raise InputError(name, getattr(self, name), "must not be negative")
        for field in fields(self)[:4]:
            share = getattr(self, field.name)
            if not 0 < share <= 1:
                raise InputError(field.name, share, "must lie in (0, 1]")

    def of(self, replica: Replica) -> StepModel:
        return launched(partial(RooflineSteps, self), replica)


class RooflineSteps:
    """Step times of one stage of a replica, on the busiest device of its group."""

    def __init__(self, efficiency: Roofline, replica: Replica) -> None:
        model, hardware, tp, engine = replica.model, replica.hardware, replica.tp, replica.engine
        self._model, self._tp, self._engine, self._hardware = model, tp, engine, hardware
        self._dp, self._ep, self._group, self._skew = replica.dp, replica.ep, replica.group, efficiency.expert_skew
        expert_dtype = model.expert_dtype or model.weight_dtype
        self._matmul = hardware.peak(model.weight_dtype) * efficiency.matmul_efficiency
        self._expert_matmul = hardware.peak(expert_dtype) * efficiency.matmul_efficiency
        self._memory = hardware.memory_bandwidth * efficiency.bandwidth_efficiency
        self._links = fabric(replica, efficiency.link_efficiency)
        self._weight = BYTES_PER_ELEMENT[model.weight_dtype]
        self._expert = BYTES_PER_ELEMENT[expert_dtype]
        wide = self._weight >= ACTIVATION  # the head stays in 16 bits when the layers are quantised
        self._head_weight = self._weight if wide else ACTIVATION
        self._head_matmul = hardware.peak(model.weight_dtype if wide else "bf16") * efficiency.matmul_efficiency
        self._fixed = model.layers * efficiency.layer_time
        self._linear = Table(self._linear_time)
        self._spread_linear: dict[tuple[int, int], float] = {}
        self._head = Table(self._head_time)
        self._scan = recurrence(replica, hardware.peak("bf16") * efficiency.attention_efficiency, self._memory)
        self._attention_kinds = tuple(self._attention_kind(efficiency, *kind) for kind in _layer_kinds(model))

    def _attention_kind(self, efficiency: Roofline, layers: int, window: int) -> "_Attention":
        model, tp, bandwidth = self._model, self._tp, self._memory
        key, value, kv = model.head_dim, model.head_dim, 2 * max(1, model.kv_heads // tp) * model.head_dim
        if model.kv_latent:  # absorbed MLA: every head reads the one latent (arXiv:2405.04434, section 2.1.2)
            key, value, kv = (
                model.kv_latent + model.rope_head_dim,
                model.kv_latent,
                model.kv_latent + model.rope_head_dim,
            )
        heads = model.heads / tp
        peak = self._hardware.peak("bf16") * efficiency.attention_efficiency
        return _Attention(
            window,
            pair=layers * 2 * heads * (key + value) / peak,  # scores, then weighted values
            cached=layers * kv * BYTES_PER_ELEMENT[model.kv_dtype] / bandwidth,
            query=layers * heads * (key + value) * ACTIVATION / bandwidth,
        )

    def step_time(self, shape: StepShape) -> float:
        if self._dp > 1:
            return self._spread_time(shape)
        decodes, context, chunks, drafted, _, shared = shape
        requests = decodes + len(chunks)
        tokens, time = decodes, 0.0
        for chunk, past in chunks:
            tokens += chunk
            time += self._chunk_attention(chunk, past)
        engine = self._engine
        if chunks:
            time += engine.mixed_overhead
        if drafted:
            time += self._verification(decodes, context, drafted)
            return time + self._linear[tokens + drafted] + self._rows_time(requests, drafted)
        if shared:
            time += self._cascade_attention(decodes, context, shared) + (0.0 if chunks else engine.cascade_overhead)
        elif decodes:
            time += self._decode_attention(decodes, context)
        return time + self._linear[tokens] + self._head[requests] + engine.step_overhead

    def _spread_time(self, shape: StepShape) -> float:
        """Requests are spread over ``dp`` copies of attention; the busiest keeps the others waiting."""
        decodes, context = self._share(shape.decodes, shape.context)
        time = self._decode_attention(decodes, context) if decodes else 0.0
        ranks = [(0, 0.0)] * self._dp  # prompt tokens and seconds of attention
        for chunk, past in sorted(shape.chunks, reverse=True):  # longest first, to whom has least
            tokens, busy = min(ranks)
            ranks.remove((tokens, busy))
            ranks.append((tokens + chunk, busy + self._chunk_attention(chunk, past)))
        key = shape.tokens, decodes + max(tokens for tokens, _ in ranks)
        linear = self._spread_linear.get(key)
        if linear is None:
            linear = self._spread_linear[key] = self._count_linear(*key)
        engine = self._engine
        time += max(busy for _, busy in ranks) + linear + self._head[-(-shape.requests // self._dp)]
        return time + engine.step_overhead + (engine.mixed_overhead if shape.chunks else 0.0)

    def _share(self, decodes: int, context: float) -> tuple[int, float]:
        """The decodes of the fullest copy and their context."""
        share = -(-decodes // self._dp)
        return share, context * share / max(decodes, 1)

    def explain(self, shape: StepShape) -> tuple[Explained, ...]:
        """Everything but the engine's overheads is analytical."""
        fitted = overhead(self._engine, shape, self._dp)
        analytical = Explained("roofline", self.step_time(shape) - fitted, "analytical")
        return analytical, Explained("engine overheads", fitted, "fitted")

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:  # noqa: ARG002
        slope, until, cached = 0.0, inf, float(context)
        if self._dp > 1:
            first = self._spread_time(StepShape(decodes, context))
            decodes, cached = self._share(decodes, context)
        elif shared:
            first = self.step_time(StepShape(decodes, context, shared=shared))
        else:
            first = self._decode_attention(decodes, context) + self._linear[decodes] + self._head[decodes]
            first += self._engine.step_overhead
        for kind in self._attention_kinds:
            full = decodes * kind.window if kind.window else inf  # from there on every window is full
            if cached < full:
                once = 0 if kind.window else shared * decodes  # tokens that are read apart
                turn = kind.turn(decodes) - decodes + once  # from there on compute bounds
                slope += kind.cached if cached < turn else kind.pair
                until = min(until, full, turn if cached < turn else inf)
        steps = inf if until == inf else floor((until - cached) / decodes) + 1
        return Stretch(steps, first, slope * decodes)

    def _linear_time(self, tokens: int) -> float:
        """Everything that sees tokens one by one: projections, MLP or experts, norms, collectives."""
        return self._count_linear(tokens, tokens)

    def _count_linear(self, tokens: int, local: int) -> float:
        """``tokens`` in the experts, of which ``local`` pass the busiest copy of the rest."""
        model, tp = self._model, self._tp
        dense = model.layers - model.sparse_layers
        mlp = self._weights_time(local, model.dense_mlp_parameters / tp) if dense else 0.0
        attention = model.attention_layers * self._weights_time(local, model.attention_parameters / tp)
        time = self._fixed + attention + dense * mlp
        if model.linear_layers:
            time += model.linear_layers * self._weights_time(local, model.linear_parameters / tp)
        if model.sparse_layers:
            time += model.sparse_layers * self._experts_time(tokens, local)
        width = (
            model.intermediate
            if dense
            else (model.experts_per_token + model.shared_experts) * model.expert_intermediate
        )
        elementwise = (8 * model.hidden + 3 * width / tp) * ACTIVATION * local  # two add-norms, one gated activation
        reduce = allreduce(self._links, local * model.hidden * ACTIVATION, tp)
        if self._dp > 1:  # a sparse layer's second all-reduce is an exchange between the copies
            sparse = model.sparse_layers * (self._exchange_time(tokens) - reduce)
            return time + model.layers * (elementwise / self._memory + 2 * reduce) + sparse
        return time + model.layers * (elementwise / self._memory + 2 * reduce)

    def _experts_time(self, tokens: int, local: int) -> float:
        """One sparse layer's routed and shared experts."""
        model, ep = self._model, self._ep
        if ep == 1 and self._dp == 1:
            # a token picks k of E at random: E (1 - (1 - k/E)^tokens) distinct experts are read
            miss = (1 - model.experts_per_token / model.experts) ** tokens
            read = model.experts * (1 - miss) * self._expert + model.shared_experts * self._weight
            routed = model.experts_per_token / self._expert_matmul + model.shared_experts / self._matmul
            each = model.expert_parameters / self._tp
            return self._time(2 * tokens * each * routed, read * each)
        each = model.expert_parameters * ep / self._group
        load = busiest_load(model, tokens, ep, self._skew)
        routed = self._time(
            2 * load * each / self._expert_matmul, touched(model, tokens, ep, load) * each * self._expert
        )
        shared = model.shared_experts * model.expert_parameters / self._tp
        return routed + (self._weights_time(local, shared) if shared else 0.0)

    def _exchange_time(self, tokens: int) -> float:
        """Dispatch to the experts' devices, combine, and gather what a tensor-parallel copy needs whole."""
        model, group, ep = self._model, self._group, self._ep
        row = model.hidden * ACTIVATION
        load = busiest_load(model, tokens, ep, self._skew) * ep / (tokens * model.experts_per_token)
        reach = destinations(model, ep) * group / ep * (group - 1) / group
        own = -(-tokens // group)
        gather = exchange(self._links, own * row * (self._tp - 1), self._tp)
        return 2 * exchange(self._links, own * row * reach * load, group) + gather

    def _head_time(self, requests: int) -> float:
        """The language head and what the engine does for each request."""
        weights = self._model.embedding_parameters / self._tp if self._model.kind == "decoder" else 0.0
        time = self._time(2 * requests * weights / self._head_matmul, weights * self._head_weight)
        return time + requests * self._engine.request_overhead

    def _weights_time(self, tokens: int, weights: float) -> float:
        """A layer's matrices with ``weights`` elements in all, over ``tokens`` rows of activations."""
        traffic = weights * self._weight + 2 * tokens * self._model.hidden * ACTIVATION
        return self._time(2 * tokens * weights / self._matmul, traffic)

    def _time(self, compute: float, traffic: float) -> float:
        return max(compute, traffic / self._memory)

    def _chunk_attention(self, chunk: int, past: int) -> float:
        time = self._scan.prompt(chunk)
        for window, pair, cached, query in self._attention_kinds:
            seen, pairs = past + chunk, chunk * past + chunk * (chunk + 1) / 2
            if window:
                seen, pairs = min(seen, chunk + window), min(pairs, float(chunk * window))
            compute, traffic = pairs * pair, seen * cached + chunk * query
            time += compute if compute > traffic else traffic
        return time

    def _decode_attention(self, decodes: int, context: float) -> float:
        time = decodes * self._scan.state
        for window, pair, cached, query in self._attention_kinds:
            seen = (min(context, decodes * window) if window else context) + decodes
            compute, traffic = seen * pair, seen * cached + decodes * query
            time += compute if compute > traffic else traffic
        return time

    def _cascade_attention(self, decodes: int, context: float, shared: int) -> float:
        """Decode attention where every sequence begins with the same ``shared`` tokens, read once (perf/cascade.py).

        Layers with a window or a state do as they always do.
        """
        time = decodes * self._scan.state
        for window, pair, cached, query in self._attention_kinds:
            seen = context + decodes - decodes * shared
            if window:
                seen = min(context, decodes * window) + decodes
            else:
                time += max(decodes * shared * pair, shared * cached + decodes * query) + MERGED * decodes * query
            time += max(seen * pair, seen * cached + decodes * query)
        return time

    def _verification(self, decodes: int, context: int, drafted: int) -> float:
        """Attention of sequences that verify drafts, the same number each: a cached token is read once for all."""
        width, time = 1 + drafted / decodes, decodes * self._scan.state + drafted * self._scan.token
        for window, pair, cached, query in self._attention_kinds:
            seen, pairs = context + decodes * width, width * context + decodes * width * (width + 1) / 2
            if window:
                seen, pairs = min(seen, decodes * (window + width)), min(pairs, decodes * width * window)
            time += max(pairs * pair, seen * cached + decodes * width * query)
        return time

    def _rows_time(self, requests: int, drafted: int) -> float:
        """The language head over drafted tokens too, and the engine's overheads, which they do not add to."""
        head = self._head[requests + drafted] - drafted * self._engine.request_overhead
        return head + self._engine.step_overhead


class _Attention(NamedTuple):
    """Attention of the layers of one kind: seconds per unit of work on one device."""

    window: int  # tokens; 0 is full attention
    pair: float  # compute of one query-key pair
    cached: float  # reading one cached token
    query: float  # reading one query and writing its output

    def turn(self, decodes: int) -> float:
        """Tokens seen by that many queries from which on compute takes longer than memory."""
        return decodes * self.query / (self.pair - self.cached) if self.pair > self.cached else inf


def _layer_kinds(model: ModelSpec) -> list[tuple[int, int]]:
    """How many layers see all tokens (window 0) and how many only a window of them."""
    kinds = [(model.attention_layers - model.window_layers, 0), (model.window_layers, model.window)]
    return [(layers, window) for layers, window in kinds if layers]

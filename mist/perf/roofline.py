"""Analytical step times: per operator, the larger of compute and memory time (Williams et al., CACM 52(4), 2009)."""

from dataclasses import dataclass, fields
from math import floor, inf

from mist.errors import InputError
from mist.model import BYTES_PER_ELEMENT
from mist.perf.base import AffineMax, Replica, StepShape, Stretch
from mist.perf.collective import allreduce_time

ACTIVATION = 2.0  # bytes per element: activations are 16 bits wide in every engine modelled here


@dataclass(frozen=True)
class Roofline:
    """Shares of the published peaks that kernels reach."""

    matmul_efficiency: float
    attention_efficiency: float
    bandwidth_efficiency: float
    link_efficiency: float

    def __post_init__(self) -> None:
        for field in fields(self):
            share = getattr(self, field.name)
            if not 0 < share <= 1:
                raise InputError(field.name, share, "must lie in (0, 1]")

    def of(self, replica: Replica) -> "RooflineSteps":
        return RooflineSteps(self, replica)


class RooflineSteps:
    """Step times of one replica, per device of its tensor-parallel group."""

    def __init__(self, efficiency: Roofline, replica: Replica) -> None:
        model, hardware, tp, engine = replica
        self._model, self._tp, self._engine, self._hardware = model, tp, engine, hardware
        expert_dtype = model.expert_dtype or model.weight_dtype
        self._matmul = hardware.peak(model.weight_dtype) * efficiency.matmul_efficiency
        self._expert_matmul = hardware.peak(expert_dtype) * efficiency.matmul_efficiency
        self._attention = hardware.peak("bf16") * efficiency.attention_efficiency
        self._memory = hardware.memory_bandwidth * efficiency.bandwidth_efficiency
        self._link = hardware.scale_up_bandwidth * efficiency.link_efficiency
        self._weight = BYTES_PER_ELEMENT[model.weight_dtype]
        self._expert = BYTES_PER_ELEMENT[expert_dtype]
        wide = self._weight >= ACTIVATION  # the head stays in 16 bits when the layers are quantised
        self._head_weight = self._weight if wide else ACTIVATION
        self._head_matmul = hardware.peak(model.weight_dtype if wide else "bf16") * efficiency.matmul_efficiency
        self._linear: dict[int, float] = {}
        self._head: dict[int, float] = {}
        self._decode_lines: dict[int, AffineMax] = {}
        key, value = model.head_dim, model.head_dim
        kv = 2 * max(1, model.kv_heads // tp) * model.head_dim
        if model.kv_latent:  # absorbed MLA: every head reads the one latent (arXiv:2405.04434, section 2.1.2)
            kv, key, value = (
                model.kv_latent + model.rope_head_dim,
                model.kv_latent + model.rope_head_dim,
                model.kv_latent,
            )
        heads = model.heads / tp
        self._kv_bytes = kv * BYTES_PER_ELEMENT[model.kv_dtype]  # per token and layer on one device
        self._qo_bytes = heads * (key + value) * ACTIVATION
        self._pair_ops = 2 * heads * (key + value)  # per query-key pair: scores, then weighted values
        self._layer_kinds = tuple(  # (how many layers, tokens each sees)
            (count, window)
            for count, window in ((model.layers - model.window_layers, 0), (model.window_layers, model.window))
            if count
        )

    def step_time(self, shape: StepShape) -> float:
        requests = shape.decodes + len(shape.chunks)
        tokens, time = shape.decodes, 0.0
        for chunk, past in shape.chunks:
            tokens += chunk
            time += self._chunk_attention(chunk, past)
        engine = self._engine
        if shape.chunks:
            time += engine.mixed_overhead
        if shape.decodes:
            time += self._decode_attention(shape.decodes, shape.context)
        return time + self._linear_time(tokens) + self._head_time(requests) + engine.step_overhead

    def decode_stretch(self, decodes: int, context: int) -> Stretch:
        first = self.step_time(StepShape(decodes, context))
        slope, until = 0.0, inf
        line = self._decode_line(decodes)
        for layers, window in self._layer_kinds:
            full = decodes * window if window else inf  # from there on every window is full
            if context < full:
                slope += layers * line.slope(context)
                until = min(until, *(b for b in (line.crossing(), full, inf) if b > context))
        steps = inf if until == inf else floor((until - context) / decodes) + 1
        return Stretch(steps, first, slope * decodes)

    def _linear_time(self, tokens: int) -> float:
        """Everything that sees tokens one by one: projections, MLP or experts, norms, collectives."""
        time = self._linear.get(tokens)
        if time is None:
            time = self._linear[tokens] = self._count_linear(tokens)
        return time

    def _count_linear(self, tokens: int) -> float:
        model, tp = self._model, self._tp
        dense = model.layers - model.sparse_layers
        mlp = self._weights_time(tokens, tokens, model.dense_mlp_parameters / tp) if dense else 0.0
        time = model.layers * self._weights_time(tokens, tokens, model.attention_parameters / tp) + dense * mlp
        if model.sparse_layers:
            # a token picks k of E at random: E (1 - (1 - k/E)^tokens) distinct experts are read
            miss = (1 - model.experts_per_token / model.experts) ** tokens
            touched = model.experts * (1 - miss) * self._expert + model.shared_experts * self._weight
            routed = model.experts_per_token / self._expert_matmul + model.shared_experts / self._matmul
            each = model.expert_parameters / tp
            time += model.sparse_layers * self._time(2 * tokens * each * routed, touched * each)
        width = (
            model.intermediate
            if dense
            else (model.experts_per_token + model.shared_experts) * model.expert_intermediate
        )
        elementwise = (8 * model.hidden + 3 * width / tp) * ACTIVATION * tokens  # two add-norms, one gated activation
        allreduce = allreduce_time(tokens * model.hidden * ACTIVATION, tp, self._link, self._hardware.scale_up_latency)
        return time + model.layers * (elementwise / self._memory + 2 * allreduce)

    def _head_time(self, requests: int) -> float:
        time = self._head.get(requests)
        if time is None:
            model = self._model
            weights = model.embedding_parameters / self._tp if model.kind == "decoder" else 0.0
            time = self._time(2 * requests * weights / self._head_matmul, weights * self._head_weight)
            time += requests * self._engine.request_overhead
            self._head[requests] = time
        return time

    def _weights_time(self, tokens: int, rows: int, weights: float) -> float:
        """A layer's matrices with ``weights`` elements in all, over ``rows`` rows of activations."""
        traffic = weights * self._weight + 2 * rows * self._model.hidden * ACTIVATION
        return self._time(2 * tokens * weights / self._matmul, traffic)

    def _time(self, compute: float, traffic: float) -> float:
        return max(compute, traffic / self._memory)

    def _chunk_attention(self, chunk: int, past: int) -> float:
        time = 0.0
        for layers, window in self._layer_kinds:
            seen = past + chunk if not window else min(past + chunk, chunk + window)
            pairs = chunk * past + chunk * (chunk + 1) / 2
            if window:
                pairs = min(pairs, float(chunk * window))
            traffic = seen * self._kv_bytes + chunk * self._qo_bytes
            time += layers * self._time(self._pair_ops * pairs / self._attention, traffic)
        return time

    def _decode_attention(self, decodes: int, context: int) -> float:
        line, time = self._decode_line(decodes), 0.0
        for layers, window in self._layer_kinds:
            time += layers * line.at(min(context, decodes * window) if window else context)
        return time

    def _decode_line(self, decodes: int) -> AffineMax:
        """One layer's attention of ``decodes`` queries over a context in tokens."""
        line = self._decode_lines.get(decodes)
        if line is None:
            ops, kv = self._pair_ops / self._attention, self._kv_bytes / self._memory
            queries = decodes * self._qo_bytes / self._memory
            line = self._decode_lines[decodes] = AffineMax(decodes * ops, ops, queries + decodes * kv, kv)
        return line

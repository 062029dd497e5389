"""The operators of one stage of a replica, looked up once."""

from typing import NamedTuple

from mist.model import BYTES_PER_ELEMENT, ModelSpec
from mist.perf.base import Replica
from mist.perf.tables.attention import Heads, decode_attention, prompt_attention
from mist.perf.tables.bare import latent_shapes
from mist.perf.tables.comm import fused_reduction, gathering, reduction
from mist.perf.tables.curve import Curve, line
from mist.perf.tables.deepep import Exchange, deepep
from mist.perf.tables.experts import Cut, Distribution, experts
from mist.perf.tables.files import System
from mist.perf.tables.gemm import gemm, quantisation
from mist.perf.tables.grid import Grid
from mist.perf.tables.latent import latent_attention
from mist.perf.tables.linear import Scan, linear_attention

ACTIVATION = 2.0  # bytes per element
# Engines whose norms and activations scale what they write to FP8 themselves, so that only the output of attention is
# scaled apart: vLLM (compiled by Inductor, or its fusion passes: vLLM documentation, "Fusion torch.compile passes") and
# TensorRT-LLM; the others scale the input of every product.
UNFUSED = {"sglang"}


class Asked(NamedTuple):
    """What decides the times of a stage's operators."""

    replica: Replica
    distribution: Distribution
    bandwidth_efficiency: float
    kernel_time: float
    link_efficiency: float
    exchange: Exchange


class Layers(NamedTuple):
    """Attention of the layers of one kind."""

    layers: int
    window: int  # tokens; 0 is full attention
    prompt: Grid
    decode: Grid
    module: bool = False  # projections included: latent attention timed whole
    fused: bool = False  # rotary embedding and the writing of the cache included

    @property
    def uneven(self) -> bool:
        """Whether the decode kernel waits for its longest sequence."""
        return self.decode.uneven


class Operators(NamedTuple):
    """Seconds of everything in a step but the engine's overheads, by name."""

    local: dict[str, Curve]  # over the tokens of the busiest copy of attention
    group: dict[str, Curve]  # over the tokens of all copies: experts, and the way to them and back
    head: dict[str, Curve]  # over rows of logits
    attention: tuple[Layers, ...]
    scan: Scan | None = None  # of linear attention


def operators(asked: Asked) -> Operators:
    """Reads the tables; InputError, naming it, where one is missing."""
    replica = asked.replica
    model, tp = replica.model, replica.tp
    system = System(replica.hardware.tables, replica.engine.kernels, replica.hardware.memory_bandwidth)
    if not system.name:
        raise system._replace(name=replica.hardware.name).refuse("operator tables")
    attention = _attention(system, asked)
    module = bool(attention) and attention[0].module
    local = _projections(system, model, tp, module=module) | _linear_projections(system, model, tp)
    local |= _dense(system, model, tp) | _shared(system, model, tp)
    local |= _elementwise(asked, fused=bool(attention) and attention[0].fused)
    group: dict[str, Curve] = {}
    if model.sparse_layers:
        local["router"] = gemm(system, "bf16", model.experts, model.hidden).times(model.sparse_layers)
        cut = Cut(replica.group // replica.ep, replica.ep, asked.distribution)
        routed = experts(system, replica.hardware, model, cut).at_least(_experts_read(replica))
        group["experts"] = routed.times(model.sparse_layers)
    _collectives(system, asked, local, group)
    head = _head(system, asked) if model.kind == "decoder" else {}
    bandwidth = replica.hardware.memory_bandwidth * asked.bandwidth_efficiency
    scan = linear_attention(system, replica, bandwidth, asked.kernel_time) if model.linear_layers else None
    return Operators(local, group, head, attention, scan)


def _experts_read(replica: Replica) -> float:
    """Seconds to read one token's experts from memory: timed over and over, those of a few tokens stay in L2 (96 MB on
    an L40S), and in a model every layer has its own."""
    model = replica.model
    read = (
        model.experts_per_token * model.expert_parameters * BYTES_PER_ELEMENT[model.expert_dtype or model.weight_dtype]
    )
    return read / replica.group / replica.hardware.memory_bandwidth


def _attention(system: System, asked: Asked) -> tuple[Layers, ...]:
    replica = asked.replica
    model, tp, hardware = replica.model, replica.tp, replica.hardware
    memory = (hardware.memory_bandwidth, asked.bandwidth_efficiency)
    if model.kv_latent and model.attention_layers:
        latent = latent_attention(system, replica.hardware, model, max(1, model.heads // tp))
        return (Layers(model.attention_layers, 0, *latent),)
    heads = Heads(model.heads // tp, max(1, model.kv_heads // tp), model.head_dim, model.kv_dtype)
    kinds = [(model.attention_layers - model.window_layers, 0), (model.window_layers, model.window)]
    found = []
    for count, window in kinds:
        if count:
            decode = decode_attention(system, heads, window, *memory)
            if decode.uneven:
                decode = decode._replace(slots=hardware.multiprocessors / heads.kv)
            found.append(Layers(count, window, prompt_attention(system, heads, window), decode))
    return tuple(found)


def _projections(system: System, model: ModelSpec, tp: int, module: bool) -> dict[str, Curve]:
    if module or not model.attention_layers:
        return {}
    q, kv = model.heads * model.head_dim // tp, max(1, model.kv_heads // tp) * model.head_dim
    gate = q if model.gated_attention else 0
    shapes = {"qkv projection": (q + gate + 2 * kv, model.hidden), "output projection": (model.hidden, q)}
    if model.kv_latent:
        shapes = latent_shapes(model, model.heads // tp)
    return _products(system, model, shapes, model.attention_layers)


def _linear_projections(system: System, model: ModelSpec, tp: int) -> dict[str, Curve]:
    """Of linear attention: queries, keys, values and output gate in one, the gates of the state, the output."""
    if not model.linear_layers:
        return {}
    values = model.linear_value_heads * model.linear_value_dim // tp
    shapes = {
        "linear attention projection": (model.linear_width // tp + values, model.hidden),
        "linear attention gates": (2 * model.linear_value_heads // tp, model.hidden),
        "linear attention output": (model.hidden, values),
    }
    return _products(system, model, shapes, model.linear_layers)


def _dense(system: System, model: ModelSpec, tp: int) -> dict[str, Curve]:
    layers = model.layers - model.sparse_layers
    return _mlp(system, model, "MLP", model.intermediate // tp, layers) if layers else {}


def _shared(system: System, model: ModelSpec, tp: int) -> dict[str, Curve]:
    width = model.shared_experts * model.expert_intermediate // tp
    return _mlp(system, model, "shared experts", width, model.sparse_layers) if width and model.sparse_layers else {}


def _mlp(system: System, model: ModelSpec, name: str, width: int, layers: int) -> dict[str, Curve]:
    shapes = {f"{name} up": ((model.mlp_matrices - 1) * width, model.hidden), f"{name} down": (model.hidden, width)}
    return _products(system, model, shapes, layers)


def _products(system: System, model: ModelSpec, shapes: dict[str, tuple[int, int]], layers: int) -> dict[str, Curve]:
    """Matrix products (n, k), and with FP8 weights the scaling of what goes into them."""
    blocks = (
        model.weight_dtype == "fp8" and model.kv_latent
    )  # as DeepSeek publishes its weights (arXiv:2412.19437, 3.3)
    dtype = "fp8_block" if blocks else model.weight_dtype
    found = {name: gemm(system, dtype, n, k).times(layers) for name, (n, k) in shapes.items()}
    if model.weight_dtype == "fp8":
        apart = shapes if system.kernels in UNFUSED else [name for name in shapes if name == "output projection"]
        for name in apart:
            scaled = quantisation(system, shapes[name][1])
            if scaled is not None:
                found[f"{name} input to FP8"] = scaled.times(layers)
    return found


def _elementwise(asked: Asked, fused: bool) -> dict[str, Curve]:
    """Norms and residuals, rotary embedding, writing the cache, activation: memory bound, one kernel each.

    A norm reads residual and addend and writes their sum and what goes into the next product, in FP8 where it
    scales that itself.
    """
    model, tp = asked.replica.model, asked.replica.tp
    bandwidth = asked.replica.hardware.memory_bandwidth * asked.bandwidth_efficiency
    dense, sparse = model.layers - model.sparse_layers, model.sparse_layers
    heads = 0 if fused else (model.heads + 2 * model.kv_heads) * model.head_dim / tp
    width = dense * model.intermediate + sparse * model.shared_experts * model.expert_intermediate
    written = _written(asked)
    gated = 3 * model.linear_layers * model.linear_value_heads * model.linear_value_dim / tp  # the norm of its output
    gated += 3 * model.attention_layers * model.heads * model.head_dim / tp if model.gated_attention else 0
    traffic = ACTIVATION * (model.attention_layers * 3 * heads + gated)
    traffic += ((model.mlp_matrices - 1) * ACTIVATION + written) * width / tp
    kernels = model.attention_layers * (0 if fused else 2) + model.linear_layers + dense
    kernels += (sparse if model.shared_experts else 0) + sparse
    kernels += model.attention_layers if model.gated_attention else 0
    return {"rotary, activation": line(traffic / bandwidth, kernels * asked.kernel_time)}


def _written(asked: Asked) -> float:
    """Bytes of an element that a norm or activation writes for the next product: one where it scales to FP8."""
    replica = asked.replica
    return 1.0 if replica.model.weight_dtype == "fp8" and replica.engine.kernels not in UNFUSED else ACTIVATION


def _collectives(system: System, asked: Asked, local: dict[str, Curve], group: dict[str, Curve]) -> None:
    """All-reduces, the norms after them, and the way to the experts."""
    replica, model = asked.replica, asked.replica.model
    bandwidth = replica.hardware.memory_bandwidth * asked.bandwidth_efficiency
    # over elements: residual and addend are read, their sum and what goes into the next product written
    norm = line((3 * ACTIVATION + _written(asked)) / bandwidth, asked.kernel_time)
    norms = 2 * model.layers
    spread = model.sparse_layers if replica.dp > 1 else 0  # layers whose experts' results come from other copies
    if replica.tp > 1:
        count = 2 * model.layers - spread
        summed = reduction(system, replica, asked.link_efficiency)
        fused = fused_reduction(system, replica, summed, norm) if replica.engine.allreduce == "fused" else None
        name = "all-reduce" if fused is None else "all-reduce with norm"
        local[name] = (summed if fused is None else fused).times(count, model.hidden)
        norms -= count if fused is not None else 0
    local["norms"] = norm.times(norms, model.hidden)
    if spread:
        if asked.exchange == "gather":
            for op, name in (("all_gather", "dispatch"), ("reduce_scatter", "combine")):
                curve = gathering(system, op, replica, replica.group, asked.link_efficiency)
                group[name] = curve.times(spread, model.hidden)
        else:
            sent = deepep(system, model, replica.group, asked.exchange)
            group |= {name: curve.times(spread) for name, curve in sent.items()}


def _head(system: System, asked: Asked) -> dict[str, Curve]:
    """The language head stays in 16 bits when the layers are quantised; its shards are gathered."""
    replica, model = asked.replica, asked.replica.model
    dtype = model.weight_dtype if BYTES_PER_ELEMENT[model.weight_dtype] >= ACTIVATION else "bf16"
    found = {"language head": gemm(system, dtype, model.vocabulary // replica.tp, model.hidden)}
    if replica.tp > 1:
        gather = gathering(system, "all_gather", replica, replica.tp, asked.link_efficiency)
        found["gathering logits"] = gather.times(1, model.vocabulary)
    return found

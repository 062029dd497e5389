"""Embedding, reranking and scoring: one pass of an encoder over whole texts, nothing generated."""

from dataclasses import dataclass
from typing import NamedTuple

from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import BYTES_PER_ELEMENT, Dtype, ModelSpec
from mist.perf.retrieval.checks import check_memory
from mist.perf.work import Work
from mist.units import Seconds


@dataclass(frozen=True)
class EncoderEngine:
    """What the software that runs an encoder reaches of the device's published peaks."""

    name: str
    matmul_efficiency: float
    attention_efficiency: float
    bandwidth_efficiency: float
    call_time: Seconds  # one batch: tokenise, launch, pool, answer

    def __post_init__(self) -> None:
        for field in ("matmul_efficiency", "attention_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, field) <= 1:
                raise InputError(field, getattr(self, field), "must lie in (0, 1]")
        if self.call_time < 0:
            raise InputError("call_time", self.call_time, "must not be negative")


class _Operator(NamedTuple):
    compute: float  # s on the whole device
    traffic: float  # bytes


@dataclass(frozen=True)
class Encoder:
    """An encoder over ``texts`` texts of ``tokens`` tokens per query: one to embed, k passages to rerank or score.

    On a CPU its work can be shared with whatever else runs there; an accelerator it has to itself, and all of its
    time is latency. Raises Infeasible if the weights do not fit.
    """

    model: ModelSpec
    hardware: HardwareSpec
    engine: EncoderEngine
    tokens: int  # of one text, as padded
    texts: int = 1  # per query
    dtype: Dtype | None = None  # weights as served; None is as the model's sheet says
    causal: bool = False  # a decoder's backbone: a token sees those before it only

    def __post_init__(self) -> None:
        for field in ("tokens", "texts"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.tokens > self.model.context:
            raise InputError("tokens", self.tokens, f"{self.model.name} reads at most {self.model.context}")
        if self.model.experts or self.model.kv_latent:
            raise InputError("model", self.model.name, "an encoder of experts or latent attention is not modelled")
        if self.hardware.kind == "cpu" and not self.hardware.cores:
            raise InputError("hardware.cores", 0, f"the sheet of {self.hardware.name} does not say how many")
        check_memory(self.memory_bytes, self.hardware.memory, self.model.name, self.hardware.name)

    @property
    def memory_bytes(self) -> float:
        return self.model.counted_parameters * self._element

    @property
    def _element(self) -> float:
        return BYTES_PER_ELEMENT[self.dtype or self.model.weight_dtype]

    def work(self, queries: int) -> Work:
        operators = self._operators(queries)
        if self.hardware.kind != "cpu":
            return Work(0.0, 0.0, self.engine.call_time + self._time(operators))
        seconds = sum(compute for compute, _ in operators)
        traffic = sum(read for _, read in operators)
        return Work(seconds * self.hardware.cores, traffic / self.engine.bandwidth_efficiency, self.engine.call_time)

    def _time(self, operators: tuple[_Operator, ...]) -> float:
        bandwidth = self.hardware.memory_bandwidth * self.engine.bandwidth_efficiency
        return sum(max(compute, traffic / bandwidth) for compute, traffic in operators)

    def _operators(self, queries: int) -> tuple[_Operator, ...]:
        """Matrices, attention and what is done element by element, over all layers."""
        model, engine, dtype = self.model, self.engine, self.dtype or self.model.weight_dtype
        wide = max(2.0, self._element)  # activations have 16 bits unless the weights have more
        broad = "fp32" if self._element > 2 else "bf16"
        texts = queries * self.texts
        tokens = texts * self.tokens
        weights = model.layers * (model.attention_parameters + model.dense_mlp_parameters)
        matrices = _Operator(
            2 * tokens * weights / (self.hardware.peak(dtype) * engine.matmul_efficiency),
            weights * self._element + 2 * model.layers * tokens * model.hidden * wide,
        )
        width = model.heads * model.head_dim
        attention = _Operator(
            4 * width * texts * self._pairs() / (self.hardware.peak(broad) * engine.attention_efficiency),
            4 * model.layers * tokens * width * wide,  # queries, keys, values, output
        )
        touched = 8 * model.hidden + 3 * model.intermediate  # two add-norms, one activation
        return matrices, attention, _Operator(0.0, model.layers * tokens * touched * wide)

    def _pairs(self) -> float:
        """Query-key pairs of one text over all layers; a window lets a token see that many others."""
        model, n = self.model, self.tokens
        full = n * (n + 1) / 2 if self.causal else float(n * n)
        windowed = min(full, float(n * model.window)) if model.window_layers else 0.0
        return (model.layers - model.window_layers) * full + model.window_layers * windowed

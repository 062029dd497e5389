"""Embedding, reranking and scoring: one pass of an encoder over whole texts, nothing generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import BYTES_PER_ELEMENT, Dtype, ModelSpec
from mist.perf.retrieval.checks import check_memory
from mist.perf.work import Work
from mist.units import BytesPerSecond, Seconds


@dataclass(frozen=True)
class EncoderEngine:
    """What the software that runs an encoder reaches of the device's published peaks, and what it leaves unfused.

    A kernel that fuses attention keeps the scores, one for each pair of tokens and head, on the chip
    (arXiv:2205.14135, section 3.1); every other writes them to memory and reads them again, operator by operator.
    """

    name: str
    matmul_efficiency: float
    attention_efficiency: float
    bandwidth_efficiency: float
    call_time: Seconds  # one batch: tokenise, launch, pool, answer
    pads: bool = False  # a batch's texts to the length of its longest
    score_passes: float = 0.0  # times that the scores are written or read; half of them are writes
    fresh_rate: BytesPerSecond | None = None  # scores a core writes into memory new from the system; None: it is reused
    activations: Dtype | None = None  # between matrices; None: 16 bits, or those of the weights if they have more

    def __post_init__(self) -> None:
        for field in ("matmul_efficiency", "attention_efficiency", "bandwidth_efficiency"):
            if not 0 < getattr(self, field) <= 1:
                raise InputError(field, getattr(self, field), "must lie in (0, 1]")
        if self.call_time < 0:
            raise InputError("call_time", self.call_time, "must not be negative")
        if self.score_passes < 0:
            raise InputError("score_passes", self.score_passes, "must not be negative")
        if self.fresh_rate is not None and not self.fresh_rate > 0:
            raise InputError("fresh_rate", self.fresh_rate, "must be positive")
        if self.fresh_rate and not self.score_passes:
            raise InputError("fresh_rate", self.fresh_rate, "has no effect where score_passes is 0: no scores are kept")


class _Operator(NamedTuple):
    compute: float  # s on the whole device
    traffic: float  # bytes


@dataclass(frozen=True)
class TextEncoder:
    """An encoder over texts of any lengths; those longer than the model's context are cut off, as servers do.

    Operators follow one another, each for the longer of its arithmetic and its memory traffic. On a CPU a core that
    waits for memory is busy, and the work can be shared with whatever else runs there; an accelerator it has to itself,
    and all of its time is latency. Raises Infeasible if the weights do not fit.
    """

    model: ModelSpec
    hardware: HardwareSpec
    engine: EncoderEngine
    dtype: Dtype | None = None  # weights as served; None is as the model's sheet says
    causal: bool = False  # a decoder's backbone: a token sees those before it only

    def __post_init__(self) -> None:
        check_encoder(self.model)
        if self.hardware.kind == "cpu" and not self.hardware.cores:
            raise InputError("hardware.cores", 0, f"the sheet of {self.hardware.name} does not say how many")
        if self.hardware.kind != "cpu" and self.engine.fresh_rate:
            why = f"has no effect on {self.hardware.name}: on an accelerator memory is reused"
            raise InputError("engine.fresh_rate", self.engine.fresh_rate, why)
        check_memory(self.memory_bytes, self.hardware.memory, self.model.name, self.hardware.name)

    @property
    def memory_bytes(self) -> float:
        return weight_bytes(self.model, self.dtype)

    def work(self, lengths: Sequence[int]) -> Work:
        """The work of one batch of texts of so many tokens each."""
        operators = self._operators(self._read(lengths))
        if self.hardware.kind != "cpu":
            return Work(0.0, 0.0, self.engine.call_time + self._time(operators))
        traffic = sum(moved for _, moved in operators) / self.engine.bandwidth_efficiency
        return Work(self._time(operators) * self.hardware.cores, traffic, self.engine.call_time)

    def _read(self, lengths: Sequence[int]) -> Sequence[int]:
        """Tokens of each text as the model sees them."""
        cut = [min(length, self.model.context) for length in lengths]
        return [max(cut)] * len(cut) if self.engine.pads else cut

    def _time(self, operators: tuple[_Operator, ...]) -> float:
        bandwidth = self.hardware.memory_bandwidth * self.engine.bandwidth_efficiency
        return sum(max(compute, traffic / bandwidth) for compute, traffic in operators)

    def _operators(self, lengths: Sequence[int]) -> tuple[_Operator, ...]:
        """Matrices, attention and what is done element by element, over all layers."""
        model, engine, dtype = self.model, self.engine, self.dtype or self.model.weight_dtype
        element, wide = BYTES_PER_ELEMENT[dtype], self._wide
        broad = "fp32" if wide > 2 else "bf16"
        tokens, weights = sum(lengths), self._weights
        matrices = _Operator(
            2 * tokens * weights / (self.hardware.peak(dtype) * engine.matmul_efficiency),
            weights * element + 2 * model.layers * tokens * model.hidden * wide,
        )
        width = model.heads * model.head_dim
        pairs = sum(map(self._pairs, lengths))
        attention = _Operator(
            4 * width * pairs / (self.hardware.peak(broad) * engine.attention_efficiency),
            4 * model.layers * tokens * width * wide,  # queries, keys, values, output
        )
        touched = 8 * model.hidden + 3 * model.intermediate  # two add-norms, one activation
        elements = _Operator(0.0, model.layers * tokens * touched * wide)
        scores = model.layers * model.heads * sum(float(n * n) for n in lengths) * wide  # of all pairs, masked ones too
        return matrices, attention, elements, *self._scores(scores)

    def _scores(self, size: float) -> tuple[_Operator, ...]:
        """Scores of ``size`` bytes as they pass through memory, and the making of room for them."""
        passes, rate = self.engine.score_passes, self.engine.fresh_rate
        room = passes / 2 * size / (rate * self.hardware.cores) if rate else 0.0
        return _Operator(0.0, passes * size), _Operator(room, 0.0)

    @property
    def _wide(self) -> float:
        """Bytes of an activation."""
        given = self.engine.activations
        return BYTES_PER_ELEMENT[given] if given else max(2.0, BYTES_PER_ELEMENT[self.dtype or self.model.weight_dtype])

    @cached_property
    def _weights(self) -> float:
        """Those of all layers, which every token passes."""
        return self.model.layers * (self.model.attention_parameters + self.model.dense_mlp_parameters)

    def _pairs(self, n: int) -> float:
        """Query-key pairs of one text over all layers; a window lets a token see that many others."""
        model = self.model
        full = n * (n + 1) / 2 if self.causal else float(n * n)
        windowed = min(full, float(n * model.window)) if model.window_layers else 0.0
        return (model.layers - model.window_layers) * full + model.window_layers * windowed


@dataclass(frozen=True)
class Encoder:
    """A TextEncoder over ``texts`` texts of ``tokens`` tokens a query: one to embed, k passages to rerank or score."""

    model: ModelSpec
    hardware: HardwareSpec
    engine: EncoderEngine
    tokens: int  # of one text, as padded
    texts: int = 1  # per query
    dtype: Dtype | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        for field in ("tokens", "texts"):
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if self.tokens > self.model.context:
            raise InputError("tokens", self.tokens, f"{self.model.name} reads at most {self.model.context}")
        self.reads  # noqa: B018 - what it cannot be is told here

    @cached_property
    def reads(self) -> TextEncoder:
        return TextEncoder(self.model, self.hardware, self.engine, self.dtype, self.causal)

    @property
    def memory_bytes(self) -> float:
        return self.reads.memory_bytes

    def work(self, queries: int) -> Work:
        """The work of one batch of so many queries."""
        return self.reads.work([self.tokens] * (queries * self.texts))


def weight_bytes(model: ModelSpec, dtype: Dtype | None) -> float:
    """Bytes of the weights as served."""
    return model.counted_parameters * BYTES_PER_ELEMENT[dtype or model.weight_dtype]


def check_encoder(model: ModelSpec) -> None:
    """InputError where its pass over a text is not modelled."""
    if model.experts or model.kv_latent:
        raise InputError("model", model.name, "an encoder of experts or latent attention is not modelled")

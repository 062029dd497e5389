"""What devices draw: idle power, and a part in proportion to how busy they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.model import BYTES_PER_ELEMENT
from mist.perf.base import Replica, StepShape, Table
from mist.perf.experts import busiest_load, touched
from mist.perf.recurrence import token_work


@dataclass(frozen=True)
class LinearPower:
    """P = idle + (full - idle) x utilisation (Fan, Weber and Barroso, ISCA 2007, section 4).

    Utilisation is that of arithmetic, plus ``memory_share`` of that of memory, at most 1: prompts bring a
    device to its limit, decoding, which waits for memory, draws far less (Patel et al., POLCA, arXiv:2308.12908;
    Splitwise, arXiv:2311.18677, section III-F).
    """

    memory_share: float = 0.36

    def __post_init__(self) -> None:
        if not 0 <= self.memory_share <= 1:
            raise InputError("memory_share", self.memory_share, "must lie in [0, 1]")

    def of(
        self, replica: Replica, matmul: float = 1.0, bandwidth: float = 1.0, *, rows: Callable[[int], int] = int
    ) -> "Load":
        """The load that steps put on this replica's devices.

        ``matmul`` and ``bandwidth`` are the shares of the peaks at which a device is fully busy; ``rows`` says how many
        tokens are computed in a step of so many, padding included.
        """
        return Load(self.memory_share, replica, matmul, bandwidth, rows)


LINEAR = LinearPower()


class Power(Protocol):
    """What steps ask of the devices of one stage, in seconds at full utilisation, mean over devices."""

    def step(self, shape: StepShape) -> float:
        """Of one step."""

    def stretch(self, decodes: int, context: int, steps: int) -> float:
        """Of ``steps`` decode-only steps from here."""


class Load:
    """Seconds at full utilisation that a step costs, averaged over the devices of one stage."""

    def __init__(
        self, memory_share: float, replica: Replica, matmul: float, bandwidth: float, rows: Callable[[int], int]
    ) -> None:
        model, hardware = replica.model, replica.hardware
        self._replica, self._matmul = replica, matmul
        self._byte = memory_share / (hardware.memory_bandwidth * bandwidth)  # s per byte
        head = model.embedding_parameters / replica.tp if model.kind == "decoder" else 0.0
        layer_bytes = BYTES_PER_ELEMENT[model.weight_dtype]
        head_peak = hardware.peak(model.weight_dtype if layer_bytes >= 2 else "bf16") * matmul
        self._row = 2 * head / replica.dp / head_peak
        self._state = 2 * model.state_bytes / replica.group * self._byte  # of a sequence, read and written
        self._scanned = self._linear_attention()
        self._step = head * max(layer_bytes, 2.0) * self._byte
        width = 2 * model.kv_heads * model.head_dim
        scored = model.heads * 2 * model.head_dim
        if model.kv_latent:
            width = (model.kv_latent + model.rope_head_dim) * replica.tp  # every device of a copy reads it all
            scored = model.heads * (2 * model.kv_latent + model.rope_head_dim)
        group, peak = replica.group, hardware.peak("bf16") * matmul
        pair = 2 * scored / group / peak
        cached = width * BYTES_PER_ELEMENT[model.kv_dtype] / group * self._byte
        layers = [(model.attention_layers - model.window_layers, 0), (model.window_layers, model.window)]
        self._attention = [_Attention(window, n * pair, n * cached) for n, window in layers if n]
        self._linear = Table(lambda tokens: self._tokens(rows(tokens)))

    def step(self, shape: StepShape) -> float:
        """Of one step."""
        decodes, context, chunks, drafted, _, shared = shape
        tokens = decodes + drafted
        busy = self._step + (tokens + len(chunks)) * self._row + (decodes + len(chunks)) * self._state
        for chunk, past in chunks:
            tokens += chunk
            for window, pair, cached in self._attention:
                seen, pairs = past + chunk, chunk * past + chunk * (chunk + 1) / 2
                if window:
                    seen, pairs = min(seen, chunk + window), min(pairs, float(chunk * window))
                busy += pairs * pair + seen * cached
        if shared:
            busy -= self._spared(decodes, shared)
        busy += (tokens - decodes) * self._scanned
        return busy + self._linear[tokens] + (self._decodes(decodes, context, 1) if decodes else 0.0)

    def stretch(self, decodes: int, context: int, steps: int, shared: int = 0) -> float:
        """Of ``steps`` decode-only steps from here; ``shared`` as in a shape."""
        each = self._step + decodes * (self._row + self._state) + self._linear[decodes]
        if shared:
            each -= self._spared(decodes, shared)
        return steps * each + self._decodes(decodes, context, steps)

    def _spared(self, decodes: int, shared: int) -> float:
        """Of reading what sequences have in common again for each but the first."""
        return sum((decodes - 1) * shared * kind.cached for kind in self._attention if not kind.window)

    def _decodes(self, decodes: int, context: int, steps: int) -> float:
        busy = 0.0
        for window, pair, cached in self._attention:
            growing = steps
            if window:  # it is full from some step on
                growing = min(max(-((context - decodes * window) // decodes), 0), steps)
            seen = growing * (context + decodes) + decodes * (growing * (growing - 1) // 2)
            if growing < steps:
                seen += (steps - growing) * decodes * (window + 1)
            busy += seen * (pair + cached)
        return busy

    def _linear_attention(self) -> float:
        """Of a token that its chunkwise form takes, of a prompt or a draft."""
        model, group = self._replica.model, self._replica.group
        operations, moved = token_work(model, group)
        peak = self._replica.hardware.peak("bf16") * self._matmul
        return model.linear_layers * (operations / peak + moved * self._byte)

    def _tokens(self, tokens: int) -> float:
        """Everything that sees tokens one by one, on an average device of the group."""
        model, hardware = self._replica.model, self._replica.hardware
        tp, group = self._replica.tp, self._replica.group
        dense = model.layers - model.sparse_layers
        weights = model.mixer_parameters + dense * model.dense_mlp_parameters
        weights += model.sparse_layers * model.shared_experts * model.expert_parameters
        peak = hardware.peak(model.weight_dtype) * self._matmul
        busy = 2 * tokens * weights / group / peak
        busy += weights / tp * BYTES_PER_ELEMENT[model.weight_dtype] * self._byte
        if model.sparse_layers:
            dtype = model.expert_dtype or model.weight_dtype
            load = busiest_load(model, tokens, 1, 0.0)
            read = touched(model, tokens, 1, load) * model.expert_parameters / group
            ops = 2 * load * model.expert_parameters / group
            busy += model.sparse_layers * ops / (hardware.peak(dtype) * self._matmul)
            busy += model.sparse_layers * read * BYTES_PER_ELEMENT[dtype] * self._byte
        return busy


class _Attention(NamedTuple):
    """Seconds at full utilisation in the layers of one kind."""

    window: int  # tokens; 0 is full attention
    pair: float  # of one query-key pair
    cached: float  # of one cached token


def joules(hardware: HardwareSpec, devices: int, elapsed: float, load: float, busy: float) -> float:
    """Energy of ``devices`` over ``elapsed`` seconds, ``busy`` of them stepping, ``load`` at full utilisation."""
    active = min(load, busy)
    return devices * (hardware.idle_power * elapsed + (hardware.power - hardware.idle_power) * active)

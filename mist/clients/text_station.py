"""Encoders as stations: a batch of texts on a shared host, or on accelerators of their own.

The physics is that of mist/perf/encoder.py on both, so that where an embedder or a reranker runs is one choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mist.clients.host import Host
from mist.clients.servers import OnDevices, OnHost
from mist.clients.station import Server, Task, check_scaling, check_station
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import Dtype, ModelSpec
from mist.perf.encoder import EncoderEngine, TextEncoder, check_encoder, weight_bytes
from mist.scaling import FIXED, Scaling
from mist.units import Seconds


@dataclass(frozen=True)
class HostEncoder:
    """An encoder on a ``host``, each batch on at most ``cores`` of it, beside whatever else runs there.

    Its weights lie in the host's memory once; Infeasible if they do not fit beside the rest.
    """

    host: str
    model: ModelSpec
    engine: EncoderEngine
    dtype: Dtype | None = None  # weights as served; None is as the model's sheet says
    causal: bool = False  # a decoder's backbone
    servers: int | None = 1
    cores: int = 1
    max_batch: int = 1
    max_wait: Seconds = 0.0

    timed = False
    devices = 0

    def __post_init__(self) -> None:
        check_station(self.servers, self.max_batch, self.max_wait)
        check_encoder(self.model)
        if self.cores < 1:
            raise InputError("cores", self.cores, "must be at least 1")

    @property
    def service(self) -> str:
        return self.model.name

    @property
    def place(self) -> str:
        return self.host

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        host = hosts[self.host]
        host.hold(weight_bytes(self.model, self.dtype), self.model.name)
        encoder = TextEncoder(self.model, host.spec.hardware, self.engine, self.dtype, self.causal)
        return OnHost(host, self.cores, lambda batch: encoder.work(_texts(batch)))


@dataclass(frozen=True)
class DeviceEncoder:
    """An encoder in ``servers`` replicas, each on a device of its own, at full power while it works."""

    model: ModelSpec
    hardware: HardwareSpec
    engine: EncoderEngine
    dtype: Dtype | None = None
    causal: bool = False
    servers: int = 1
    max_batch: int = 32
    max_wait: Seconds = 0.0
    autoscaler: Scaling = FIXED

    timed = False

    def __post_init__(self) -> None:
        check_station(self.servers, self.max_batch, self.max_wait)
        check_scaling(self.autoscaler, self.servers)
        check_encoder(self.model)
        if self.hardware.kind == "cpu":
            raise InputError("hardware", self.hardware.name, "is a host, which others share: station encoder_cpu")

    @cached_property
    def encoder(self) -> TextEncoder:
        """Infeasible where the weights do not fit."""
        return TextEncoder(self.model, self.hardware, self.engine, self.dtype, self.causal)

    @property
    def service(self) -> str:
        return self.model.name

    @property
    def place(self) -> str:
        return self.hardware.name

    @property
    def devices(self) -> int:
        return self.servers

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        return OnDevices(kernel, self.hardware, servers=self.servers, spent=self._spent)

    def _spent(self, batch: list[Task]) -> tuple[float, float]:
        time = self.encoder.work(_texts(batch)).latency
        return time, time


def _texts(batch: list[Task]) -> list[int]:
    """Tokens of every text of a batch."""
    return [task.tokens for task in batch for _ in range(task.items)]

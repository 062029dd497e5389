"""A model that reads and does not write, on devices of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from mist.clients.host import Host
from mist.clients.servers import OnDevices
from mist.clients.station import Server, Task, check_scaling, check_station
from mist.errors import Infeasible
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import ModelSpec
from mist.perf.base import PerfModel, Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.footprint import check_layout, device_weights
from mist.perf.power import LINEAR, LinearPower
from mist.scaling import FIXED, Scaling
from mist.units import Seconds


@dataclass(frozen=True)
class EncoderStation:
    """A model that reads and does not write, an embedder, a reranker or a reward model, in ``servers`` replicas.

    Each has ``tp`` devices of its own; a batch is one step over all its items' tokens. Texts longer than the model's
    context are cut off, as servers of such models do. Infeasible where the weights do not fit.
    """

    model: ModelSpec
    hardware: HardwareSpec
    engine: EngineProfile
    perf: PerfModel
    power: LinearPower = LINEAR
    tp: int = 1
    servers: int = 1
    max_batch: int = 32
    max_wait: Seconds = 0.0
    autoscaler: Scaling = FIXED

    timed = False

    def __post_init__(self) -> None:
        check_station(self.servers, self.max_batch, self.max_wait)
        check_scaling(self.autoscaler, self.servers)
        check_layout(self.replica)

    @property
    def replica(self) -> Replica:
        return Replica(self.model, self.hardware, self.tp, self.engine)

    @property
    def service(self) -> str:
        return self.model.name

    @property
    def place(self) -> str:
        return self.hardware.name

    @property
    def devices(self) -> int:
        return self.tp * self.servers

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        self._check_memory()
        steps, longest = self.perf.of(self.replica), self.model.context
        efficiency = [getattr(self.perf, f"{name}_efficiency", 1.0) for name in ("matmul", "bandwidth")]
        load = self.power.of(self.replica, *efficiency)

        def spent(batch: list[Task]) -> tuple[float, float]:
            shape = StepShape(0, 0, tuple((min(t.tokens, longest), 0) for t in batch for _ in range(t.items)))
            return steps.step_time(shape), load.step(shape)

        return OnDevices(kernel, self.hardware, servers=self.servers, each=self.tp, spent=spent)

    def _check_memory(self) -> None:
        weights, room = device_weights(self.replica), self.hardware.memory * self.engine.memory_utilization
        if weights > room:
            why = f"{self.model.name} needs {weights / 1e9:.1f} GB of weights on each {self.hardware.name} of {self.tp}"
            raise Infeasible(f"{why}, the engine may use {room / 1e9:.1f}")

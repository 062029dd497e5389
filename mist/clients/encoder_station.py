"""A model that reads and does not write, on devices of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mist.clients.batches import Batches
from mist.clients.host import Host
from mist.clients.station import Server, Task, check_scaling, check_station
from mist.errors import Infeasible
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import ModelSpec
from mist.perf.base import PerfModel, Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.footprint import check_layout, device_weights
from mist.perf.power import LINEAR, LinearPower, joules
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
        return Encoder(kernel, self)


class Encoder:
    """Runs a batch in one step of a model on devices of its own."""

    def __init__(self, kernel: Kernel, spec: EncoderStation) -> None:
        self.spec = spec
        weights, sheet = device_weights(spec.replica), spec.hardware
        if weights > sheet.memory * spec.engine.memory_utilization:
            why = f"{spec.model.name} needs {weights / 1e9:.1f} GB of weights on each {sheet.name} of {spec.tp}"
            raise Infeasible(f"{why}, the engine may use {sheet.memory * spec.engine.memory_utilization / 1e9:.1f}")
        self.steps = spec.perf.of(spec.replica)
        efficiency = [getattr(spec.perf, f"{name}_efficiency", 1.0) for name in ("matmul", "bandwidth")]
        self._load = spec.power.of(spec.replica, *efficiency)
        self.batches = Batches(kernel)

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        longest = self.spec.model.context
        shape = StepShape(0, 0, tuple((min(t.tokens, longest), 0) for t in batch for _ in range(t.items)))
        self.batches.run(self.steps.step_time(shape), self._load.step(shape), call)

    def joules(self, elapsed: float) -> float:
        hardware, tp = self.spec.hardware, self.spec.tp
        return joules(hardware, tp, elapsed * self.spec.servers, *self.batches.worked())

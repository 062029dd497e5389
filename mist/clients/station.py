"""Stations: one queue, several servers, batches; everything in a pipeline that is not a generation."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple, Protocol

from mist.clients.host import Host
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.kernel import Kernel
from mist.model import ModelSpec
from mist.perf.base import PerfModel, Replica, StepShape
from mist.perf.engine import EngineProfile
from mist.perf.footprint import check_layout
from mist.perf.power import LINEAR, LinearPower, joules
from mist.perf.work import ServiceModel
from mist.units import Seconds


class Task(NamedTuple):
    """One visit of one query."""

    tokens: int  # of each item
    items: int
    seconds: float  # where the station has no model of its own
    queued: float  # s
    done: Callable[["Task", float], None]  # called with the task and when its service began


class Server(Protocol):
    """What runs a batch."""

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        """Call once it is done."""

    def joules(self, elapsed: float) -> float:
        """Energy drawn by devices of its own in ``elapsed`` seconds, all servers together."""


class StationSpec(Protocol):
    """A station as a config describes it."""

    @property
    def servers(self) -> int | None:
        """Batches at a time; None is without limit."""

    @property
    def max_batch(self) -> int:
        """Tasks in a batch."""

    @property
    def max_wait(self) -> float:
        """Seconds that a batch which is not full waits for more."""

    @property
    def timed(self) -> bool:
        """Whether the stages that visit say how long it takes."""

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:
        """What runs its batches."""


@dataclass(frozen=True)
class DrawnStation:
    """``servers`` (None: as many as it takes) that take as long as the visiting stage draws: tools, outside APIs."""

    servers: int | None = None

    max_batch = 1
    max_wait = 0.0
    timed = True

    def __post_init__(self) -> None:
        _check(self.servers, 1, 0.0)

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        return Drawn(kernel)


@dataclass(frozen=True)
class HostStation:
    """Batches whose ``work`` runs on a ``host`` with whatever else runs there, each on at most ``cores`` of it."""

    host: str
    work: ServiceModel
    servers: int | None = 1
    cores: int = 1
    max_batch: int = 1
    max_wait: Seconds = 0.0

    timed = False

    def __post_init__(self) -> None:
        _check(self.servers, self.max_batch, self.max_wait)
        if self.cores < 1:
            raise InputError("cores", self.cores, "must be at least 1")

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        return OnHost(hosts[self.host], self.work, self.cores)


@dataclass(frozen=True)
class EncoderStation:
    """A model that reads and does not write, an embedder, a reranker or a reward model, in ``servers`` replicas.

    Each has ``tp`` devices of its own; a batch is one step over all its items' tokens. Texts longer than the model's
    context are cut off, as servers of such models do.
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

    timed = False

    def __post_init__(self) -> None:
        _check(self.servers, self.max_batch, self.max_wait)
        check_layout(self.replica)

    @property
    def replica(self) -> Replica:
        return Replica(self.model, self.hardware, self.tp, self.engine)

    @property
    def devices(self) -> int:
        return self.tp * self.servers

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        return Encoder(kernel, self)


def _check(servers: int | None, max_batch: int, max_wait: float) -> None:
    if servers is not None and servers < 1:
        raise InputError("servers", servers, "must be at least 1, or null for as many as it takes")
    if max_batch < 1:
        raise InputError("max_batch", max_batch, "must be at least 1")
    if max_wait < 0:
        raise InputError("max_wait", max_wait, "must not be negative")
    if max_wait and max_batch == 1:
        raise InputError("max_wait", max_wait, "has no effect with max_batch = 1")
    if servers is None and max_batch > 1 and not max_wait:
        raise InputError("max_batch", max_batch, "has no effect: with servers without limit nobody waits")


class Drawn:
    """Takes as long as its task says."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        (task,) = batch
        self.kernel.after(task.seconds, call)

    def joules(self, elapsed: float) -> float:  # noqa: ARG002
        return 0.0


class OnHost:
    """Runs batches on a shared host, whose energy is the host's."""

    def __init__(self, host: Host, model: ServiceModel, cores: int) -> None:
        self.host, self.model, self.cores = host, model, cores

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        self.host.run(self.model.work(sum(task.items for task in batch)), self.cores, call)

    def joules(self, elapsed: float) -> float:  # noqa: ARG002
        return 0.0


class Encoder:
    """Runs a batch in one step of a model on devices of its own."""

    def __init__(self, kernel: Kernel, spec: EncoderStation) -> None:
        self.kernel, self.spec = kernel, spec
        self.steps = spec.perf.of(spec.replica)
        efficiency = [getattr(spec.perf, f"{name}_efficiency", 1.0) for name in ("matmul", "bandwidth")]
        self._load = spec.power.of(spec.replica, *efficiency)
        self.load = self.busy = 0.0  # s, of all servers

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        longest = self.spec.model.context
        shape = StepShape(0, 0, tuple((min(t.tokens, longest), 0) for t in batch for _ in range(t.items)))
        time = self.steps.step_time(shape)
        self.load += self._load.step(shape)
        self.busy += time
        self.kernel.after(time, call)

    def joules(self, elapsed: float) -> float:
        hardware, tp = self.spec.hardware, self.spec.tp
        return joules(hardware, tp, elapsed * self.spec.servers, self.load, self.busy)


class Station:
    """First come, first served by ``servers``; tasks that wait go together, up to ``max_batch``.

    A free server takes a batch that is full at once, another when its oldest task has waited ``max_wait``.
    """

    def __init__(self, kernel: Kernel, name: str, spec: StationSpec, hosts: Mapping[str, Host]) -> None:
        self.kernel, self.name, self.spec = kernel, name, spec
        self.server = spec.server(kernel, hosts)
        self.free = inf if spec.servers is None else spec.servers
        self.queue: deque[Task] = deque()
        self.tasks = self.batches = 0  # ended
        self.busy = 0.0  # server-seconds of batches that ended
        self._running = 0  # batches
        self._started = 0.0  # s, sum of when those began
        self._awake = False

    @property
    def busy_by_now(self) -> float:
        """Server-seconds up to now."""
        return self.busy + (self._running * self.kernel.now - self._started if self._running else 0.0)

    def submit(self, task: Task) -> None:
        """A task is here, now."""
        self.queue.append(task)
        if self.spec.max_wait and len(self.queue) < self.spec.max_batch:
            self.kernel.at(task.queued + self.spec.max_wait, self._wake)
        else:
            self._wake()

    def _wake(self) -> None:
        if not self._awake and self.free:
            self._awake = True
            self.kernel.decide(self._launch)

    def _launch(self) -> None:
        self._awake = False
        queue, most = self.queue, self.spec.max_batch
        while queue and self.free and self._ready():
            batch = [queue.popleft() for _ in range(min(most, len(queue)))]
            self.free -= 1
            now = self.kernel.now
            self._started += now
            self._running += 1
            self.server.run(batch, partial(self._end, batch, now))

    def _ready(self) -> bool:
        full = len(self.queue) >= self.spec.max_batch
        return full or self.kernel.now >= self.queue[0].queued + self.spec.max_wait

    def _end(self, batch: list[Task], began: float) -> None:
        self.free += 1
        self.busy += self.kernel.now - began
        self._started -= began
        self._running -= 1
        self.batches += 1
        self.tasks += len(batch)
        for task in batch:
            task.done(task, began)
        self._wake()

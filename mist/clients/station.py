"""Stations: one queue, several servers, batches; everything in a pipeline that is not a generation."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple, Protocol

from mist.clients.host import Host
from mist.errors import InputError
from mist.kernel import Kernel
from mist.scaling import Scaling


class Task(NamedTuple):
    """One visit of one query."""

    tokens: int  # of each item
    items: int
    seconds: float  # where the station has no model of its own
    queued: float  # s
    done: Callable[["Task", float], None]  # called with the task and when its service began
    lost: Callable[["Task", str], None] | None = None  # called with the task and how, if it will never be done
    retries: int = 0  # times it was begun again after a server failed


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

    @property
    def service(self) -> str:
        """What it runs, in a word."""

    @property
    def place(self) -> str:
        """The name of its hardware or of its host; nothing if that is somebody else's."""

    @property
    def devices(self) -> int:
        """Devices of its own, all of the hardware that ``place`` names."""

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:
        """What runs its batches."""


@dataclass(frozen=True)
class DrawnStation:
    """``servers`` (None: as many as it takes) that take as long as the visiting stage draws: tools, outside APIs."""

    servers: int | None = None

    max_batch = 1
    max_wait = 0.0
    timed = True
    service = "drawn"
    place = ""
    devices = 0

    def __post_init__(self) -> None:
        check_station(self.servers, 1, 0.0)

    def server(self, kernel: Kernel, hosts: Mapping[str, Host]) -> Server:  # noqa: ARG002
        return Drawn(kernel)


def check_station(servers: int | None, max_batch: int, max_wait: float) -> None:
    """InputError where they make no station."""
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


def check_scaling(autoscaler: Scaling, servers: int) -> None:
    """InputError where it does not go with a station that begins with so many servers."""
    autoscaler.check(servers)
    policy = getattr(autoscaler, "policy", None)
    if getattr(policy, "share", "") == "memory":
        raise InputError("autoscaler.policy.share", "memory", "a station holds no KV cache", ["busy"])


class Drawn:
    """Takes as long as its task says."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def run(self, batch: list[Task], call: Callable[[], None]) -> None:
        (task,) = batch
        self.kernel.after(task.seconds, call)

    def joules(self, elapsed: float) -> float:  # noqa: ARG002
        return 0.0


class Station:
    """First come, first served by ``servers``; tasks that wait go together, up to ``max_batch``.

    A free server takes a batch that is full at once, another when its oldest task has waited ``max_wait``.
    """

    def __init__(self, kernel: Kernel, name: str, spec: StationSpec, hosts: Mapping[str, Host]) -> None:
        self.kernel, self.name, self.spec = kernel, name, spec
        self.server = spec.server(kernel, hosts)
        self.free = inf if spec.servers is None else spec.servers
        self.queue: deque[Task] = deque()
        self.tasks = self.batches = self.items = 0  # ended
        self.tokens = 0  # of those items, as far as a model reads them
        self._longest: int = getattr(getattr(spec, "model", None), "context", 0)
        self.busy = 0.0  # server-seconds of batches that ended
        self._running = 0  # batches
        self._started = 0.0  # s, sum of when those began
        self._awake = False

    @property
    def busy_by_now(self) -> float:
        """Server-seconds up to now."""
        return self.busy + (self._running * self.kernel.now - self._started if self._running else 0.0)

    def joules(self, elapsed: float) -> float:
        """Energy drawn by devices of its own in the first ``elapsed`` seconds, up to now."""
        return self.server.joules(elapsed)

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
            self._begin([queue.popleft() for _ in range(min(most, len(queue)))])

    def _begin(self, batch: list[Task]) -> None:
        self.free -= 1
        self.server.run(batch, partial(self._end, batch, self._clock_in()))

    def _clock_in(self) -> float:
        """A server is busy from now on; when that is."""
        now = self.kernel.now
        self._started += now
        self._running += 1
        return now

    def _clock_out(self, began: float) -> None:
        self.busy += self.kernel.now - began
        self._started -= began
        self._running -= 1

    def _ready(self) -> bool:
        full = len(self.queue) >= self.spec.max_batch
        return full or self.kernel.now >= self.queue[0].queued + self.spec.max_wait

    def _end(self, batch: list[Task], began: float) -> None:
        self.free += 1
        self._done(batch, began)

    def _done(self, batch: list[Task], began: float) -> None:
        self._clock_out(began)
        self.batches += 1
        self.tasks += len(batch)
        for task in batch:
            self.items += task.items
            self.tokens += task.items * min(task.tokens, self._longest)
            task.done(task, began)
        self._wake()

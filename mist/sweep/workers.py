"""Where designs are judged: on Ray, or in this process by the same code.

Both take jobs and give back outcomes, in the order they finish. Whatever a judge does, raise, hang, die or answer
with something that cannot be pickled, comes back as an outcome; only Ray itself failing is an exception here.
"""

import importlib
import json
import os
import secrets
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mist.errors import InputError
from mist.sweep.options import RayOptions
from mist.sweep.question import Sweep
from mist.workload.traffic import Traffic

Report = dict[str, Any]
Judge = Callable[[dict[str, Any], Mapping[int, Traffic], float], Report]


@dataclass(frozen=True)
class Job:
    """One design to judge. ``traffic`` is keyed by seed; jobs of one workload share the same arrays."""

    number: int
    config: dict[str, Any]
    traffic: Mapping[int, Traffic]
    limit_s: float
    attempt: int = 1


@dataclass(frozen=True)
class Outcome:
    """What came of a job: a record, or an error of ``type``, ``message`` and ``traceback``."""

    number: int
    record: Report | None
    error: Report | None
    wall_s: float
    attempts: int


class Workers(Protocol):
    """Takes jobs, gives outcomes."""

    @property
    def slots(self) -> int:
        """How many jobs to keep in flight."""

    def submit(self, job: Job) -> None:
        """Queue a job."""

    def finished(self, patience_s: float) -> list[Outcome]:
        """Outcomes that are ready, waiting at most ``patience_s`` for the first; possibly none."""

    def close(self) -> None:
        """Cancel what is in flight and let everything go."""


def named(path: str) -> Any:
    """The object that a dotted path names."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def judged(judge: str, config: dict[str, Any], traffic: Mapping[int, Traffic], limit_s: float) -> Report:
    """The record of ``judge``, or an error record; plain data either way. This is what a worker runs."""
    judging = named(judge)  # outside: a worker without the judge is no failure of the design
    began = time.perf_counter()
    try:
        record = json.loads(json.dumps(judging(config, traffic, limit_s), allow_nan=False))
        answer = {"record": record, "error": None}
    except Exception as error:  # whatever it is, it is the answer for this design
        answer = {"record": None, "error": told(error)}
    return {**answer, "wall_s": time.perf_counter() - began}


def told(error: BaseException) -> Report:
    """An error as plain data."""
    trace = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": trace}


class Serial:
    """Judges in this process, one at a time. Only the judge's own deadline ends a trial."""

    slots = 1

    def __init__(self, judge: str) -> None:
        self._judge = judge
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def finished(self, patience_s: float) -> list[Outcome]:  # noqa: ARG002
        if not self._queue:
            return []
        job = self._queue.popleft()
        answer = judged(self._judge, job.config, job.traffic, job.limit_s)
        return [Outcome(job.number, answer["record"], answer["error"], answer["wall_s"], 1)]

    def close(self) -> None:
        self._queue.clear()


def start(sweep: Sweep, judge: str) -> Workers:
    """The workers a sweep asks for; InputError where a named Ray cluster does not answer."""
    return Serial(judge) if sweep.workers == "serial" else OnRay(sweep.ray, judge)


# What a private Ray needs in the environment of this process and of its own: nothing is sent home, no token file is
# written to HOME, only who knows this run's token may talk to it, and CUDA_VISIBLE_DEVICES is left alone.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


def connect(options: RayOptions) -> Any:
    """The ``ray`` module, initialised: a private Ray on this machine, or the running one that is named.

    RAY_ADDRESS is not listened to: a sweep never joins a cluster it was not told of.
    """
    os.environ.update(_QUIET)
    if options.address is None:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    elif Path("~/.ray/auth_token").expanduser().is_file() or "RAY_AUTH_TOKEN" in os.environ:
        os.environ.setdefault(
            "RAY_AUTH_MODE", "token"
        )  # or a cluster with authentication lets us wait 20 s for nothing
    import ray  # noqa: PLC0415  half a second, which serial sweeps and --help do not spend

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if options.address is None:
        store = int(options.object_store)
        ray.init("local", num_cpus=options.cpus, include_dashboard=False, object_store_memory=store, **quiet)
        return ray
    knock(options.address)
    package = str(Path(__file__).parents[1])
    try:  # the cluster computes with this driver's sources, whatever version it has installed
        ray.init(options.address, runtime_env={"py_modules": [package]}, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = f"no Ray cluster answers there (if it has authentication, set RAY_AUTH_MODE=token): {error}"
        raise InputError("ray.address", options.address, why) from None
    return ray


def knock(address: str) -> None:
    """InputError where nothing listens. Ray tries a dead address for more than a minute; this, five seconds."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # auto, or a name that only Ray knows how to read
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise InputError("ray.address", address, f"no Ray cluster answers there: {error}") from None


@dataclass(frozen=True)
class _Flight:
    job: Job
    started: float | None = None  # when the worker said so; queueing is not the trial's time
    overdue: bool = False


class OnRay:
    """Judges in Ray tasks, each a generator: its first item says that it has started, its second is the answer.

    A trial that runs past its limit and does not stop by itself is killed with its worker; one whose worker died
    for another reason is tried again, ``retries`` times.
    """

    def __init__(self, options: RayOptions, judge: str) -> None:
        self._retries = options.retries
        self._token = {name: os.environ.get(name) for name in _TOKEN}
        self._ray = connect(options)
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        if cpus < 1:
            self._ray.shutdown()
            raise InputError("ray.address", options.address, "the cluster has no CPU")
        self.slots = cpus * options.in_flight
        self._task = self._ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(_task).options(name="judge")
        self._judge = judge
        self._stored: dict[int, tuple[Traffic, Any]] = {}  # id of traffic -> itself, kept alive, and its reference
        self._flying: dict[Any, _Flight] = {}

    def submit(self, job: Job) -> None:
        references = {seed: self._reference(traffic) for seed, traffic in job.traffic.items()}
        generator = self._task.remote(self._judge, job.config, references, job.limit_s)
        self._flying[generator] = _Flight(job)

    def _reference(self, traffic: Traffic) -> Any:
        if id(traffic) not in self._stored:
            self._stored[id(traffic)] = traffic, self._ray.put(traffic)
        return self._stored[id(traffic)][1]

    def finished(self, patience_s: float) -> list[Outcome]:
        until = time.monotonic() + patience_s
        outcomes: list[Outcome] = []
        while self._flying and not outcomes:
            wait = max(0.0, min(until - time.monotonic(), 0.25))
            ready, _ = self._ray.wait(list(self._flying), num_returns=1, timeout=wait)
            for generator in ready:
                outcomes.extend(self._next(generator))
            self._kill_overdue()
            if time.monotonic() >= until:
                break
        return outcomes

    def _next(self, generator: Any) -> Iterator[Outcome]:
        flight = self._flying[generator]
        try:
            item = self._ray.get(next(generator))
        except (Exception, StopIteration) as error:
            del self._flying[generator]
            yield from self._lost(flight, error)
            return
        if item is None:
            self._flying[generator] = replace(flight, started=time.monotonic())
            return
        del self._flying[generator]
        yield Outcome(flight.job.number, item["record"], item["error"], item["wall_s"], flight.job.attempt)

    def _lost(self, flight: _Flight, error: Exception) -> Iterator[Outcome]:
        """The task gave no answer: killed for its time, or its worker, node or memory went."""
        job, errors = flight.job, self._ray.exceptions
        infrastructure = errors.WorkerCrashedError | errors.OutOfMemoryError | errors.NodeDiedError
        ran = time.monotonic() - flight.started if flight.started is not None else 0.0
        if flight.overdue:
            message = f"still running {ran:.1f} s after it began (limit {job.limit_s:g} s): killed"
            why = {"type": "Timeout", "message": message, "traceback": ""}
        elif not isinstance(error, infrastructure):
            raise error  # the workers' environment is broken, and every further design would be called a failure
        elif job.attempt <= self._retries:
            self.submit(replace(job, attempt=job.attempt + 1))
            return
        else:
            why = {**told(error), "message": str(error).partition("\n")[0]}
        yield Outcome(job.number, None, why, ran, job.attempt)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for generator, flight in self._flying.items():
            if flight.started is None or flight.overdue or now - flight.started < hard_limit(flight.job.limit_s):
                continue
            self._flying[generator] = replace(flight, overdue=True)
            self._ray.cancel(generator, force=True)

    def close(self) -> None:
        for generator in self._flying:
            with suppress(Exception):  # it may have ended by itself a moment ago
                self._ray.cancel(generator, force=True)
        self._flying.clear()
        self._stored.clear()
        self._ray.shutdown()
        for name, value in self._token.items():  # a private Ray's token opens no other cluster
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def hard_limit(limit_s: float) -> float:
    """Seconds after which a trial is killed from outside: its own deadline, and time to notice it."""
    return 1.1 * limit_s + 1.0


_fetched: dict[str, Traffic] = {}  # of this worker process, by object reference


def _task(judge: str, config: dict[str, Any], references: Mapping[int, Any], limit_s: float) -> Iterator[Report | None]:
    import ray  # noqa: PLC0415

    yield None
    for reference in references.values():
        if reference.hex() not in _fetched:
            if len(_fetched) >= 64:
                _fetched.clear()
            _fetched[reference.hex()] = ray.get(reference)
    yield judged(judge, config, {seed: _fetched[ref.hex()] for seed, ref in references.items()}, limit_s)

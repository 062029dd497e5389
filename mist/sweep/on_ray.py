"""Designs judged in Ray tasks."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from mist.errors import InputError
from mist.sweep.judging import Job, Outcome, Report, judged, told
from mist.sweep.options import RayOptions
from mist.sweep.ray_cluster import TOKEN, connect
from mist.workload.traffic import Traffic


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
        self._token = {name: os.environ.get(name) for name in TOKEN}
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

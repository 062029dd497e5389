"""Engines whose host launches every kernel itself: a step takes as long as the slower of host and device."""

from collections.abc import Callable
from dataclasses import replace
from math import floor

from mist.perf.base import Explained, Replica, StepModel, StepShape, Stretch, overhead
from mist.perf.cascade import CascadeSteps
from mist.perf.engine import EngineProfile


def launched(times: Callable[[Replica], CascadeSteps], replica: Replica, factor: float = 1.0) -> StepModel:
    """The ``times`` of this replica; behind its host's, where its engine replays no CUDA graph.

    ``factor`` is the time of the engine's own kernels over those that ``times`` knows.
    """
    replica = replica._replace(engine=_waiting(replica))
    engine = replica.engine
    if not engine.launch_time and factor == 1:
        return times(replica)
    return LaunchedSteps(times(replica._replace(engine=_on_device(engine))), replica, factor)


def _waiting(replica: Replica) -> EngineProfile:
    """With what the devices of a replica wait for each other in a step.

    It has two all-reduces a layer, but for those of experts that other copies of attention share.
    """
    engine, model = replica.engine, replica.model
    if replica.tp == 1 or not engine.collective_wait:
        return engine
    sums = 2 * model.layers - (model.sparse_layers if replica.dp > 1 else 0)
    return replace(engine, step_overhead=engine.step_overhead + sums * engine.collective_wait / replica.node.host_speed)


def _on_device(engine: EngineProfile) -> EngineProfile:
    """What is the device's of it: no overheads, and no padding where nothing is captured."""
    captured = 0 if engine.launch_time else engine.captured_tokens
    return replace(
        engine, step_overhead=0.0, request_overhead=0.0, mixed_overhead=0.0, cascade_overhead=0.0, launch_time=0.0,
        captured_tokens=captured,
    )  # fmt: skip


class LaunchedSteps:
    """step_overhead + requests x request_overhead + max(host, factor x device).

    The host takes layers x launch_time, and mixed_overhead more for a step with a prompt chunk, cascade_overhead for
    one of decodes that reads a common prefix once; the device works through what is launched while the next kernels
    are (CUDA C++ Programming Guide, "Asynchronous Concurrent Execution"). With no launch_time they are added.
    """

    def __init__(self, device: CascadeSteps, replica: Replica, factor: float) -> None:
        self._device, self._engine, self._dp, self._factor = device, replica.engine, replica.dp, factor
        self._host = replica.model.layers * replica.engine.launch_time / replica.node.host_speed
        self.uneven = getattr(device, "uneven", False)

    def step_time(self, shape: StepShape) -> float:
        more = self._engine.mixed_overhead if shape.chunks else self._engine.cascade_overhead if shape.shared else 0.0
        device = self._factor * self._device.step_time(shape)
        return self._outside(shape.requests) + (max(self._host + more, device) if self._host else more + device)

    def decode_stretch(self, decodes: int, context: int, longest: int = 0, shared: int = 0) -> Stretch:
        """Level as long as the host is slower; the crossing ends a stretch."""
        steps, first, slope = self._device.decode_stretch(decodes, context, longest, shared)
        first, slope, outside = self._factor * first, self._factor * slope, self._outside(decodes)
        more = self._engine.cascade_overhead if shared else 0.0
        if not self._host:
            return Stretch(steps, outside + more + first, slope)
        host = self._host + more
        if first > host:
            return Stretch(steps, outside + first, slope)
        if slope > 0:
            steps = min(steps, _level_steps(host, first, slope))
        return Stretch(steps, outside + host, 0.0)

    def explain(self, shape: StepShape) -> tuple[Explained, ...]:
        """The device's operators, the time it waits for its host, and the engine's overheads, which come last."""
        parts = [part._replace(seconds=self._factor * part.seconds) for part in self._device.explain(shape)]
        outside = overhead(self._engine, shape, self._dp)
        if not self._host:
            return (*parts[:-1], Explained("engine overheads", outside, "fitted"))  # the device alone has none
        outside = self._outside(shape.requests)
        waiting = self.step_time(shape) - outside - sum(part.seconds for part in parts)
        waiting = max(waiting, 0.0)  # rounding, where the device is the slower
        host = Explained("waiting for the host", waiting, "fitted")
        return (*parts[:-1], host, Explained("engine overheads", outside, "fitted"))

    def _outside(self, requests: int) -> float:
        return self._engine.step_overhead + -(-requests // self._dp) * self._engine.request_overhead


def _level_steps(level: float, first: float, slope: float) -> int:
    """The steps i = 0, 1, ... for which ``first + i * slope`` does not exceed ``level``; at least 1."""
    steps = max(floor((level - first) / slope) + 1, 1)
    while first + steps * slope <= level:  # rounding may be off by one either way
        steps += 1
    while steps > 1 and first + (steps - 1) * slope > level:
        steps -= 1
    return steps

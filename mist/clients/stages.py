"""The stages of a pipelined replica: when each works on which batch."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from mist.decoding import Decoding
from mist.kernel import Kernel
from mist.perf.base import StepModel, StepShape, Stretch, Table
from mist.perf.power import Power

Passage = list[tuple[float, float]]  # of one batch: from when to when each stage works on it


def _nothing(_tokens: int) -> float:
    return 0.0


def _hop(hops: Callable[[int, int], float], stage: int, tokens: int) -> float:
    return hops(tokens, stage)


def done(busy: float, passages: Collection[Passage], now: float) -> float:
    """``busy`` without what these batches, sent in last, will still take."""
    ahead = [end - max(begin, now) for passage in passages for begin, end in passage if end > now]
    stages = max((len(passage) for passage in passages), default=1)
    return max(busy - sum(ahead) / stages, 0.0)  # sums that should cancel leave 1e-18


class Stages:
    """The stages of one replica, passed by batches in the order in which they were made.

    A batch enters a stage when it has left the one before and its activations are here, and the batch before it
    has left. To a lane it is a step model whose steps take from now until the last stage is done; who asks for a
    step's time sends the batch in.
    """

    def __init__(
        self, kernel: Kernel, stages: Sequence[StepModel], hops: Callable[[int, int], float], loads: Sequence[Power]
    ) -> None:
        self.kernel, self.stages, self.loads = kernel, stages, loads
        self.uneven = any(getattr(stage, "uneven", False) for stage in stages)  # the longest sequence of a batch counts
        # s, by tokens, that activations take from the stage before; to the first there is nothing to send
        self.hops = [Table(_nothing), *(Table(partial(_hop, hops, number)) for number in range(len(stages) - 1))]
        self.busy = self.load = 0.0  # s, mean over stages
        # of the batches sent in last; no more are in flight than there are stages
        self.passages: deque[Passage] = deque(maxlen=len(stages))
        self.shapes: deque[StepShape] = deque(maxlen=len(stages))

    def step_time(self, shape: StepShape) -> float:
        """Seconds until a batch made now leaves the last stage; it is on its way."""
        return self.send(shape, self.kernel.now)[-1][1] - self.kernel.now

    def send(self, shape: StepShape, now: float) -> Passage:
        """Send a batch in."""
        passage = self._passage(shape, now)
        self.passages.append(passage)
        self.shapes.append(shape)
        for begin, end in passage:
            self.busy += (end - begin) / len(passage)
        for load in self.loads:
            self.load += load.step(shape) / len(passage)
        return passage

    def predicted(self, shape: StepShape) -> float:
        """Seconds that a batch made now would take."""
        return self._passage(shape, self.kernel.now)[-1][1] - self.kernel.now

    def _passage(self, shape: StepShape, now: float) -> Passage:
        passage = Passage()
        before = self.passages[-1] if self.passages else None
        for number, stage in enumerate(self.stages):
            now += self.hops[number][shape.tokens]
            if before is not None:
                now = max(now, before[number][1])
            passage.append((now, now := now + stage.step_time(shape)))
        return passage

    def passed(self, busy: float, load: float, passages: Sequence[Passage], shapes: Sequence[StepShape]) -> None:
        """Batches have been sent in that another worked out; ``busy`` is with them, ``load`` theirs alone."""
        self.busy = busy
        self.load += load
        self.passages.extend(passages[-len(self.stages) :])
        self.shapes.extend(shapes[-len(self.stages) :])

    @property
    def busy_by_now(self) -> float:
        """``busy`` without what the batches in flight will still take."""
        return done(self.busy, self.passages, self.kernel.now)

    @property
    def load_by_now(self) -> float:
        """``load`` without what the batches in flight will still ask for."""
        return self.load - self.unspent(self.passages, self.shapes, self.kernel.now)

    def unspent(self, passages: Iterable[Passage], shapes: Iterable[StepShape], now: float) -> float:
        """Seconds at full utilisation that these batches will still ask for, mean over stages."""
        ahead = 0.0
        for passage, shape in zip(passages, shapes, strict=True):
            if passage[-1][1] > now:
                for load, (begin, end) in zip(self.loads, passage, strict=True):
                    ahead += load.step(shape) * max(end - max(begin, now), 0.0) / (end - begin)
        return ahead / len(self.stages)

    def stop(self) -> None:
        """Nothing in flight goes on."""
        self.busy, self.load = self.busy_by_now, self.load_by_now
        self.passages.clear()
        self.shapes.clear()

    def decode_stretch(self, decodes: int, context: int, longest: int = 0) -> Stretch:
        """One step: the next waits for what other lanes send in meanwhile."""
        return Stretch(1, self.step_time(StepShape(decodes, context, longest=longest)), 0.0)

    def stretches(self, decodes: Decoding) -> list[Stretch]:
        """Of a lane's decode-only steps from here, in each stage."""
        longest = decodes.longest if self.uneven else 0
        return [stage.decode_stretch(decodes.count, decodes.cached, longest) for stage in self.stages]

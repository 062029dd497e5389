"""How long a step takes: the few integers in which a batch meets the hardware."""

from typing import NamedTuple, Protocol

from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.perf.engine import EngineProfile


class StepShape(NamedTuple):
    """One engine step as the hardware sees it."""

    decodes: int  # sequences that compute one token
    context: int  # KV tokens those sequences read, together
    chunks: tuple[tuple[int, int], ...] = ()  # (tokens, tokens cached before them) of each prompt chunk
    drafted: int = 0  # further tokens those sequences compute to verify drafts, together

    @property
    def tokens(self) -> int:
        return self.decodes + self.drafted + sum(tokens for tokens, _ in self.chunks)

    @property
    def requests(self) -> int:
        return self.decodes + len(self.chunks)


class Stretch(NamedTuple):
    """Consecutive decode-only steps of one batch: step i takes ``first + i * slope`` seconds."""

    steps: float  # how many of them this holds for; may be infinite
    first: float  # s
    slope: float  # s per step

    def time(self, steps: int) -> float:
        """Seconds of the first ``steps`` steps together."""
        return steps * self.first + self.slope * (steps * (steps - 1) / 2)


class Replica(NamedTuple):
    """What one replica of a pool runs: a model on ``tp`` devices under an engine."""

    model: ModelSpec
    hardware: HardwareSpec
    tp: int
    engine: EngineProfile


class StepModel(Protocol):
    """Step times of one replica: pure, exact, blind to everything but the shape."""

    def step_time(self, shape: StepShape) -> float:
        """Seconds of one step."""

    def decode_stretch(self, decodes: int, context: int) -> Stretch:
        """The decode-only steps from here while step time stays linear in the step's number."""


class PerfModel(Protocol):
    """A way of predicting step times."""

    def of(self, replica: Replica) -> StepModel:
        """The step times of this replica."""

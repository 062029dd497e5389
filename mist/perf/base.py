"""How long a step takes: the few integers in which a batch meets the hardware."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from mist.hardware import HardwareSpec
from mist.model import ModelSpec
from mist.node import ISOLATED, NodeSpec
from mist.perf.engine import EngineProfile


class StepShape(NamedTuple):
    """One engine step as the hardware sees it."""

    decodes: int  # sequences that compute one token
    context: int  # KV tokens those sequences read, together
    chunks: tuple[tuple[int, int], ...] = ()  # (tokens, tokens cached before them) of each prompt chunk
    drafted: int = 0  # further tokens those sequences compute to verify drafts, together
    longest: int = 0  # KV tokens of the one of them that has most; 0: not known, taken for the mean
    shared: int = 0  # first tokens of each of those sequences that are the same, and read once for all of them

    @property
    def tokens(self) -> int:
        return self.decodes + self.drafted + sum(tokens for tokens, _ in self.chunks)

    @property
    def requests(self) -> int:
        return self.decodes + len(self.chunks)


def overhead(engine: EngineProfile, shape: StepShape, copies: int = 1) -> float:
    """Seconds that an engine adds to a step whose requests are spread over ``copies`` of the model.

    A step of decodes that reads a common prefix once lacks a full CUDA graph, as any step with a prompt does.
    """
    time = engine.step_overhead + -(-shape.requests // copies) * engine.request_overhead
    if shape.chunks:
        return time + engine.mixed_overhead
    return time + (engine.cascade_overhead if shape.shared else 0.0)


class Table(dict[int, float]):
    """A function of a count, computed where it is first looked up."""

    def __init__(self, function: Callable[[int], float]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, count: int) -> float:
        value = self[count] = self._function(count)
        return value


class Stretch(NamedTuple):
    """Consecutive decode-only steps of one batch: step i takes ``first + i * slope`` seconds."""

    steps: float  # how many of them this holds for; may be infinite
    first: float  # s
    slope: float  # s per step

    def time(self, steps: int) -> float:
        """Seconds of the first ``steps`` steps together."""
        return steps * self.first + self.slope * (steps * (steps - 1) / 2)


Source = Literal["measured", "interpolated", "extrapolated", "transferred", "analytical", "fitted"]


class Explained(NamedTuple):
    """One operator of a step: seconds, and how they are known."""

    operator: str
    seconds: float
    source: Source


class Replica(NamedTuple):
    """What one replica of a pool runs: a model on ``tp * dp * pp`` devices under an engine.

    Each of ``pp`` stages has its share of the layers on ``tp * dp`` devices: attention is cut into ``tp`` parts and
    copied ``dp`` times, each copy with requests of its own; the routed experts are spread over all ``tp * dp``
    devices, whole in ``ep`` groups and cut within a group (vLLM documentation, "Data Parallel Deployment" and
    "Expert Parallel Deployment": expert layers form one group of size DP x TP, tensor parallel or expert parallel).
    """

    model: ModelSpec
    hardware: HardwareSpec
    tp: int
    engine: EngineProfile
    pp: int = 1
    dp: int = 1
    ep: int = 1
    node: NodeSpec = ISOLATED

    @property
    def group(self) -> int:
        """Devices of one stage."""
        return self.tp * self.dp

    @property
    def devices(self) -> int:
        return self.tp * self.dp * self.pp

    @property
    def domain(self) -> int:
        """Devices of one scale-up domain."""
        return self.node.devices or self.hardware.scale_up_devices


class StepModel(Protocol):
    """Step times of one replica: pure, exact, blind to everything but the shape."""

    def step_time(self, shape: StepShape) -> float:
        """Seconds of one step."""

    def decode_stretch(self, decodes: int, context: int, longest: int = 0) -> Stretch:
        """The decode-only steps from here while step time stays linear in the step's number.

        ``longest`` as in StepShape; given to models that say so (``uneven``).
        """


class PerfModel(Protocol):
    """A way of predicting step times."""

    def of(self, replica: Replica) -> StepModel:
        """The step times of this replica."""

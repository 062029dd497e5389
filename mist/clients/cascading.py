"""An engine that reads the prefix all its running requests have in common once a step."""

from dataclasses import dataclass
from typing import Any

from mist.clients.leaping import LeapingClient
from mist.kernel import Kernel
from mist.memory.prefix import PrefixPool
from mist.perf.base import PerfModel, Replica, StepShape, Stretch
from mist.perf.cascade import FEWEST, CascadeLoad, CascadeRule, CascadeSteps
from mist.perf.profile import Profile
from mist.request import Request


@dataclass(frozen=True)
class CascadeUse:
    """How often a common prefix was read once, and what that spared."""

    steps: int  # that did so
    spared_tokens: int  # of KV, that those steps did not read again: (sequences - 1) x tokens in common


class CascadingClient(LeapingClient):
    """A LeapingClient with cascade attention (``engine.cascade_attention``, see mist/perf/cascade.py).

    What all running requests have in common stays the same over a leap, whose members and tables do.
    """

    kv: PrefixPool
    steptimes: CascadeSteps

    def __init__(self, kernel: Kernel, name: str, *, rule: CascadeRule, **engine: Any) -> None:
        """``engine`` is what Seats take."""
        super().__init__(kernel, name, **engine)
        self._rule = rule
        self._cascades = self._spared = 0
        self.shared = 0  # tokens read once in each step of the leap under way

    @property
    def cascade(self) -> CascadeUse:
        """What has been spared so far, by the steps that ended or were not leapt over."""
        return CascadeUse(self._cascades, self._spared)

    def _common(self, requests: int, chunks: tuple[tuple[int, int], ...]) -> int:
        """Tokens that a step of so many requests reads once."""
        if requests < FEWEST:
            return 0
        return self._rule.shared(self.kv.shared_blocks(self._running.values()) * self.kv.block_tokens, requests, chunks)

    def _count(self, decodes: int, shared: int, steps: int) -> None:
        if shared:
            self._cascades += steps
            self._spared += (decodes - 1) * shared * steps

    def _shape(self, chunks: tuple[tuple[int, int], ...], last: Request) -> StepShape:
        shape = super()._shape(chunks, last)
        if not shape.decodes or shape.requests < FEWEST:
            return shape
        common = self.kv.shared_blocks(self._running.values(), None if last.id in self._running else last)
        return shape._replace(shared=self._rule.shared(common * self.kv.block_tokens, shape.requests, chunks))

    def _step_time(self, shape: StepShape) -> float:
        if shape.decodes and (shared := self._common(shape.requests, shape.chunks)):
            shape = shape._replace(shared=shared)
            self._count(shape.decodes, shared, 1)
        return super()._step_time(shape)

    def _stretch(self) -> Stretch:
        decodes = self.decodes
        self.shared = self._common(decodes.count, ())
        longest = decodes.longest if self._uneven else 0
        return self.steptimes.decode_stretch(decodes.count, decodes.cached, longest, self.shared)

    def _end_leap(self, stamp: int) -> None:
        if stamp == self._stamp and self._leap is not None:
            self._count(self.decodes.count, self.shared, self._leap[1])
        super()._end_leap(stamp)


class LeapLoad:
    """What a cascading engine asks of its devices: in a leap, what is shared in it is read once."""

    def __init__(self, load: CascadeLoad, client: CascadingClient) -> None:
        self._load, self._client = load, client

    def step(self, shape: StepShape) -> float:
        """Of one step."""
        return self._load.step(shape)

    def stretch(self, decodes: int, context: int, steps: int) -> float:
        """Of ``steps`` decode-only steps of the leap under way."""
        return self._load.stretch(decodes, context, steps, self._client.shared)


def no_cascade(replica: Replica, perf: PerfModel, *, prefix_caching: bool, role: str, drafts: int) -> str:
    """Why ``engine.cascade_attention`` does nothing on such a pool; empty if it does something."""
    model = replica.model
    if role == "prefill":
        return "a pool that only prefills decodes nothing"
    if role == "decode":
        return "a decode pool is sent whole caches, of which requests hold none in common"
    if not prefix_caching:
        return "requests hold no KV in common without prefix_caching=true"
    if replica.pp > 1 or replica.dp > 1 or drafts:
        return "it is modelled on one pipeline stage and one copy of attention, without speculation"
    if model.kv_latent or model.window_layers == model.layers:
        return f"the engine has no such kernel for the attention of {model.name} (latent, or windows only)"
    if replica.hardware.generated_attention:
        return f"the engine has no such kernel for {replica.hardware.name} (hardware.generated_attention is true)"
    if not replica.hardware.multiprocessors:
        return f"the engine has no such kernel for {replica.hardware.name} (hardware.multiprocessors is not given)"
    if isinstance(perf, Profile):
        return "a step log does not tell what steps would take with it; perf=measured or roofline does"
    return ""

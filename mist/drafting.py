"""What drafting costs a replica: step time and energy of the drafter's passes beside the model's own."""

from collections import defaultdict
from dataclasses import replace

from mist.errors import InputError
from mist.model import ModelSpec
from mist.perf.base import Explained, Replica, Source, StepModel, StepShape, Stretch
from mist.perf.footprint import check_layout
from mist.perf.power import Load
from mist.speculation import Speculation


class DraftedSteps:
    """Step times of a replica that drafts: verification by the target, and ``tokens`` passes of the drafter.

    The drafter's first pass takes what the target takes, prompt chunks included, as its cache must hold them
    too; every further pass takes one token of every decoding request.
    """

    def __init__(self, target: StepModel, drafter: StepModel | None, speculation: Speculation) -> None:
        self.target, self.drafter = target, drafter
        self._tokens, self._overhead = speculation.tokens, speculation.pass_overhead
        self.uneven = any(getattr(model, "uneven", False) for model in (target, drafter))  # the longest sequence counts

    def step_time(self, shape: StepShape) -> float:
        time = self.target.step_time(shape)
        if self.drafter is None:
            return time
        time += self.drafter.step_time(shape) + self._overhead
        if shape.decodes and self._tokens > 1:
            one = self.drafter.step_time(_one_more(shape)) + self._overhead
            time += (self._tokens - 1) * one
        return time

    def explain(self, shape: StepShape) -> tuple[Explained, ...]:
        """The drafter's operators in all its passes, then the target's; the engine's overheads come last."""
        own = getattr(self.target, "explain", None)
        drafting = getattr(self.drafter, "explain", None)
        if own is None or drafting is None:
            return own(shape) if own is not None else ()
        more = self._tokens - 1 if shape.decodes else 0
        parts = [*drafting(shape)]
        parts += [part._replace(seconds=more * part.seconds) for part in drafting(_one_more(shape))] if more else []
        drafted: dict[tuple[str, Source], float] = defaultdict(float)
        for part in parts:
            drafted[f"drafter's {part.operator}", part.source] += part.seconds
        drafted["drafter's passes", "fitted"] = (1 + more) * self._overhead
        return (*[Explained(name, time, source) for (name, source), time in drafted.items()], *own(shape))

    def decode_stretch(self, decodes: int, context: int, longest: int = 0) -> Stretch:
        """One step, as nobody knows how many tokens it yields."""
        return Stretch(1, self.step_time(StepShape(decodes, context, (), decodes * self._tokens, longest)), 0.0)


def _one_more(shape: StepShape) -> StepShape:
    """A pass of the drafter after its first: one token of every decoding request."""
    return StepShape(shape.decodes, shape.context, longest=shape.longest)


class DraftedLoad:
    """Seconds at full utilisation of a replica that drafts: the model's, and those of the drafter's passes."""

    def __init__(self, target: Load, drafter: Load, speculation: Speculation) -> None:
        self.target, self.drafter, self._tokens = target, drafter, speculation.tokens

    def step(self, shape: StepShape) -> float:
        """Of one step, in the same passes as DraftedSteps."""
        load = self.target.step(shape) + self.drafter.step(shape)
        if shape.decodes and self._tokens > 1:
            load += (self._tokens - 1) * self.drafter.step(_one_more(shape))
        return load

    def stretch(self, decodes: int, context: int, steps: int) -> float:
        """Of ``steps`` decode-only steps from here; a replica that drafts leaps over none, so of one."""
        assert steps == 1
        return self.step(StepShape(decodes, context, (), decodes * self._tokens))


def drafting_replica(replica: Replica, drafter: ModelSpec) -> Replica:
    """The drafter in place of the model: the engine's overheads are paid once a step, not once a pass."""
    engine = replace(replica.engine, step_overhead=0.0, request_overhead=0.0, mixed_overhead=0.0)
    return replica._replace(model=drafter, engine=engine)


def check_prompt_drafting(source: Replica, preemption: str, drafts: Speculation) -> None:
    """InputError where a prefill replica cannot compute the prompts' cache of the decode pool's drafter."""
    drafter = drafts.drafter(source.model)
    if drafter is None:
        return
    for field in ("pp", "dp"):
        if getattr(source, field) > 1:
            why = f"prefills for {drafter.name} too, which is modelled on one stage and one copy of attention only"
            raise InputError(field, getattr(source, field), why, ["1"])
    if preemption == "swap":
        why = f"prefills for {drafter.name} too, whose blocks are not swapped"
        raise InputError("preemption", "swap", why, ["recompute"])
    check_layout(drafting_replica(source, drafter))

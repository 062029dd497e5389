"""Bounds: more than a deployment can serve, worked out from its step times without serving anybody.

A replica computes steps one after another, and a step that computes more takes longer. So the steps of a window take
at least what their decodes alone would, in the largest batches that memory, the engine and the TPOT limit allow; and at
least what their prompts alone would in the fullest chunks, the decoded tokens as if they were a prompt's beside them,
and the caches that these read. Of a policy that never mixes the two, the decodes alone and the prompts alone add up.
What a prompt may find in a cache or a tier is taken to cost nothing, and what requests have in common to take no memory
and, where cascade attention reads it once, no reading.
Requests per second are bounded by the slowest pool, and what a window passes as chance (``mist.metrics.unstable``) is
granted on top. Nothing is served where a request that is alone misses a limit.

Admissible where step times grow with everything in a step, and reading the caches of decodes adds to the rest in
proportion to them, as in the roofline and in the tables; ``tests/sweep/test_bound.py`` holds it against the simulator
on random designs.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf, sqrt
from typing import Any, NamedTuple

import numpy as np

from mist.build import build
from mist.errors import ImpossibleLayout, Infeasible, InputError, OutsideProfile, UnmeetableSLO, as_typed
from mist.faults import NO_FAULTS
from mist.metrics import percentile
from mist.perf.base import StepShape
from mist.pool import PoolSpec
from mist.roles import FIXED_ROLES
from mist.scaling import FIXED
from mist.scenario import Scenario
from mist.schedulers.continuous import Continuous
from mist.schedulers.mixed import Mixed
from mist.schedulers.static import Static
from mist.tiers.spec import NO_TIERS
from mist.ways import services
from mist.workload.traffic import Traffic

FINENESS = 1.02  # of one batch that is looked at over the one before
ALONE = 16.0  # tokens of a chunk whose attention and head are next to nothing

Seconds = Callable[[StepShape], float]


class Bound(NamedTuple):
    """Of one design: at most so much per dollar; why, where that is nothing."""

    value: float  # infinite where nothing is known
    reason: str = ""


class Asked(NamedTuple):
    """What requests ask for, on average over those that a deployment takes."""

    share: float  # of all requests
    prompt: float  # tokens
    longest: int  # prompt, tokens
    decodes: float  # tokens after the first
    context: float  # tokens that one of them reads
    answer: float  # tokens


def bound(config: Mapping[str, Any], traffic: Mapping[int, Traffic], objective: str = "tokens_per_dollar") -> Bound:
    """More of the objective than the design of ``config`` can reach on this traffic, by seed.

    Infinite where its parts are not alike all the time (autoscaling, roles, faults, colocation), where plans have more
    stages than one, and where the step times refuse to say.
    """
    try:
        with as_typed(config["pools"]):
            scenario = build(Scenario, config)
            if not _known(scenario):
                return Bound(inf)
            worth = [_worth(scenario, draws, objective) for draws in traffic.values()]
    except (ImpossibleLayout, Infeasible, UnmeetableSLO) as why:
        return Bound(0.0, str(why))
    except (InputError, OutsideProfile):
        return Bound(inf)
    dollars = scenario.dollars_per_hour / 3600  # per second
    return Bound(sum(worth) / len(worth) / dollars if dollars else inf)


def _known(scenario: Scenario) -> bool:
    still = scenario.roles == FIXED_ROLES and scenario.faults == NO_FAULTS and not scenario.colocated
    alike = all(spec.autoscaler == FIXED for spec in scenario.pools.values())
    return still and alike and scenario.pipeline.plain and len(services(scenario.pools)) == 1


def _worth(scenario: Scenario, traffic: Traffic, objective: str) -> float:
    """Of the objective per second, at most."""
    rooms = {name: spec.blocks() * spec.block_tokens for name, spec in scenario.pools.items()}
    tpot = max((part.bounds.get("tpot", inf) for part in scenario.slo.parts.values()), default=inf)
    for spec in scenario.pools.values():
        _refuse_late(scenario, spec, traffic)
    asked = _asked(traffic, min(rooms.values()), min(spec.model.context for spec in scenario.pools.values()))
    seconds = max(_seconds(spec, rooms[name], asked, tpot) for name, spec in scenario.pools.items())
    chance = 0.02 + 2 / sqrt(len(traffic))
    each = {"tokens_per_dollar": asked.answer, "input_tokens_per_dollar": asked.prompt}.get(objective, 1.0)
    return each / seconds / max(1 - chance, 1e-9) if seconds else inf


def _refuse_late(scenario: Scenario, spec: PoolSpec, traffic: Traffic) -> None:
    """UnmeetableSLO where the prompts alone, each by itself, take longer than a limit on TTFT allows."""
    if spec.role == "decode" or _finds(spec) or scenario.slo.classes:
        return
    stages, most = spec.steptimes(), _most(spec, int(traffic.inputs.max()))
    for limit in scenario.slo:
        prompt = int(percentile(traffic.inputs.tolist(), limit.percentile))
        pieces = ((min(most, prompt - past), past) for past in range(0, prompt, most))
        idle = sum(stage.step_time(StepShape(0, 0, (piece,))) for piece in pieces for stage in stages)
        if limit.metric == "ttft" and idle > limit.limit:
            why = f"a prompt of {prompt} tokens alone takes {idle:.3g} s"
            raise UnmeetableSLO(f"slo.{limit.name}", f"{limit.limit:g} s", why)


def _finds(spec: PoolSpec) -> bool:
    """Whether a prompt may be found, in part, instead of computed."""
    return spec.prefix_caching or spec.tiers != NO_TIERS


def _most(spec: PoolSpec, longest: int) -> int:
    """Prompt tokens of a step, at most."""
    whole = isinstance(spec.scheduler, Continuous | Mixed | Static)
    return max(spec.scheduler.token_budget, longest) if whole else spec.scheduler.token_budget


def _asked(traffic: Traffic, room: int, context: int) -> Asked:
    taken = traffic.inputs + traffic.outputs <= min(room, context)
    if not taken.any():
        taken = np.ones(len(traffic), dtype=bool)
    prompts, answers = traffic.inputs[taken].astype(float), traffic.outputs[taken].astype(float)
    decodes = answers - 1
    reads = float((decodes * (prompts + answers / 2)).sum() / max(decodes.sum(), 1.0))
    longest = int(prompts.max())
    return Asked(float(taken.mean()), prompts.mean(), longest, decodes.mean(), reads, answers.mean())


def _seconds(spec: PoolSpec, room: int, asked: Asked, tpot: float) -> float:
    """Of the pool, for one request, at least."""
    stages = spec.steptimes()

    def step(shape: StepShape) -> float:
        return max(stage.step_time(shape) for stage in stages)

    scheduler, drafts = spec.scheduler, spec.speculation.tokens
    most = _most(spec, asked.longest)
    prompts = 0.0 if spec.role == "decode" or _finds(spec) else asked.prompt
    decodes = 0.0 if spec.role == "prefill" else asked.decodes
    reading = prompts * _of_prompts(step, asked.prompt, most) if prompts else 0.0
    fit = scheduler.max_running if spec.prefix_caching else int(room / max(asked.context, 1.0)) + 1
    once = spec.engine.cascade_attention and not spec.no_cascade
    batch, context = min(scheduler.max_running, fit), 1.0 if once else asked.context
    writing = decodes * _of_decodes(step, context, batch, tpot, drafts) if decodes else 0.0
    if isinstance(scheduler, Continuous | Static):
        return (reading + writing) / spec.replicas
    beside = decodes * (_of_prompts(step, ALONE, most) + _of_caches(step, context, batch) / (1 + drafts))
    return max(writing, reading + beside if prompts else 0.0) / spec.replicas


def _of_prompts(step: Seconds, prompt: float, most: int) -> float:
    """Seconds of one prompt token in the best of steps up to ``most`` tokens; ``prompt`` is their mean length."""

    def chunks(tokens: int) -> tuple[tuple[int, int], ...]:
        length = max(int(prompt), 1)
        if tokens <= length:  # the tokens before it are on average half of what the prompt has beside it
            return ((tokens, (length - tokens) // 2),)
        rest = tokens % length
        return ((length, 0),) * (tokens // length) + (((rest, 0),) if rest else ())

    return _least(lambda tokens: step(StepShape(0, 0, chunks(tokens))), most)


def _of_decodes(step: Seconds, context: float, batch: int, tpot: float, drafts: int) -> float:
    """Seconds of one token after the first in the best of batches up to ``batch`` that keep within ``tpot``."""

    def seconds(decodes: int) -> float:
        return step(StepShape(decodes, int(decodes * context), (), decodes * drafts))

    while batch > 1 and seconds(batch) > tpot * (1 + drafts):
        batch -= max(1, int(batch * (FINENESS - 1)))
    return _least(seconds, batch) / (1 + drafts)


def _of_caches(step: Seconds, context: float, batch: int) -> float:
    """Seconds by which the cache of one decode lengthens a step, in the best of batches."""
    batches = {batch, *(1 << power for power in range(batch.bit_length()))}
    longer = [step(StepShape(size, int(size * context))) - step(StepShape(size, size)) for size in batches]
    return min(time / size for time, size in zip(longer, batches, strict=True))


def _least(seconds: Callable[[int], float], most: int) -> float:
    """The least seconds per unit over all counts up to ``most``: between two counts, the time of the lower one."""
    counts = list(_counts(most))
    return min(seconds(low) / max(high - 1, low) for low, high in zip(counts, [*counts[1:], most + 1], strict=True))


def _counts(most: int) -> Iterable[int]:
    count = 1
    while count < most:
        yield count
        count = max(count + 1, int(count * FINENESS))
    yield most

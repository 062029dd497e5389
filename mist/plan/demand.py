"""What plans ask of pools on average, worked out without serving anybody."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from mist.plan.draws import Draws
from mist.plan.stages import Pipeline, unfold
from mist.plan.steps import Forking, Generating, Serving, Steps
from mist.workload.traffic import Traffic

SAMPLE = 200  # requests, spread over the cycle


class Demand(NamedTuple):
    """Of one query, on average."""

    generations: float
    prompt: float  # tokens of each
    answer: float  # tokens of each


def demand(pipeline: Pipeline, traffic: Traffic, seed: int, pools: Mapping[str, str | None]) -> dict[str, Demand]:
    """By pool; ``pools`` maps those that requests enter to the decode pools behind them.

    Of a fork, the drawn winner goes on among all branches, waited for or not.
    """
    sums: dict[str | None, list[float]]
    if pipeline.plain:
        sums = {None: [1.0, float(traffic.inputs.mean()), float(traffic.outputs.mean())]}
    else:
        sums = _sampled(pipeline, traffic, seed)
    only, found = next(iter(pools)), {}
    for pool, (count, prompts, answers) in sums.items():
        name = only if pool is None else pool
        found[name] = Demand(count, prompts / count, answers / count)
    return found | {sink: found[name] for name, sink in pools.items() if sink is not None and name in found}


def _sampled(pipeline: Pipeline, traffic: Traffic, seed: int) -> dict[str | None, list[float]]:
    """Generations, prompt tokens and answer tokens of a query by pool, in sum."""
    draws, positions = Draws(seed, len(traffic)), range(0, len(traffic), -(-len(traffic) // SAMPLE))
    sums: dict[str | None, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for position in positions:
        kind = "" if traffic.members is None else traffic.classes[traffic.members[position]].name
        prompt, answer = int(traffic.inputs[position]), int(traffic.outputs[position])
        _add(unfold(pipeline.stages, draws.of(position, kind, prompt)), prompt, answer, sums)
    return {pool: [total / len(positions) for total in totals] for pool, totals in sums.items()}


def _add(steps: Steps, context: int, asked: int, sums: Mapping[str | None, list[float]]) -> int:
    """Add up what ``steps`` generate; the context at their end."""
    for step in steps:
        if isinstance(step, Generating):
            prompt = (context if step.prompt is None else step.prompt) + step.instruction
            answer = asked if step.output is None else step.output
            totals = sums[step.pool]
            for index, value in enumerate((1.0, prompt, answer)):
                totals[index] += value
            context += (answer + (step.instruction if step.prompt is None else 0)) * step.keeps
        elif isinstance(step, Forking):
            ends = [_add(branch, context, asked, sums) for branch in step.branches]
            together = context + sum(end - context for end in ends)
            context = {"one": ends[step.winner(len(ends))], "all": together, "none": context}[step.carries]
        elif isinstance(step, Serving):
            context += step.added
    return context

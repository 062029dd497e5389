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

    Of a fork, the drawn winner goes on among all branches, waited for or not. Branches that are called back have
    written as much by then as the last of those that were waited for.
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
        reads, _ = _read(unfold(pipeline.stages, draws.of(position, kind, prompt)), prompt, answer)
        for read in reads:
            for index, value in enumerate((1.0, read.prompt, read.answer)):
                sums[read.pool][index] += value
    return {pool: [total / len(positions) for total in totals] for pool, totals in sums.items()}


class Read(NamedTuple):
    """One generation, tokens."""

    pool: str | None
    prompt: int
    answer: int


def _read(steps: Steps, context: int, asked: int) -> tuple[list[Read], int]:
    """What ``steps`` generate, and the context at their end."""
    reads: list[Read] = []
    for step in steps:
        if isinstance(step, Generating):
            prompt = (context if step.prompt is None else step.prompt) + step.instruction
            answer = asked if step.output is None else step.output
            reads.append(Read(step.pool, prompt, answer))
            context += (answer + (step.instruction if step.prompt is None else 0)) * step.keeps
        elif isinstance(step, Forking):
            branches = [_read(branch, context, asked) for branch in step.branches]
            ends = [end for _, end in branches]
            together = context + sum(end - context for end in ends)
            reads += _heard(step, [branch for branch, _ in branches])
            context = {"one": ends[step.winner(len(ends))], "all": together, "none": context}[step.carries]
        elif isinstance(step, Serving):
            context += step.added
    return reads, context


def _heard(step: Forking, branches: list[list[Read]]) -> list[Read]:
    """What branches generate until enough of them have ended, where the others are called back then; else all of it.

    Branches write at one pace: when ``needs`` have ended, no other has written more than the longest of them.
    """
    if not step.aborts or step.needs >= len(branches):
        return [read for branch in branches for read in branch]
    most = sorted(sum(read.answer for read in branch) for branch in branches)[step.needs - 1]
    heard = []
    for branch in branches:
        left = most
        for read in branch:
            if left > 0:
                heard.append(read._replace(answer=min(read.answer, left)))
            left -= read.answer
    return heard

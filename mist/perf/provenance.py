"""How the step times of a run are known: shares of time by source, at the steps a pool typically made."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from mist.perf.base import StepModel, StepShape

Weighted = tuple[StepShape, float]


def shares(models: Sequence[StepModel], steps: Iterable[Weighted]) -> dict[str, float]:
    """Share of the time of ``steps`` (each so many times) by how it is known; empty if the models cannot tell."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for shape, times in steps:
        for model in models:
            explain = getattr(model, "explain", None)
            for part in explain(shape) if explain is not None else ():
                seconds[part.source] += times * part.seconds
    whole = sum(seconds.values())
    return {source: part / whole for source, part in sorted(seconds.items()) if part} if whole > 0 else {}


def typical(  # noqa: PLR0917
    requests: int, prompt: float, answer: float, steps: int, budget: int, role: str
) -> list[Weighted]:
    """The steps that so many requests of mean lengths make in ``steps`` steps, those with a prompt chunk apart.

    A prompt takes as many chunks as the token budget makes of it; every request decodes in each of the others.
    """
    if not requests or not steps:
        return []
    decodes = 0 if role == "prefill" else min(max(round(requests * (answer - 1) / steps), 1), requests)
    context = round(decodes * (prompt + answer / 2))
    if role == "decode":
        return [(StepShape(decodes, context), float(steps))]
    pieces = max(-(-int(prompt) // max(budget - decodes, 1)), 1)
    chunk = max(round(prompt / pieces), 1)
    with_prompt = min(requests * pieces, steps)
    past = (pieces - 1) * chunk // 2
    mixed = StepShape(decodes, context, ((chunk, past),)), float(with_prompt)
    rest = steps - with_prompt
    return [mixed, (StepShape(decodes, context), float(rest))] if rest and decodes else [mixed]

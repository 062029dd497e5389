"""Where plans part: rounds, chances, options, and branches side by side."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mist.errors import InputError
from mist.plan.draws import Chance
from mist.plan.stages import PipelineStage, check_least, check_stages, unfold
from mist.plan.steps import Carries, Forking, Steps
from mist.workload.lengths import Lengths


@dataclass(frozen=True)
class Repeat:
    """``stages`` over and over, as many ``rounds`` as are drawn."""

    stages: Mapping[str, PipelineStage]
    rounds: Lengths

    def __post_init__(self) -> None:
        check_stages(self.stages)

    def unfold(self, place: str, chance: Chance) -> Steps:
        rounds = range(chance.number(f"{place}.rounds", self.rounds))
        return tuple(step for r in rounds for step in unfold(self.stages, chance, f"{place}.{r}."))

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {"": self.stages}


@dataclass(frozen=True)
class Exactly:
    """Always ``count`` rounds."""

    count: int

    def __post_init__(self) -> None:
        check_least("count", self.count, 1)

    def draw(self, n: int, chance: np.random.Generator) -> NDArray[np.int64]:  # noqa: ARG002
        return np.full(n, self.count, dtype=np.int64)


@dataclass(frozen=True)
class Maybe:
    """``stages`` with this ``probability``, else nothing."""

    stages: Mapping[str, PipelineStage]
    probability: float

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if not 0 <= self.probability <= 1:
            raise InputError("probability", self.probability, "must lie in [0, 1]")

    def unfold(self, place: str, chance: Chance) -> Steps:
        taken = chance.share(f"{place}.taken") < self.probability
        return unfold(self.stages, chance, f"{place}.") if taken else ()

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {"": self.stages}


@dataclass(frozen=True)
class Option:
    """One way to go, taken in proportion to its ``weight``."""

    stages: Mapping[str, PipelineStage]
    weight: float

    def __post_init__(self) -> None:
        check_stages(self.stages)
        if not self.weight > 0:
            raise InputError("weight", self.weight, "must be positive")


@dataclass(frozen=True)
class Choice:
    """One of several ways: a mix of pipelines, or of models."""

    options: Mapping[str, Option]

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise InputError("options", len(self.options), "a choice needs at least two")

    def unfold(self, place: str, chance: Chance) -> Steps:
        ends = list(accumulate(option.weight for option in self.options.values()))
        taken = bisect_right(ends, chance.share(f"{place}.taken") * ends[-1])
        name = list(self.options)[min(taken, len(ends) - 1)]
        return unfold(self.options[name].stages, chance, f"{place}.{name}.")

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {f"options.{name}": option.stages for name, option in self.options.items()}


@dataclass(frozen=True)
class Path:
    """One plan of a fork, in ``copies`` branches that draw each for itself."""

    stages: Mapping[str, PipelineStage]
    copies: int = 1

    def __post_init__(self) -> None:
        check_stages(self.stages)
        check_least("copies", self.copies, 1)


@dataclass(frozen=True)
class Fork:
    """Branches side by side, which all begin with the context so far.

    The plan goes on when ``needs`` of them have ended (None: all, as a majority vote and a best-of-N need). The rest
    run to their end, at their cost, unheard, or are called back with ``unheard=abort``: engines let go of their
    generations after the step under way, stations finish what they were given. Of those that ended, ``carries`` says
    whose tokens go on: those of *one* drawn among them, of *all* one after another, or of *none*.
    """

    paths: Mapping[str, Path]
    needs: int | None = None
    carries: Carries = "one"
    unheard: Literal["run", "abort"] = "run"

    def __post_init__(self) -> None:
        branches = sum(path.copies for path in self.paths.values())
        if not branches:
            raise InputError("paths", "(nothing)", "a fork needs at least one")
        if self.needs is not None and not 1 <= self.needs <= branches:
            raise InputError("needs", self.needs, f"the fork has {branches} branches")
        if self.unheard == "abort" and (self.needs or branches) == branches:
            raise InputError("unheard", "abort", f"has no effect: all {branches} branches are waited for (needs)")

    def unfold(self, place: str, chance: Chance) -> Steps:
        branches = tuple(
            unfold(path.stages, chance, f"{place}.{name}.{copy}.")
            for name, path in self.paths.items()
            for copy in range(path.copies)
        )
        share = chance.share(f"{place}.winner") if self.carries == "one" else 0.0
        aborts = self.unheard == "abort"
        return (Forking(place, branches, self.needs or len(branches), self.carries, share, aborts),)

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {f"paths.{name}": path.stages for name, path in self.paths.items()}

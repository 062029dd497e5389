"""Routing by what a request is: its class, or its length."""

from collections.abc import Mapping
from dataclasses import dataclass

from mist.errors import InputError
from mist.plan.draws import Chance
from mist.plan.stages import PipelineStage, check_least, check_stages, unfold
from mist.plan.steps import Steps


@dataclass(frozen=True)
class Way:
    """What the requests that come this way do."""

    stages: Mapping[str, PipelineStage]

    def __post_init__(self) -> None:
        check_stages(self.stages)


@dataclass(frozen=True)
class ByClass:
    """Every class of the workload goes its own way."""

    classes: Mapping[str, Way]

    def unfold(self, place: str, chance: Chance) -> Steps:
        return unfold(self.classes[chance.kind].stages, chance, f"{place}.{chance.kind}.")

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {f"classes.{name}": way.stages for name, way in self.classes.items()}

    def check(self, where: str, names: tuple[str, ...]) -> None:
        """InputError, naming this place, unless it has a way for each of the workload's classes, and no other."""
        if set(names) != set(self.classes):
            why = "must name all classes of the workload" if names else "the workload has no classes"
            raise InputError(f"{where}.classes", ", ".join(self.classes), why, names)


@dataclass(frozen=True)
class ByLength:
    """Prompts of at most ``limit`` tokens go one way, longer ones another."""

    limit: int
    short: Way
    long: Way

    def __post_init__(self) -> None:
        check_least("limit", self.limit, 1)

    def unfold(self, place: str, chance: Chance) -> Steps:
        name, way = ("short", self.short) if chance.tokens <= self.limit else ("long", self.long)
        return unfold(way.stages, chance, f"{place}.{name}.")

    def inner(self) -> Mapping[str, Mapping[str, PipelineStage]]:
        return {"short": self.short.stages, "long": self.long.stages}

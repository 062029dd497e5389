"""What a sweep's answers depend on: the deployments it can reach, their workloads, the code."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mist.build import build
from mist.errors import ImpossibleLayout, InputError
from mist.perf.base import PerfModel
from mist.perf.tables.files import System
from mist.sweep.bound import Bound
from mist.sweep.identity import code, design_identity, digest, ordered_digest
from mist.sweep.judging import named
from mist.sweep.question import OPTIONS, Sweep
from mist.workload.traffic import Traffic, Workload

Config = dict[str, Any]


@dataclass(frozen=True)
class World:
    """Dotted paths of the functions a study rests on.

    ``composer``: overrides to a config. ``canon``: a config to canonical data, or InputError. ``judge``: a config, its
    traffic by seed and a limit in seconds to an answer; workers import it by this name. ``bound``: a config, its
    traffic and an objective to a bound (``mist.sweep.bound``).
    """

    composer: str = "mist.compose.compose"
    canon: str = "mist.sweep.identity.canonical"
    judge: str = "mist.sweep.capacity.judge"
    bound: str = "mist.sweep.bound.bound"

    @cached_property
    def compose(self) -> Callable[[list[str]], Config]:
        found: Callable[[list[str]], Config] = named(self.composer)
        return found

    @cached_property
    def canonical(self) -> Callable[[Config], Config]:
        found: Callable[[Config], Config] = named(self.canon)
        return found

    @cached_property
    def bounded(self) -> Callable[[Config, Mapping[int, Traffic], str], Bound]:
        found: Callable[[Config, Mapping[int, Traffic], str], Bound] = named(self.bound)
        return found


MIST = World()


class Workloads:
    """Content hashes and traffic, made once per workload and seed."""

    def __init__(self) -> None:
        self._built: dict[str, tuple[Any, str]] = {}
        self._traffic: dict[tuple[str, int], Traffic] = {}

    def content(self, config: Mapping[str, Any]) -> str:
        """sha256 of the file behind the config's workload, or nothing."""
        return self._load(config)[1]

    def traffic(self, config: Mapping[str, Any], seeds: Sequence[int]) -> dict[int, Traffic]:
        """The same objects every time, so that they are sent to workers once."""
        key = digest(config["workload"])
        for seed in seeds:
            if (key, seed) not in self._traffic:
                self._traffic[key, seed] = self._load(config)[0].traffic(seed)
        return {seed: self._traffic[key, seed] for seed in seeds}

    def _load(self, config: Mapping[str, Any]) -> tuple[Any, str]:
        key = digest(config["workload"])
        if key not in self._built:
            workload: Any = build(Workload, config["workload"], "workload")  # type: ignore[type-abstract]
            self._built[key] = workload, workload.content()
        return self._built[key]


def identity(config: Config, world: World, loads: Workloads) -> str:
    """Of one design. One that cannot be laid out has no canonical form, and goes by its config."""
    try:
        built = world.canonical(config)
    except ImpossibleLayout:
        built = config
    return design_identity(built, loads.content(config))


def reach(sweep: Sweep, world: World, loads: Workloads) -> dict[str, str]:
    """Every input that can change an answer of this sweep, by name, hashed.

    Builds the designs of every name in the space, on every rung: a mistake is found here, before anything is judged,
    and so is, on a resume, a data sheet that has changed.
    """
    rungs = {"": sweep.overrides} | ({" on the screen": sweep.search_overrides} if sweep.screen else {})
    configs = {}
    for where, overrides in rungs.items():
        base = configs[f"the base config{where}"] = _base(world, overrides({}))
        check_objective(sweep.objective, base)
        for label, designs in sweep.designs.probes():
            configs[f"the config of {label}{where}"] = _buildable(world, map(overrides, designs))
    contents = {f"the workload of {name}": loads.content(config) for name, config in configs.items()}
    asked: dict[str, Any] = {"seeds": sweep.seeds, "timeout": sweep.timeout, "objective": sweep.objective}
    asked |= {name: dict(getattr(sweep, name)) for name in ("space", "when", "derived", "screen")}
    return {
        **{name: ordered_digest(config) for name, config in configs.items()},
        **{name: content for name, content in contents.items() if content},
        **{
            f"{log} of {name}": content
            for name, config in configs.items()
            for log, content in (step_logs(config) | own_tables(config)).items()
        },
        "the prices": digest(configs["the base config"].get("price")),
        "the space": digest(asked),
        "the judge": world.judge,
        **code(),
    }


def _base(world: World, overrides: list[str]) -> Config:
    """The config of these; where one names nothing of a deployment, it may have been meant for the sweep."""
    try:
        return world.compose(overrides)
    except InputError as error:
        if error.field or error.value not in {text.partition("=")[0] for text in overrides}:
            raise
        raise InputError("", error.value, error.why, (*OPTIONS, *error.choices)) from None


def check_objective(objective: str, config: Config) -> None:
    """InputError where it counts output tokens and the config has no model that writes any."""
    if objective == "tokens_per_dollar" and config.get("pools", True) == {}:
        why = "nothing here writes tokens: every design would have none"
        raise InputError("objective", objective, why, ["requests_per_dollar", "input_tokens_per_dollar"])


def step_logs(config: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the file behind each pool's step times, where there is one (perf=profile)."""
    found = {}
    for name, pool in config.get("pools", {}).items():
        if (perf := pool.get("perf", {})).get("path"):
            built: Any = build(PerfModel, perf, f"pools.{name}.perf")  # type: ignore[type-abstract]
            found[f"the step log of {name}"] = built.content()
    return found


def own_tables(config: Mapping[str, Any]) -> dict[str, str]:
    """A hash of the operator tables behind each pool's step times, where they are the user's own (mist profile ops)."""
    pools = config.get("pools", {})
    systems = {name: System(pool.get("hardware", {}).get("tables") or "", "") for name, pool in pools.items()}
    return {f"the operator tables of {name}": system.identity() for name, system in systems.items() if system.own}


def _buildable(world: World, designs: Iterable[list[str]]) -> Config:
    """The config of the first of these designs that can be built; the first one's InputError if none can."""
    first: InputError | None = None
    for overrides in designs:
        config = world.compose(overrides)
        try:
            world.canonical(config)
        except ImpossibleLayout:
            return config  # an answer, not a mistake
        except InputError as error:
            first = first or error
        else:
            return config
    assert first is not None
    raise first

"""A sweep as a user writes it: one YAML file, one question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import yaml

from mist.build import build
from mist.catalog import sweep_file
from mist.errors import InputError
from mist.sweep.domain import Value, scalar
from mist.sweep.grammar import parse
from mist.sweep.options import Budget, Confirm, RayOptions, Search
from mist.sweep.space import Design, Space
from mist.units import Seconds

Objective = Literal["tokens_per_dollar", "requests_per_dollar", "input_tokens_per_dollar"]
LISTED = 5000  # designs whose bounds are worked out before any is judged, a few milliseconds each


@dataclass(frozen=True)
class Sweep:
    """One question: a base deployment, what may be varied, and how long to look.

    ``base`` are overrides every design shares; ``space`` maps override keys to sets of values and ``when`` some of
    them to a condition and ``derived`` gives keys that follow from others (``mist.sweep.grammar``); ``seeds`` is how
    many traffic seeds judge a design.
    ``objective`` is what to get most of for a dollar, within SLO at capacity: output tokens, requests, or input tokens.
    ``screen`` are overrides that hold only while searching, to judge faster and less exactly; the leaders are then
    confirmed without them.
    """

    question: str
    space: Mapping[str, str]
    base: Mapping[str, Any] = field(default_factory=dict)
    when: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    screen: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = "tokens_per_dollar"
    budget: Budget = field(default_factory=Budget)
    seeds: int = 1
    search: Search = field(default_factory=Search)
    confirm: Confirm = field(default_factory=Confirm)
    timeout: Seconds = 120.0  # wall clock of one trial
    workers: Literal["ray", "serial"] = "ray"
    ray: RayOptions = field(default_factory=RayOptions)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError("seeds", self.seeds, "must be at least 1")
        if not self.timeout > 0:
            raise InputError("timeout", self.timeout, "must be positive")
        self._check_overrides()
        self._check_sampler()

    def _check_sampler(self) -> None:
        sampler, size = self.search.sampler, self.designs.size
        count = "uncountably many" if size is None else f"{size:,}"
        if sampler == "grid" and not self.exhaustive:
            why = f"a grid judges every design and the space has {count}; raise budget.designs or sample"
            raise InputError("search.sampler", "grid", why, ("bound", "tpe", "nsga2", "qmc", "random"))
        if sampler == "bound" and not self._listed:
            why = f"it lists every design, at most {LISTED:,}, and the space has {count}"
            raise InputError("search.sampler", "bound", why, ("tpe", "nsga2", "qmc", "random"))

    def _check_overrides(self) -> None:
        for name, given in (
            ("base", self.base),
            ("space", self.space),
            ("derived", self.derived),
            ("screen", self.screen),
        ):
            for key, value in given.items():
                if not isinstance(value, str | int | float | bool | None):
                    why = "an override is one value; write a.b: value for a nested one"
                    raise InputError(f"{name}.{key}", value, why)
                if key in _SET_HERE:
                    raise InputError(f"{name}.{key}", value, _SET_HERE[key])
        for key in self.screen:
            if key in self.space or key in self.derived:
                why = "is in the space, and what is varied cannot be fixed while searching"
                raise InputError(f"screen.{key}", self.screen[key], why)
        if self.screen and self.confirm.leaders == 0:
            raise InputError("confirm.leaders", 0, "a screened search is no answer until its leaders are confirmed")

    @cached_property
    def designs(self) -> Space:
        """The space, with the keys that ``base`` fixes taken out."""
        return parse(self.space, self.when, self.base, self.derived)

    @property
    def best_first(self) -> bool:
        """Whether designs are judged in falling order of their bounds."""
        return self.search.sampler == "bound" or (self.search.sampler == "auto" and self._listed)

    @property
    def _listed(self) -> bool:
        return self.designs.size is not None and self.designs.size <= LISTED

    @property
    def exhaustive(self) -> bool:
        """Whether the budget covers the whole space."""
        return self.designs.size is not None and self.designs.size <= self.budget.designs

    @property
    def study_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seeds))

    @property
    def confirm_seeds(self) -> tuple[int, ...]:
        """None of the study's own: a leader was chosen because it did well on those."""
        return tuple(range(self.seeds, self.seeds + self.confirm.seeds))

    @property
    def search_rung(self) -> Literal["screen", "search"]:
        """What the first rung of the ladder is called: a screen, or a search at full fidelity."""
        return "screen" if self.screen else "search"

    def overrides(self, design: Design) -> list[str]:
        """The whole deployment of a design as ``key=value`` overrides, base first."""
        return [override(key, value) for key, value in {**self.base, **design}.items()]

    def search_overrides(self, design: Design) -> list[str]:
        """As ``overrides``, with those that hold only while searching."""
        return [override(key, value) for key, value in {**self.base, **self.screen, **design}.items()]


# options of a deployment that a sweep decides
_SET_HERE = {
    "workload.rate": "has no effect: a sweep seeks the largest rate itself",
    "seed": "has no effect: the seeds of the traffic are the sweep's own (seeds, confirm.seeds)",
}
OPTIONS = tuple(f.name for f in fields(Sweep))
_QUOTED = frozenset(",={}[]()'\"\\:#")


def override(key: str, value: Value) -> str:
    """``key=value`` as Hydra reads it; a value with its special characters is quoted."""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, str) and (not value or value != value.strip() or set(value) & _QUOTED):
        text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    else:
        text = str(value)
    return f"{key}={text}"


def read(name: str, overrides: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """The name and the plain data of a sweep, with command-line overrides laid on it.

    ``name`` is a file, or a name in the user's ``./sweeps``, or one of the sweeps that come with MIST. An override
    of one of the sweep's own fields (``budget.designs=100``, ``space.tp=choice(1, 2)``) changes it; any other is a
    base override: it fixes its key if that key is in the space, and holds in the screen too.
    """
    path = sweep_file(name)
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError("", path, f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError("", path, "a sweep is a map of options", OPTIONS)
    _check_fixed(data)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError("", text, "an override reads key=value")
        _lay(data, key, scalar(value))
    return path.stem, data


def _check_fixed(data: Mapping[str, Any]) -> None:
    """InputError where a file both fixes and varies a key; an override may fix what the file varies."""
    base, space = data.get("base"), data.get("space")
    if not (isinstance(base, Mapping) and isinstance(space, Mapping)):
        return  # ill-typed, or nothing: told when the sweep is built
    for key in base:
        if key in space:
            raise InputError(f"space.{key}", space[key], f"has no effect: base fixes {key}; take one of them out")


def sweep(data: Mapping[str, Any]) -> Sweep:
    """The Sweep that plain data describes; InputError for each mistake, by its address."""
    return build(Sweep, data)


def _lay(data: dict[str, Any], key: str, value: Value) -> None:
    first, _, rest = key.partition(".")
    if first not in OPTIONS:
        data["base"] = {**(data.get("base") or {}), key: value}
        screen = data.get("screen")
        if isinstance(screen, dict):
            data["screen"] = {k: v for k, v in screen.items() if k != key and not k.startswith(f"{key}.")}
    elif not rest:
        data[key] = value
    else:
        inner = data.get(first) or {}
        if not isinstance(inner, Mapping):
            raise InputError(key, value, f"{first} has no options inside")
        data[first] = {**inner, rest: value}

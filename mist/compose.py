"""Overrides to one plain, resolved config: Hydra chooses the files, a patch of plain data sets the values.

An address without a pool's name speaks to every pool that has such an attribute (``tp=2``,
``scheduler.token_budget=512``); one that begins with a pool's name speaks to that pool and outranks the
former (``decode.hardware=h200``); all others speak to the root (``slo.ttft_p99=500ms``, ``seed=3``).
Choices are made before values are set, whatever the order of the overrides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mist.catalog import choice_file, groups, nearest, stamp, sweep_file
from mist.composition import MISSING, POOLS, Address, Composition, attributes, composed, plain_data
from mist.errors import InputError
from mist.model_card import read
from mist.overrides import Override, parse

__all__ = ["compose", "groups", "sweep_file"]

AUTOMATIC = {"automatic": True}  # what conf/perf/automatic.yaml holds

Reach = tuple[bool, list[Address]]  # whether the address is exact, and the places it speaks to


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config that ``overrides`` describe: nested dicts of plain values, interpolations resolved.

    Files of ./conf lie on top of the packaged ones. Raises InputError, naming the address as it was typed.
    Options below a known address are not checked here but where they are built.
    """
    parsed = [parse(text) for text in overrides]
    _refuse_repeats(parsed)
    composition, values, cards = _choose(parsed)
    config: dict[str, Any] = _copy(composition.data)
    for address, card in cards.items():
        _at(config, address[:-1])[address[-1]] = _card(card)
    placed = _place(values, partial(_places, config, composition))
    _refuse_nesting(placed)
    for address, override in placed.items():
        _set(config, address, override)
    for address in composition.missing:
        if _at(config, address) == MISSING:
            raise InputError(_spoken(address), "(nothing)", "must be given")
    if composition.interpolated or any("${" in override.raw for override in values):
        config = _resolved(config)
    return config


def _refuse_repeats(overrides: Iterable[Override]) -> None:
    seen: dict[Address, Override] = {}
    for override in overrides:
        if override.address in seen:
            first = seen[override.address]
            raise InputError(override.name, override.raw, f"given twice, {first.text!r} and {override.text!r}")
        seen[override.address] = override


def _choose(overrides: Sequence[Override]) -> tuple[Composition, list[Override], dict[Address, Override]]:
    """The composition after every choice, the overrides that are no choices, and the models given as a file.

    The cluster goes first because it lays out the places, and the pipeline next because it may bring its own; a choice
    may open further places.
    """
    now, chosen, rest = stamp(), dict[str, str](), list(overrides)
    cards: dict[Address, Override] = {}
    clusters, pipelines = ([o for o in rest if o.address == (name,)] for name in ("cluster", "pipeline"))
    for batch in (clusters, pipelines, rest):
        while True:
            composition = composed(tuple(sorted(chosen.items())), now)
            slots = composition.slots
            here = [override for override in batch if override in rest and _slots(slots, override)[1]]
            if not here:
                break
            for address, override in _place(here, partial(_slots, slots)).items():
                if address[-1] == "model" and str(override.value).endswith(".json"):
                    cards[address] = override
                else:
                    chosen[slots[address]] = _choice(override, slots[address].partition("@")[0])
            rest = [override for override in rest if override not in here]
    own = _by_evidence(composition)
    return (composed(tuple(sorted({**chosen, **own}.items())), now) if own else composition), rest, cards


def _by_evidence(composition: Composition) -> dict[str, str]:
    """The performance models that ``perf=automatic`` stands for: measured where the device's operators were timed."""
    own = dict[str, str]()
    for address, slot in composition.slots.items():
        if _at(composition.data, address) == AUTOMATIC:
            device = _at(composition.data, (*address[:-1], "hardware")) or {}
            own[slot] = "measured" if device.get("tables") else "roofline"
    return own


def _slots(slots: Mapping[Address, str], override: Override) -> Reach:
    address = override.address
    exact = [place for place in (address, (POOLS, *address)) if place in slots]
    if exact:
        return True, exact[:1]
    return False, [place for place in slots if place[0] == POOLS and place[2:] == address]


def _choice(override: Override, group: str) -> str:
    try:
        choice_file(group, str(override.value))
    except InputError as error:
        raise InputError(override.name, override.raw, error.why, error.choices) from None
    return str(override.value)


def _card(override: Override) -> dict[str, Any]:
    """The model that a Hugging Face config.json describes, relative to the working directory."""
    try:
        return read(str(override.value))
    except InputError as error:
        inside = error.field.removeprefix("model")
        where = f"{override.name}.{inside}" if inside else override.name
        raise InputError(where, error.value, error.why, error.choices) from None


def _place(overrides: Iterable[Override], reach: Callable[[Override], Reach]) -> dict[Address, Override]:
    """Which override each place hears: an exact address outranks one that speaks to every pool."""
    reached = [(override, *reach(override)) for override in overrides]
    placed = {address: override for override, exact, places in reached if exact for address in places}
    for override, exact, places in reached:
        if exact:
            continue
        free = [address for address in places if address not in placed]
        if not free:
            others = ", ".join(sorted({placed[address].text for address in places}))
            raise InputError(override.name, override.raw, f"has no effect, every pool has its own: {others}")
        placed.update(dict.fromkeys(free, override))
    return placed


def _places(config: Mapping[str, Any], composition: Composition, override: Override) -> Reach:
    address, pools = override.address, config[POOLS]
    if address[0] in pools:
        if len(address) > 1:
            return True, [(POOLS, *address)]
        raise InputError(override.name, override.raw, "a pool is set option by option", attributes(pools))
    if address[0] in config and address[0] != POOLS:
        return True, [address]
    every = [(POOLS, pool, *address) for pool in pools if address[0] in pools[pool]]
    if every:
        return False, every
    valid = dict.fromkeys([*(key for key in config if key != POOLS), *pools, *attributes(pools)])
    valid |= dict.fromkeys(place[0] for place in composition.slots if len(place) == 1)
    why = "this cluster has no place for it" if address[-1] in groups() else "no such address"
    raise InputError("", override.name, why, nearest(address[0], tuple(valid)))


def _refuse_nesting(placed: Mapping[Address, Override]) -> None:
    for address, override in placed.items():
        for length in range(1, len(address)):
            outer = placed.get(address[:length])
            if outer is not None:
                raise InputError(override.name, override.raw, f"lies inside {outer.text!r}; give one of the two")


def _set(config: dict[str, Any], address: Address, override: Override) -> None:
    node = config
    for depth, key in enumerate(address[:-1], start=1):
        inner = node.get(key)
        if inner is None:
            inner = node[key] = {}
        if not isinstance(inner, dict):
            raise InputError(override.name, override.raw, f"{_spoken(address[:depth])} is {inner!r}, it has no options")
        node = inner
    node[address[-1]] = _copy(override.value)


def _at(config: Mapping[str, Any], address: Address) -> Any:
    node: Any = config
    for key in address:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    try:
        return plain_data(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        address = tuple(str(error.full_key or "").split("."))
        raise InputError(_spoken(address), _at(config, address), str(error).splitlines()[0]) from None


def _spoken(address: Address) -> str:
    return ".".join(address[1:] if address[0] == POOLS and len(address) > 1 else address)

"""How a search space is written.

In YAML a space is a map of text, ``hardware: choice(h100, a100)``, and its conditions a second map,
``scheduler.token_budget: scheduler in (chunked_prefill)``: a key whose condition fails is not part of the design. A
third map derives values from others, ``decode.replicas: 8 - prefill.replicas``; where one does not come to a whole
number of at least 1, there is no such design.
"""

import re
from collections.abc import Mapping

from mist.errors import InputError
from mist.sweep.domain import Domain, Interval, Value, domain, scalars
from mist.sweep.formula import Formula, formula
from mist.sweep.space import Condition, Derived, Knob, Space

_WHEN = re.compile(r"\s*([\w.@/]+)\s+in\s+\((.*)\)\s*\Z", re.DOTALL)


def parse(
    texts: Mapping[str, str],
    when: Mapping[str, str],
    fixed: Mapping[str, Value],
    derived: Mapping[str, str] | None = None,
) -> Space:
    """The space of a sweep's ``space``, ``when`` and ``derived`` maps; InputError for each mistake, by its key.

    A key in ``fixed`` (the base overrides) takes that value and leaves the space.
    """
    formulas = _formulas(derived or {}, texts, fixed)
    domains = {key: domain(f"space.{key}", text) for key, text in texts.items()}
    conditions = {key: _condition(key, text, domains, fixed, formulas) for key, text in when.items()}
    knobs: dict[str, Knob] = {}

    def add(key: str, below: tuple[str, ...]) -> None:
        if key in below:
            raise InputError(f"when.{key}", when[key], f"goes round in a circle: {' -> '.join((*below, key))}")
        condition = conditions.get(key)
        if condition and condition.key not in fixed and condition.key not in knobs:
            add(condition.key, (*below, key))
        knobs.setdefault(key, Knob(key, domains[key], condition))

    for key in domains:
        if key not in fixed:
            add(key, ())
    following = (Derived(key, one, conditions.get(key)) for key, one in formulas.items() if key not in fixed)
    return Space(tuple(knobs.values()), fixed, tuple(following))


def _formulas(derived: Mapping[str, str], texts: Mapping[str, str], fixed: Mapping[str, Value]) -> dict[str, Formula]:
    """By key; each may read the space, the base and those before it."""
    formulas: dict[str, Formula] = {}
    for key, text in derived.items():
        field = f"derived.{key}"
        if key in texts:
            raise InputError(field, text, "is in the space, and what is varied is not derived")
        formulas[key] = formula(field, text)
        known = {*texts, *fixed, *formulas} - {key}
        for read in formulas[key].reads:
            if read not in known:
                raise InputError(
                    field, text, f"{read} is in neither the space nor the base, nor derived above", sorted(known)
                )
    return formulas


def _condition(
    key: str,
    text: str,
    domains: Mapping[str, Domain],
    fixed: Mapping[str, Value],
    formulas: Mapping[str, Formula],
) -> Condition:
    field = f"when.{key}"
    if key not in domains and key not in formulas:
        raise InputError(field, text, "a condition on a key that is not in the space", sorted(domains))
    match = _WHEN.match(text)
    values = scalars(match[2]) if match else ()
    if not match or not values:
        raise InputError(field, text, "must read: other_key in (value, value)")
    parent = match[1]
    if parent not in domains and parent not in fixed:
        raise InputError(field, text, f"{parent} is neither in the space nor in the base", sorted({*domains, *fixed}))
    reach = domains.get(parent)
    if parent not in fixed and not isinstance(reach, Interval) and reach is not None:
        for value in values:
            if value not in reach.values:
                raise InputError(field, value, f"{parent} never has this value", [str(v) for v in reach.values])
    return Condition(parent, values)

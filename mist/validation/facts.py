"""Facts of a measured cell, as numbers."""

import re
from collections.abc import Mapping
from math import isinf, isnan
from typing import Any

from mist.errors import InputError


def number(facts: Mapping[str, Any], name: str) -> float:
    """The fact as a number; InputError where it is none."""
    try:
        found = float(facts[name])
    except KeyError:
        raise InputError(name, "(nothing)", "is not told") from None
    except (TypeError, ValueError):
        raise InputError(name, facts[name], "is no number") from None
    if isnan(found):
        raise InputError(name, facts[name], "is no number")
    return found


def count(facts: Mapping[str, Any], name: str, least: int = 1) -> int:
    """The fact as a whole number of things, rounded; InputError where it is none or below ``least``."""
    found = number(facts, name)
    if isinf(found) or round(found) < least:
        raise InputError(name, facts[name], f"must be a number of at least {least}")
    return round(found)


def devices(facts: Mapping[str, Any], degree: str = "tp") -> int:
    """The parallel degree that a fact says, as a number or within a label such as tp4_ep1; 1 where it says none."""
    said = str(facts.get(degree, 1))
    match = re.search(rf"{degree}(\d+)", said)
    return int(match.group(1)) if match else round(number({degree: said}, degree))

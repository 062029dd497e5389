"""How many devices a measurement says it ran on, and how its model was cut over them."""

import re
from collections.abc import Mapping
from typing import Any

from yaml import safe_load

from mist.catalog import choice_file
from mist.errors import InputError
from mist.validation.names import stood_in

DEGREES = ("tp", "pp", "dp", "ep")
LABEL = re.compile(r"(tp|pp|dp|ep)(\d+)")  # tp4_ep1, and of file names tp2


def layout(said: Mapping[str, Any], stem: str = "") -> dict[str, int]:
    """The parallel degrees that a row says by fact, or its ``tp`` within a label such as tp4_ep1; else a file's name.

    Only those that are said. Experts in more groups than there are devices in one copy of attention mean so many more
    copies (vLLM documentation, "Expert Parallel Deployment": the group of the experts is DP x TP). InputError for what
    is no whole number from 1 on.
    """
    words = [word for word in stem.lower().split("_") if re.fullmatch(rf"({LABEL.pattern})+", word)]
    found = {name: int(degree) for name, degree in LABEL.findall("_".join(words))}
    found |= {name: int(degree) for name, degree in LABEL.findall(str(said.get("tp", "")).lower())}
    found |= {name: _degree(name, said[name]) for name in DEGREES if name in said and not LABEL.search(str(said[name]))}
    tp, ep = found.get("tp", 1), found.get("ep", 1)
    if "dp" not in found and ep > tp and ep % tp == 0:
        found["dp"] = ep // tp
    return found


def placed(model: str, hardware: str, cut: Mapping[str, int]) -> dict[str, str]:
    """Overrides of a layout: of a model without experts, copies are replicas, and there is nothing to group.

    Devices that do not all lie in one scale-up domain, or that have no links of their own, stand in a server
    (``node`` of conf/names.yaml).
    """
    experts = _sheet("model", model).get("experts", 0)
    if not experts:
        cut = {"tp": cut.get("tp", 1), "pp": cut.get("pp", 1), "replicas": cut.get("dp", 1)}
    told = {name: str(degree) for name, degree in cut.items() if degree > 1 or name == "tp"}
    group = cut.get("tp", 1) * cut.get("pp", 1) * cut.get("dp", 1)
    node = stood_in(hardware)
    if node and group > 1 and (not _peers(node) or group > int(_sheet("hardware", hardware)["scale_up_devices"])):
        told["node"] = node
    return told


def _degree(name: str, said: object) -> int:
    try:
        degree = float(str(said))
    except ValueError:
        raise InputError(name, said, "is no number") from None
    if not (degree >= 1 and degree == int(degree)):
        raise InputError(name, said, "must be a whole number from 1 on")
    return int(degree)


def _peers(node: str) -> bool:
    return bool(_sheet("node", node).get("peer_to_peer", True))


def _sheet(group: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = safe_load(choice_file(group, name).read_text(encoding="utf-8"))
    return found

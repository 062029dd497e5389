"""Overrides as typed: ``address=value``, the value read by Hydra's grammar.

Numbers, ``true``, ``false`` and ``null`` become what they say, ``{a: 1}`` a map, quoted text itself, anything
else text: ``rate=3``, ``slo.ttft_p99=500 ms``, ``workload.path='my trace, cut.csv'``.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from mist.errors import InputError

_ADDRESS = re.compile(r"[\w-]+(\.[\w-]+)*\Z")
# Hydra's parser takes 0.3 ms a value; what these match, it reads the same way (a law compares the two)
_INTEGER = re.compile(r"-?(0|[1-9]\d*)\Z", re.ASCII)
_DECIMAL = re.compile(r"-?(0|[1-9]\d*)\.\d+\Z", re.ASCII)
_WORD = re.compile(r"(?!(?:null|true|false|inf|nan)\Z)[a-z_][\w-]*\Z", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Override:
    """One ``address=value``; ``text`` is as typed, ``raw`` its part after the equals sign."""

    text: str
    address: tuple[str, ...]
    raw: str
    value: Any

    @property
    def name(self) -> str:
        return ".".join(self.address)


@lru_cache(maxsize=65_536)
def parse(text: str) -> Override:
    """The override that ``text`` spells; InputError where it spells none.

    ``pools.decode.tp`` and ``decode.tp`` are one address.
    """
    name, equals, raw = text.partition("=")
    name = name.strip()
    if name.startswith(("+", "~")):
        raise InputError("", text, "+ and ~ are not needed: address=value sets any option, none is taken away")
    if not equals:
        raise InputError("", text, "an override reads address=value, for example tp=2")
    if "@" in name:
        raise InputError("", text, "a place is named with dots, for example decode.hardware=h200")
    if not _ADDRESS.match(name):
        raise InputError("", text, "an address is words joined by dots, for example slo.ttft_p99=500ms")
    address = tuple(name.split("."))
    if address[0] == "pools" and len(address) > 1:
        address = address[1:]
    return Override(text, address, raw, _value(name, raw))


def _value(name: str, raw: str) -> Any:
    if _INTEGER.match(raw):
        return int(raw)
    if _DECIMAL.match(raw):
        return float(raw)
    if _WORD.match(raw):
        return raw
    return grammar(name, raw)


def grammar(name: str, raw: str) -> Any:
    """The value of ``raw`` by Hydra's grammar alone; ``name`` is for the error."""
    try:
        override = _parser().parse_override(f"x={raw}")
    except HydraException:
        quoted = raw.replace("'", r"\'")
        raise InputError(
            name, raw, f"cannot be read; if it is meant as text, quote it: \"{name}='{quoted}'\""
        ) from None
    if override.is_sweep_override():
        raise InputError(name, raw, "one value at a time; what is to be varied belongs in the space of a sweep file")
    return override.value()


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()

"""What measurements call a model, a device, a number format or an engine, and what conf/ calls it."""

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from yaml import safe_load

from mist.build import build
from mist.catalog import choice_file, groups, nearest, roots
from mist.errors import InputError
from mist.hardware import HardwareSpec
from mist.validation.spelling import (
    device_words,
    engine_words,
    holds,
    model_words,
    newest_not_after,
    release,
    stored_as,
)

# role -> group of conf/
GROUPS = {"model": "model", "hardware": "hardware", "engine": "engine", "link": "link", "encoder": "encoder"}


def known(role: str, said: str) -> str:
    """The name in conf/ of what a file calls ``said``; InputError, the closest choices first, where there is none.

    Spelling aside (case, punctuation, the organisation before a slash) it is a name of conf/ or an alias of
    conf/names.yaml. Of a model's name, what says only how it was tuned, when, or how its weights are stored does not
    matter; of a device's, vendor, form factor and a size of memory that is the sheet's. An engine's version is
    that of the newest profile that is not newer (``since`` in conf/names.yaml).
    """
    spoken = said.rpartition("/")[2] if role == "model" else said
    if (found := _names(role).get(_plain(spoken))) is not None:
        return found
    readers = {"model": _model, "hardware": _device, "engine": _profile, "precision": _format, "link": _link}
    found = readers[role](said) if role in readers else None
    if found is None:
        raise InputError(role, said, "conf/ and conf/names.yaml know no such name", nearest(said, _choices(role))[:5])
    return found


def named_in(role: str, stem: str) -> str | None:
    """What a file's name says of ``role``: a name between underscores or over two of them; None if it is silent."""
    words = stem.split("_")
    for part in (*(f"{a}_{b}" for a, b in pairwise(words)), *words):
        if role == "precision" and (found := _format(part)) is not None:
            return found
        if role != "precision" and any(letter.isdigit() for letter in part):
            try:
                return known(role, part)
            except InputError:
                continue
    return None


def engine_in(stem: str) -> str | None:
    """An engine and its version in a file's name (T01_b300_vllm0201); None if it is silent."""
    for word in stem.split("_"):
        name, version = engine_words(word)
        if version and _plain(name) in _names("engine"):
            return f"{name} {version}"
    return None


def nearest_profile(said: str | None) -> str:
    """The profile that stands for an engine whose very version conf/engine does not have; empty where it has it."""
    version = engine_words(said)[1] if said else ""
    if said is None or not version:
        return ""
    own = (profile := known("engine", said)).partition("_")[2].replace("_", ".")
    same = release(version)[: len(release(own))] == release(own)
    return "" if same else f"{said} is predicted with the profile {profile}"


def stood_in(hardware: str) -> str | None:
    """The server (conf/node) that a device comes in (``node`` of conf/names.yaml); None where unknown."""
    return _aliases().get("node", {}).get(hardware)


def _model(said: str) -> str | None:
    return _names("model").get(_plain("".join(model_words(said))))


def _device(said: str) -> str | None:
    """InputError where its memory is told, and is that of no such device."""
    words, gigabytes = device_words(said)
    alike = [name for name in _choices("hardware") if device_words(name)[0] == words]
    alias = _names("hardware").get(_plain("".join(words)))
    alike = alike or ([alias] if alias else [])
    if gigabytes is None:
        return min(alike, key=len) if alike else None
    memories = {name: _memory(name) for name in alike}
    fitting = [name for name, memory in memories.items() if holds(memory, gigabytes)]
    if alike and not fitting:
        why = ", ".join(f"{name} has {memory / 1e9:.0f} GB" for name, memory in memories.items())
        raise InputError("hardware", said, f"conf/ knows none with {gigabytes:.0f} GB: {why}", alike)
    return min(fitting, key=len) if fitting else None


@cache
def _memory(hardware: str) -> float:
    sheet: dict[str, Any] = safe_load(choice_file("hardware", hardware).read_text(encoding="utf-8"))
    return build(HardwareSpec, sheet, f"hardware.{hardware}").memory


def _profile(said: str) -> str | None:
    """The profile that stands for an engine's version."""
    engine, version = engine_words(said)
    base = _names("engine").get(_plain(engine))
    if base is None or not version:
        return base
    family = base.partition("_")[0]
    first = {name: name.partition("_")[2].replace("_", ".") for name in _choices("engine") if "_" in name}
    first = {name: number for name, number in first.items() if re.fullmatch(r"\d+(\.\d+)*", number)}
    since = {name: str(version) for name, version in _aliases().get("since", {}).items() if name in first}
    return newest_not_after(version, [(n, v) for n, v in (first | since).items() if n.partition("_")[0] == family])


def _format(said: str) -> str | None:
    """A number format, or that of a name which has one in it (Llama-3.1-8B-Instruct-FP8)."""
    found = [_names("precision").get(_plain(word)) for word in (said, *stored_as(said))]
    return next((name for name in found if name is not None), None)


def _link(said: str) -> str | None:
    """That of the same path at another line rate: all words but those with a number in them are an alias's."""
    words = _wordy(said)
    return next((name for alias, name in _aliases().get("link", {}).items() if words and _wordy(alias) == words), None)


def _wordy(said: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9.]+", said.lower()) if word.isalpha()]


@cache
def _names(role: str) -> Mapping[str, str]:
    own = {_plain(choice): choice for choice in _choices(role)}
    return own | {_plain(str(alias)): str(name) for alias, name in _aliases().get(role, {}).items()}


def _choices(role: str) -> tuple[str, ...]:
    if role in GROUPS:
        return groups().get(GROUPS[role], ())
    return tuple(sorted({str(name) for name in _aliases().get(role, {}).values()}))


@cache
def _aliases() -> Mapping[str, Mapping[str, str]]:
    """conf/names.yaml, the user's own lines on top of the packaged ones."""
    merged: dict[str, dict[str, str]] = {}
    for root in reversed(roots("conf")):
        file = root / "names.yaml"
        for role, lines in (safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}).items():
            merged.setdefault(role, {}).update(lines)
    return merged


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())

"""What measurements call a model, a device, a number format or an engine, and what conf/ calls it."""

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from yaml import safe_load

from mist.catalog import groups, nearest, roots
from mist.errors import InputError

# role -> group of conf/
GROUPS = {"model": "model", "hardware": "hardware", "engine": "engine", "link": "link", "encoder": "encoder"}


def known(role: str, said: str) -> str:
    """The name in conf/ of what a file calls ``said``; InputError, the closest choices first, where there is none.

    Spelling aside (case, punctuation, the organisation before a slash) it is a name of conf/ or an alias of
    conf/names.yaml.
    """
    spoken = said.rpartition("/")[2] if role == "model" else said
    tried = (spoken, spoken.rpartition(".")[0]) if role == "engine" else (spoken,)  # 0.19.0 is of 0.19
    found = next((name for word in tried if (name := _names(role).get(_plain(word))) is not None), None)
    if found is None:
        raise InputError(role, said, "conf/ and conf/names.yaml know no such name", nearest(said, _choices(role))[:5])
    return found


def named_in(role: str, stem: str) -> str | None:
    """What a file's name says of ``role``: a name between underscores or over two of them; None if it is silent."""
    words = stem.split("_")
    for part in (*(f"{a}_{b}" for a, b in pairwise(words)), *words):
        if (found := _names(role).get(_plain(part))) is not None:
            return found
    return None


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

"""Plain config data to frozen dataclasses and back: the one mechanism from YAML to object.

A mapping with ``_target_`` becomes that class (only targets inside ``mist`` are allowed); one without
becomes the dataclass its field is annotated with. Every leaf is checked against its annotation, and the
error names its whole address. ``plain`` is the inverse: what it returns is canonical (SI numbers, every
default spelt out), so two configs that build the same objects have the same plain form.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from math import isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mist.errors import InputError, TraceError
from mist.units import Unit

TARGET = "_target_"

T = TypeVar("T")

_WORDS: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def build(kind: type[T], config: object, path: str = "") -> T:
    """An instance of ``kind`` (a dataclass or a protocol) from plain data.

    Raises InputError for an unknown, missing or ill-typed field, naming its address.
    """
    built: T = _value(kind, config, path)
    return built


def plain(value: object) -> Any:
    """The canonical plain data of a built object: dicts, numbers, strings, booleans, None."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        data = {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
        return {TARGET: f"{kind.__module__}.{kind.__qualname__}", **data}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def target(path: str, name: object) -> type:
    """The class a ``_target_`` names."""
    module, _, attribute = str(name).rpartition(".")
    if not f"{module}.".startswith("mist."):
        raise InputError(f"{path}.{TARGET}", name, "only classes inside mist can be built")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        raise InputError(f"{path}.{TARGET}", name, "no such class") from None
    if not (isinstance(found, type) and is_dataclass(found)):
        raise InputError(f"{path}.{TARGET}", name, "not a dataclass that a config can build")
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _dataclass(kind: type, config: Mapping[str, object], path: str) -> object:
    known = {f.name: f for f in fields(kind) if f.init}
    given = {key: value for key, value in config.items() if key != TARGET}
    for key, value in given.items():
        if key not in known:
            where = f"{path}.{key}" if path else key
            raise InputError(where, value, f"{kind.__name__} has no such option", sorted(known))
    for name, f in known.items():
        if name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{path}.{name}" if path else name, "(nothing)", f"{kind.__name__} needs a value here")
    hints = _hints(kind)
    values = {key: _value(hints[key], item, f"{path}.{key}" if path else key) for key, item in given.items()}
    try:
        return kind(**values)
    except TraceError:  # names its file
        raise
    except InputError as error:  # a dataclass checks itself by field name; the address is ours to add
        whole = ".".join(part for part in (path, error.field) if part)
        raise type(error)(whole, error.value, error.why, error.choices) from None


def _value(hint: Any, raw: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return raw
    if origin is Annotated:
        return _quantity(arguments[1], raw, path)
    if origin in (Union, UnionType):
        if raw is None and NoneType in arguments:
            return None
        (inner,) = (a for a in arguments if a is not NoneType)
        return _value(inner, raw, path)
    if origin is Literal:
        if raw not in arguments:
            raise InputError(path, raw, "no such choice", [str(a) for a in arguments])
        return raw
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(raw, Mapping):
            raise InputError(path, raw, "a mapping is needed here")
        return {key: _value(arguments[1], item, f"{path}.{key}" if path else str(key)) for key, item in raw.items()}
    return _plain_value(hint, raw, path)


def _plain_value(hint: type, raw: Any, path: str) -> Any:
    if hint in _WORDS:
        numeric = hint in (int, float) and isinstance(raw, (int, float) if hint is float else int)
        if isinstance(raw, bool) != (hint is bool) or not (numeric or isinstance(raw, hint)):
            raise InputError(path, raw, f"{_WORDS[hint]} is needed here")
        return _finite(float(raw), raw, path) if hint is float else raw
    if is_dataclass(raw):  # already built
        return raw
    if not isinstance(raw, Mapping):
        raise InputError(path, raw, f"a {hint.__name__} is needed here")
    if TARGET not in raw and not is_dataclass(hint):
        raise InputError(f"{path}.{TARGET}", "(nothing)", f"a {hint.__name__} needs one")
    return _dataclass(target(path, raw[TARGET]) if TARGET in raw else hint, raw, path)


def _quantity(unit: Unit, raw: Any, path: str) -> float:
    if isinstance(raw, str):
        try:
            return _finite(unit.parse(raw), raw, path)
        except ValueError as error:
            raise InputError(path, raw, str(error), unit.spellings) from None
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return _finite(float(raw), raw, path)
    raise InputError(path, raw, f"a {unit.dimension} is needed here", unit.spellings)


def _finite(value: float, raw: object, path: str) -> float:
    if not isfinite(value):
        raise InputError(path, raw, "a finite number is needed here")
    return value

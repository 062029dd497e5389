"""Checks that the indexes share."""

from collections.abc import Mapping

from mist.errors import Infeasible, InputError


def positive(value: object, *fields: str) -> None:
    for field in fields:
        if not getattr(value, field) > 0:
            raise InputError(field, getattr(value, field), "must be positive")


def not_negative(value: object, *fields: str) -> None:
    for field in fields:
        if getattr(value, field) < 0:
            raise InputError(field, getattr(value, field), "must not be negative")


def at_least_one(value: object, *fields: str) -> None:
    for field in fields:
        if getattr(value, field) < 1:
            raise InputError(field, getattr(value, field), "must be at least 1")


def check_recalls(recalls: Mapping[str, float]) -> None:
    """A table of recall by search setting: settings are whole numbers, recall a share that grows with them."""
    for setting, recall in recalls.items():
        if not str(setting).isdigit():
            raise InputError(f"recalls.{setting}", recall, "a setting is a whole number")
        if not 0 <= recall <= 1:
            raise InputError(f"recalls.{setting}", recall, "must lie in [0, 1]")
    rising = [recall for _, recall in sorted((int(setting), recall) for setting, recall in recalls.items())]
    if rising != sorted(rising):
        raise InputError("recalls", dict(recalls), "recall must not fall as the setting grows")


def check_memory(needed: float, memory: float, what: str, where: str) -> None:
    """Raises Infeasible, with the numbers, if the ``needed`` bytes of ``what`` do not fit ``where``."""
    if needed > memory:
        raise Infeasible(f"{what} needs {needed / 1e9:.4g} GB of memory, {where} has {memory / 1e9:.4g} GB")

"""Whole numbers that follow from others: ``8 / tp``, ``(8 - prefill.tp * prefill.replicas) / decode.tp``."""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from mist.errors import InputError

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Formula:
    """Arithmetic on whole numbers and on the values of other keys."""

    text: str
    tree: ast.expr
    reads: tuple[str, ...]  # keys, each once

    def of(self, values: Mapping[str, object]) -> int | None:
        """Its value; None where that is not a whole number of at least 1, which no count of anything is.

        InputError where a key that it reads is no whole number.
        """
        for key in self.reads:
            if not isinstance(values[key], int) or isinstance(values[key], bool):
                raise InputError(key, values[key], f"{self.text} reads it and needs a whole number")
        try:
            value = _value(self.tree, values)
        except ZeroDivisionError:
            return None
        return int(value) if value.denominator == 1 and value >= 1 else None


def formula(field: str, text: object) -> Formula:
    """The formula that ``text`` spells: whole numbers, keys, ``+ - * /`` and parentheses; InputError else."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval").body
        reads = tuple(dict.fromkeys(_reads(tree)))
    except (SyntaxError, ValueError):
        why = "not a formula of whole numbers, other keys, + - * / and parentheses, such as 8 / tp"
        raise InputError(field, text, why) from None
    if not reads:
        raise InputError(field, text, "reads no other key; a fixed value belongs in the base")
    return Formula(str(text), tree, reads)


def _reads(tree: ast.expr) -> list[str]:
    """The keys in a tree; ValueError where there is anything that is no arithmetic."""
    match tree:
        case ast.BinOp(left, operation, right) if type(operation) in _OPERATORS:
            return _reads(left) + _reads(right)
        case ast.Constant(int(value)) if not isinstance(value, bool):
            return []
        case ast.Name() | ast.Attribute():
            return [_key(tree)]
    raise ValueError(tree)


def _key(tree: ast.expr) -> str:
    match tree:
        case ast.Name(name):
            return name
        case ast.Attribute(above, name):
            return f"{_key(above)}.{name}"
    raise ValueError(tree)


def _value(tree: ast.expr, values: Mapping[str, object]) -> Fraction:
    match tree:
        case ast.BinOp(left, operation, right):
            return _OPERATORS[type(operation)](_value(left, values), _value(right, values))
        case ast.Constant(int(value)):
            return Fraction(value)
    return Fraction(str(values[_key(tree)]))

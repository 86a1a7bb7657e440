"""Whether two sympy expressions have the same value, by evaluation at high precision.

Not by `simplify`, which can take minutes and can be wrong about branches. Expressions with free
symbols are compared at fixed points (a polynomial identity that holds at several generic
points holds); constants at 60 and, if these agree, at 500 digits. Nothing is rounded: 0.333333 is
not a third.
"""

import math
from typing import Any

import sympy

_MAX_EXPONENT_MAGNITUDE = 12.0
"""As below, of an exponent."""
_MAX_MAGNITUDE = 1e6
"""Decimal digits before the point. `2024^{4046}` has 13,377; a power tower has no end."""
# Positive, so that roots and logarithms of letters that stand for lengths are real. Floats, so
# that a high power of a letter is not an exact fraction of millions of digits.
_POINTS = tuple(
    tuple(sympy.Float(sympy.Rational(*pair), 60) for pair in point)
    for point in (
        ((731, 997), (1013, 619), (467, 883)),
        ((2239, 761), (353, 911), (1723, 587)),
        ((127, 709), (3217, 823), (1259, 1019)),
    )
)
_NEGATIVE = tuple(-value for value in _POINTS[0])


def _magnitude(tree: Any) -> float:
    """Rough bound of |log10 of the absolute value| of a constant, found without computing it."""
    if tree.is_Float:
        return 1.0
    if tree.is_Rational:
        return max(1.0, float(max(abs(tree.p), tree.q).bit_length()) * 0.302)
    if not tree.args:
        return 1.0
    sizes = [_magnitude(argument) for argument in tree.args]
    if tree.is_Pow or isinstance(tree, sympy.exp):
        base = sizes[0] if tree.is_Pow else 1.0
        return base * max(1.0, _absolute(tree.exp, sizes[-1]))
    if isinstance(tree, sympy.factorial | sympy.gamma | sympy.binomial):
        return _absolute(tree.args[0], sizes[0]) * max(sizes)
    return sum(sizes)


def _absolute(tree: Any, size: float) -> float:
    """Absolute value of an exponent or argument; infinite where it is out of reach."""
    if size > _MAX_EXPONENT_MAGNITUDE:
        return math.inf
    try:
        return abs(complex(tree.evalf(15)))
    except (TypeError, ValueError, OverflowError):
        return math.inf


def is_computable(tree: Any) -> bool:
    """Whether evaluating a constant expression stays within reason."""
    if tree.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative):
        return False
    return _magnitude(tree) <= _MAX_MAGNITUDE


def _agree(a: Any, b: Any, digits: int) -> bool | None:
    """Whether two constants agree to so many digits; None where they cannot be evaluated."""
    if not (is_computable(a) and is_computable(b)):
        return None
    try:
        x, y = a.evalf(digits), b.evalf(digits)
    # What sympy raises where it cannot evaluate; NotImplementedError is its word for some of them.
    except (ValueError, TypeError, ArithmeticError, NotImplementedError, AttributeError):
        return None
    if not (x.is_number and y.is_number) or x.has(sympy.nan, sympy.zoo):
        return None
    if x.is_infinite or y.is_infinite:
        return bool(x == y)
    parts = zip(x.as_real_imag(), y.as_real_imag(), strict=True)
    scale = max(_size(part) for value in (x, y) for part in value.as_real_imag())
    for one, other in parts:
        if not (one.is_Float or one.is_Rational) or not (other.is_Float or other.is_Rational):
            return None
        gap = abs(sympy.Float(one, digits) - sympy.Float(other, digits))
        if gap > scale * sympy.Float(10, digits) ** (8 - digits):
            return False
    return True


def _size(part: Any) -> Any:
    """Absolute value; 0 where sympy found no digit of it, which is how it writes a hidden zero."""
    if part.is_Float and part._prec == 1:
        return sympy.Integer(0)
    return abs(part)


def same_value(a: Any, b: Any) -> bool:
    """Whether two sympy expressions are equal, for all values of their letters."""
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        return False
    if a == b:
        return True
    if a.free_symbols != b.free_symbols:
        return False
    if not a.free_symbols:
        return bool(_agree(a, b, 60)) and bool(_agree(a, b, 500))
    letters = sorted(a.free_symbols, key=lambda symbol: symbol.name)
    points = _POINTS if a.has(sympy.Abs) == b.has(sympy.Abs) else (*_POINTS, _NEGATIVE)
    verdicts = []
    for point in points:
        values = {letter: point[k % 3] + k // 3 for k, letter in enumerate(letters)}
        verdicts.append(_agree(a.xreplace(values), b.xreplace(values), 40))
    return False not in verdicts and True in verdicts

"""Numbers that know how they came about: each holds the formula it was computed by, with the numbers put in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["name", "product", "sum"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and its formula; arithmetic makes both at once, so that the one cannot belie the other.

    Attributes:
        value: the number.
        formula: how it came about, such as `2 · 1.1e9 parameters · 3e6 tokens`.
        kind: what the formula is, which says where it needs brackets.
    """

    value: float
    formula: str
    kind: Kind = "name"

    def __mul__(self, other: Figure | float) -> Figure:
        """The product."""
        right = _figure(other)
        return Figure(self.value * right.value, f"{self._factor()} · {right._factor()}", "product")

    def __rmul__(self, other: float) -> Figure:
        """The product."""
        return _figure(other) * self

    def __truediv__(self, other: Figure | float) -> Figure:
        """The quotient."""
        right = _figure(other)
        below = right.formula if right.kind == "name" else f"({right.formula})"
        return Figure(self.value / right.value, f"{self._factor()} / {below}", "product")

    def __add__(self, other: Figure | float) -> Figure:
        """The sum; nothing is written of a part that is nothing."""
        right = _figure(other)
        if not self.value or not right.value:
            return right if not self.value else self
        return Figure(self.value + right.value, f"{self.formula} + {right.formula}", "sum")

    def __radd__(self, other: float) -> Figure:
        """The sum."""
        return _figure(other) + self

    def __sub__(self, other: Figure | float) -> Figure:
        """The difference."""
        right = _figure(other)
        taken = f"({right.formula})" if right.kind == "sum" else right.formula
        return Figure(self.value - right.value, f"{self.formula} − {taken}", "sum")

    def named(self, name: str) -> Figure:
        """The same number as a name of its own, for use in further formulas."""
        return known(self.value, name)

    def _factor(self) -> str:
        return f"({self.formula})" if self.kind == "sum" else self.formula


NOTHING = Figure(0.0, "0")


def known(value: float, name: str = "") -> Figure:
    """A number that is given, by its name."""
    return Figure(float(value), f"{shown(value)} {name}".rstrip())


def shown(value: float) -> str:
    """A number for people, to four digits or more: `1,500`, `0.25`, `1.236e9`."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6g}" if abs(value) >= 1000 else f"{value:.4g}"
    digits, power = f"{value:.3e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


def _figure(value: Figure | float) -> Figure:
    return value if isinstance(value, Figure) else known(value)

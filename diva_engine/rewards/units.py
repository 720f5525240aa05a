"""Units and nouns that may follow a number in an answer."""

from __future__ import annotations

import re

_ALIASES = {
    "degree": "° degree degrees deg",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "dm": "dm decimeter decimeters decimetre decimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "t": "ton tons tonne tonnes",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "year years yr yrs",
    "ml": "ml mL milliliter milliliters millilitre millilitres",
    "l": "l L liter liters litre litres",
    "gal": "gal gallon gallons",
    "m/s": "m/s meters/second",
    "km/h": "km/h kmh kph km/hr",
    "mi/h": "mph mi/h",
    "celsius": "°C C celsius",
    "fahrenheit": "°F F fahrenheit",
    "dollar": "dollar dollars USD",
    "cent": "cent cents",
    "N": "N newton newtons",
    "J": "J joule joules",
    "W": "W watt watts",
    "V": "V volt volts",
    "A": "A ampere amperes amp amps",
    "ohm": "ohm ohms Ω",
    "Hz": "Hz hertz",
    "unit": "unit units",
}
_CANONICAL = {alias: unit for unit, aliases in _ALIASES.items() for alias in aliases.split()}

_POWERED = re.compile(r"(?:(sq|square|cubic)\.? +)?([^\s^0-9]+(?: ?/ ?[^\s^0-9]+)?)(?: ?\^? ?([23])| (squared|cubed))?")
_POWER = {"sq": "2", "square": "2", "cubic": "3", "squared": "2", "cubed": "3"}
_NOUNS = re.compile(r"[A-Za-z]{3,20}(?: [A-Za-z]{2,20}){0,3}")
MATHEMATICAL_WORDS = frozenset(
    {
        "and",
        "or",
        "over",
        "plus",
        "minus",
        "times",
        "mod",
        "to",
        "pi",
        "inf",
        "sqrt",
        "log",
        "exp",
        "sinh",
        "cosh",
        "tanh",
    }
    | {"sin", "cos", "tan", "cot", "sec", "csc"}
)

NOUN = "noun"  # "12 apples": a unit of counting, equal to any other and to none


def read_unit(text: str) -> str | None:
    """Canonical unit of what follows a number: "" for nothing, `NOUN` for counted things, None for mathematics."""
    text = text.replace("{", "").replace("}", "").strip()
    if not text:
        return ""
    powered = _POWERED.fullmatch(text)
    if powered:
        before, base, digit, after = powered.groups()
        unit = _CANONICAL.get(base) or _CANONICAL.get(base.lower()) if base else None
        power = digit or _POWER.get(before or after or "", "")
        if unit:
            return f"{unit}^{power}" if power else unit
    if _NOUNS.fullmatch(text) and not MATHEMATICAL_WORDS.intersection(text.lower().split()):
        return NOUN
    return None


def units_agree(left: str, right: str) -> bool:
    """A missing unit agrees with any; a counted noun too; two known units must be the same. Nothing is converted."""
    free = ("", NOUN, "unit", "unit^2", "unit^3")
    return left in free or right in free or left == right

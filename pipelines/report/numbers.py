"""How numbers read on the page: units a person uses, and as many digits as mean something."""

from __future__ import annotations

import math
from typing import Any


def duration(seconds: Any) -> str:
    """`0.8 s`, `42 s`, `2 min 31 s`, `3 h 5 min`; a dash for nothing."""
    if not _is_number(seconds):
        return "–"
    if seconds == 0:
        return "0 s"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def count(value: Any) -> str:
    """`36,500`, `7.04 M`, `1.2 B`."""
    if not _is_number(value):
        return "–" if value is None else str(value)
    large = _three(value) if abs(value) >= 1e6 else 0.0
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(large) >= limit:
            return f"{large / limit:.3g} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def size(value: Any) -> str:
    """Bytes in decimal units: `32.1 MB`."""
    if not _is_number(value):
        return "–"
    large = _three(value) if abs(value) >= 1e3 else 0.0
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(large) >= limit:
            return f"{large / limit:.3g} {unit}"
    return f"{value:.0f} B"


def number(value: Any, digits: int = 4) -> str:
    """`digits` significant digits; whole numbers with separators; `–` for nothing."""
    if isinstance(value, bool) or value is None or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1e-4 <= abs(value) < 1e4:
        text = f"{value:.{digits}g}"
        text = f"{float(text):,.0f}" if "e" in text else text
    elif abs(value) < 1e9 and abs(value) >= 1e4:
        text = f"{value:,.0f}"
    else:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return text.replace("-", "−", 1) if value < 0 else text


def power(value: Any, digits: int = 3) -> str:
    """Of what spans decades, such as FLOPs: `1e12`, `3.16e13`."""
    if not _is_number(value) or not math.isfinite(value) or value <= 0:
        return number(value)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def amount(value: Any) -> str:
    """A count in as little room as an axis has: `500K`, `10M`, `1.5B`."""
    if not _is_number(value):
        return "–"
    value = _three(value)
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def interval(pair: Any, digits: int = 3, decimals: int | None = None) -> str:
    """The limits of an interval: `0.46 to 0.53`, with `digits` significant or with so many decimals."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
        return "–"
    if decimals is not None:
        return " to ".join(f"{v:.{decimals}f}".replace("-", "−") for v in pair)
    wide = max(abs(v) for v in pair)
    return " to ".join(number(v if abs(v) > 1e-9 * wide else 0.0, digits) for v in pair)


def nats(value: Any) -> str:
    """A cross-entropy, always with three decimals."""
    return f"{value:.3f}" if _is_number(value) and math.isfinite(value) else number(value)


def score(value: Any) -> str:
    """A metric in 0..1 or −1..1 with three decimals; larger ones with four digits."""
    if not _is_number(value) or not math.isfinite(value):
        return number(value)
    return f"{value:.3f}".replace("-", "−") if abs(value) <= 1.5 else number(value)


def signed(value: Any) -> str:
    """A difference, always with its sign."""
    return ("+" if value > 0 else "") + score(value) if _is_number(value) else "–"


def percent(value: Any) -> str:
    """A share in 0..1 as per cent: `97.3 %`, `0.02 %`."""
    if not _is_number(value):
        return "–"
    return f"{value * 100:.3g} %"


def signed_percent(value: Any) -> str:
    """A relative difference: `+0.42 %`, `−1.3 %`."""
    return ("+" if value > 0 else "") + percent(value).replace("-", "−") if _is_number(value) else "–"


def flops_interval(pair: Any) -> str:
    """Limits of compute: `1e18 to 3e20`, `from 1e18` where it has no end."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return "–"
    low, high = (power(v) if _is_number(v) else "" for v in pair)
    return f"{low} to {high}" if low and high else f"from {low}" if low else f"up to {high}" if high else "–"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) that cover `low`..`high`."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _three(value: float) -> float:
    """Of three significant digits, before its unit is chosen: 999,900 is `1 M`, not `1e+03 K`."""
    return float(f"{value:.3g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)

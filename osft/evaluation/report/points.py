"""How a share of a score is written, the same in the gate's sentences, the page, Markdown and the terminal.

A share is written in points: 0.05 is 5.0 points of 100. Minus is the minus sign, which is as wide as a digit where
digits are. What is lost of a perplexity has no end, and a broken model loses a share of many digits; from ten times
the score on no digit says more than that it is a lot.
"""

MINUS = "\N{MINUS SIGN}"
NO_POINTS = 0.0005
"""A share that is written as 0.0 points."""

MAX_SHARE = 10.0
"""A larger share is not written in digits."""


def format_points(share: float, *, signed: bool = False) -> str:
    """Return a share as points of 100; no sign before a zero."""
    if abs(share) > MAX_SHARE:
        edge = format_points(MAX_SHARE if share > 0 else -MAX_SHARE, signed=signed).removesuffix(".0")
        return f"{'more' if share > 0 else 'less'} than {edge}"
    points = round(100 * share, 1) + 0.0
    return (f"{points:+,.1f}" if signed and points else f"{points:,.1f}").replace("-", MINUS)


def format_ceiling(share: float) -> str:
    """Return up to how many points a share may be."""
    return format_points(share) if share > MAX_SHARE else f"up to {format_points(share)}"


def format_bound(share: float) -> str:
    """Return an upper confidence bound of a share; one that is not written in digits bounds nothing."""
    if share > MAX_SHARE:
        return f"no bound below {format_points(MAX_SHARE).removesuffix('.0')} with 95% confidence"
    return f"at most {format_points(share)} with 95% confidence"

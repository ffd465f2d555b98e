"""Series as small curves, one below the other, in an SVG."""

from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.growth import Point

WIDTH, HEIGHT, LEFT, GAP = 420, 64, 8, 34
COLUMNS = 2
MOST_POINTS = 400


def svg(series: Mapping[str, tuple[Sequence[Point], str, bool]], *, warm_up_s: float, title: str) -> str:
    """Draw series.

    Args:
        series: By name: the points, what is written beside the name, and whether all is well with it.
        warm_up_s: Where a line is drawn.
        title: Above all of it.
    """
    rows = -(-len(series) // COLUMNS)
    width, height = COLUMNS * (WIDTH + 2 * LEFT), 30 + rows * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"',
        'font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (name, (points, words, fine)) in enumerate(series.items()):
        x = LEFT + (number % COLUMNS) * (WIDTH + 2 * LEFT)
        y = 30 + (number // COLUMNS) * (HEIGHT + GAP)
        parts.append(f'<g transform="translate({x},{y})">')
        parts.append(f'<text y="14" font-size="11">{escape(name)}: {escape(words)}</text>')
        parts.append(_curve(points, warm_up_s, "#2b6cb0" if fine else "#c53030"))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _curve(points: Sequence[Point], warm_up_s: float, colour: str) -> str:
    every = -(-len(points) // MOST_POINTS) if points else 1
    points = points[::every]
    if len(points) < 2:
        return ""
    last, most = points[-1][0] or 1.0, max(value for _, value in points) or 1.0
    drawn = " ".join(
        f"{at / last * WIDTH:.1f},{20 + HEIGHT * (1 - value / most / 1.05):.1f}" for at, value in points
    )
    warm = min(warm_up_s, last) / last * WIDTH
    return (
        f'<rect y="20" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#cbd5e0"/>'
        f'<line x1="{warm:.1f}" x2="{warm:.1f}" y1="20" y2="{20 + HEIGHT}" stroke="#a0aec0"/>'
        f'<polyline points="{drawn}" fill="none" stroke="{colour}"/>'
    )

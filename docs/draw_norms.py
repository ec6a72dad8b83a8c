"""Draw `docs/norms.svg`: the unit balls of `sngd.norms` and the steps in them, in three planes of 2 × 2 matrices.

    make docs

Balls and steps are computed by the norms themselves. The picture holds no date, so that the same code gives the same
file, and `tests/test_norms_page.py` sees when it is stale.
"""

from collections.abc import Callable, Iterator
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sngd.norms import Col, Layer, Norm, Row, Sign, Spectral

PICTURE = Path(__file__).parent / "norms.svg"

NORMS: dict[str, Norm] = {
    "l2, layer": Layer(scaled=False),
    "sign": Sign(scaled=False),
    "row": Row(scaled=False),
    "col": Col(scaled=False),
    "spectral": Spectral(scaled=False, coefficients="svd"),
}


class Plane(NamedTuple):
    """Matrices that two numbers x and y make."""

    title: str
    matrix: Callable[[float, float], list[list[float]]]


PLANES = [
    Plane("diagonal (x, y)", lambda x, y: [[x, 0.0], [0.0, y]]),
    Plane("one row (x, y)", lambda x, y: [[x, y], [0.0, 0.0]]),
    Plane("rows (x, y) and (y, x)", lambda x, y: [[x, y], [y, x]]),
]
GRADIENT = (0.92, 0.39)  # in the plane; the step goes along −unit(gradient)
POINTS = 96  # on a ball's border; a multiple of 8, so that corners are among them

# Lengths are pixels.
CELL, UNIT, LEFT, TOP = 176, 58, 150, 44


def main() -> None:
    PICTURE.write_text(drawn(), encoding="utf-8")


def drawn() -> str:
    """The picture, as SVG."""
    width, height = LEFT + CELL * len(NORMS) + 10, TOP + CELL * len(PLANES) + 34
    cells = [
        line
        for row, plane in enumerate(PLANES)
        for column, norm in enumerate(NORMS.values())
        for line in _cell(plane, norm, LEFT + CELL * column + CELL / 2, TOP + CELL * row + CELL / 2)
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        "<title>Unit balls of norms, and the step of length 1 in each</title>",
        f"<defs>{_tip('gray', '#8a93a0')}{_tip('red', '#c0392b')}</defs>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_titles(),
        *cells,
        *_legend(height - 14),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _tip(name: str, color: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{color}"/></marker>'
    )


def _titles() -> Iterator[str]:
    for column, name in enumerate(NORMS):
        x = LEFT + CELL * column + CELL / 2
        yield f'<text x="{x:g}" y="24" text-anchor="middle" font-weight="bold" font-size="14">{name}</text>'
    for row, plane in enumerate(PLANES):
        yield f'<text x="12" y="{TOP + CELL * row + CELL / 2 + 4:g}" font-size="12">{plane.title}</text>'


def _cell(plane: Plane, norm: Norm, x: float, y: float) -> Iterator[str]:
    """The ball around (x, y), the axes, the steepest direction and the step; the picture's y axis points down."""
    half = CELL / 2 - 6
    yield f'<path d="M{x - half:g} {y:g}h{2 * half:g}M{x:g} {y - half:g}v{2 * half:g}" stroke="#d5d9df" fill="none"/>'
    border = " ".join(f"{x + UNIT * a:.1f},{y - UNIT * b:.1f}" for a, b in ball(plane, norm))
    yield f'<polygon points="{border}" fill="#e2ecf9" fill-opacity=".75" stroke="#3a6ea5" stroke-width="1.6"/>'
    for (a, b), color, name, dash in (
        (GRADIENT, "#8a93a0", "gray", ' stroke-dasharray="4 3"'),
        (step(plane, norm), "#c0392b", "red", ""),
    ):
        end = f"{x - UNIT * a:.1f} {y + UNIT * b:.1f}"
        yield (
            f'<path d="M{x:g} {y:g}L{end}" stroke="{color}" stroke-width="2" fill="none"{dash}'
            f' marker-end="url(#{name})"/>'
        )


def ball(plane: Plane, norm: Norm) -> list[tuple[float, float]]:
    """Points (x, y) of the plane whose matrices have size 1."""
    points = []
    for n in range(POINTS):
        x, y = cos(2 * pi * n / POINTS), sin(2 * pi * n / POINTS)
        size = norm.size(_tensor(plane, x, y)).item()
        points.append((x / size, y / size))
    return points


def step(plane: Plane, norm: Norm) -> tuple[float, float]:
    """(x, y) of unit(gradient). For these norms it lies in the plane in which the gradient lies."""
    unit = norm.unit(_tensor(plane, *GRADIENT))
    x, y = unit[0, 0].item(), (unit[1, 1] if plane is PLANES[0] else unit[0, 1]).item()
    assert torch.allclose(unit, _tensor(plane, x, y), atol=1e-9), "the step leaves the plane"
    return x, y


def _tensor(plane: Plane, x: float, y: float) -> Tensor:
    return torch.tensor(plane.matrix(x, y), dtype=torch.float64)


def _legend(y: float) -> Iterator[str]:
    for x, color, dash, text in (
        (LEFT, "#8a93a0", ' stroke-dasharray="4 3"', "against the gradient, (−0.92, −0.39)"),
        (LEFT + 300, "#c0392b", "", "the step of length 1: the point of the ball that lies farthest that way"),
    ):
        yield f'<path d="M{x} {y - 4:g}h30" stroke="{color}" stroke-width="2"{dash}/>'
        yield f'<text x="{x + 38}" y="{y:g}" font-size="12">{text}</text>'


if __name__ == "__main__":
    main()

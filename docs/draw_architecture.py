"""Draw `docs/architecture.svg`: the rooms of `src/sngd` on their floors, and which imports which.

    make docs

Names, words and arrows are read from the code; where a room stands is the table FLOORS. The picture holds no date and
needs no package, so that the same code gives the same file, and `tests/test_architecture.py` sees when it is stale.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

SOURCE = Path(__file__).parent.parent / "src" / "sngd"
PICTURE = Path(__file__).parent / "architecture.svg"

# From the top to the ground; a dot is an empty place. A room imports from the floors below its own, from no other.
FLOORS = [
    [".", "cli", "."],
    ["bench", "paper", "."],
    [".", "studies", "."],
    [".", "training", "."],
    [".", ".", "problems"],
    ["diagnose", "param_groups", "monitor"],
    ["estimators", "optim", "theory"],
    ["iterates", "norms", "stages"],
    ["state", "cost", "files"],
    ["sharding", "slug", "checks"],
]
FLOOR = {room: height for height, rooms in enumerate(reversed(FLOORS)) for room in rooms if room != "."}

Graph = Mapping[str, set[str]]


def main() -> None:
    if found := misplaced():
        sys.exit("\n".join(found))
    PICTURE.write_text(drawn(), encoding="utf-8")


# --- what the code says


def rooms() -> dict[str, list[Path]]:
    """The files of each room: a folder of `src/sngd`, or a file there that is no folder's."""
    files = {path.name: sorted(path.rglob("*.py")) for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    return files | {path.stem: [path] for path in SOURCE.glob("*.py") if not path.stem.startswith("__")}


def imports(paths: Iterable[Path], *, at_once: bool = False) -> set[str]:
    """Dotted names that files import: of modules of `sngd`, or of other packages (the standard library left out).

    With ``at_once`` only what importing the files imports, not what their functions import when they are called.
    """
    names: set[str] = set()
    for path in paths:
        for node in _import_statements(ast.parse(path.read_text(encoding="utf-8")), at_once):
            names |= (
                {alias.name for alias in node.names} if isinstance(node, ast.Import) else _imported_from(node, path)
            )
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def _import_statements(node: ast.AST, at_once: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not (at_once and (is_function or for_types)):
            yield from _import_statements(child, at_once)


def _imported_from(node: ast.ImportFrom, path: Path) -> set[str]:
    """`from sngd import stages` imports a room, `from sngd.stages import poly` names out of one."""
    if node.module is None or node.level:
        raise ValueError(f"{path}, line {node.lineno}: write the import in full, from sngd.… import …")
    rooms_named = {f"sngd.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return rooms_named if node.module == "sngd" else {node.module}


@cache
def graph() -> dict[str, set[str]]:
    """The rooms that each room imports, in functions too."""
    found = {}
    for room, paths in rooms().items():
        names = [name.split(".") for name in imports(paths)]
        found[room] = {name[1] for name in names if name[0] == "sngd" and len(name) > 1} - {room}
    return found


def misplaced() -> list[str]:
    """What is wrong with the floors, a line each: a room that stands on none, an import that leads not down."""
    found = [f"{room} stands on no floor: give it a place in FLOORS" for room in sorted(set(rooms()) - set(FLOOR))]
    found += [f"{room} stands in FLOORS and is not in src/sngd" for room in sorted(set(FLOOR) - set(rooms()))]
    return found + [
        f"{room} imports {other}, which does not stand on a floor below"
        for room, others in sorted(graph().items())
        for other in sorted(others)
        if room in FLOOR and other in FLOOR and FLOOR[other] >= FLOOR[room]
    ]


@cache
def packages(room: str) -> set[str]:
    """The packages beside `sngd` that importing a room imports."""
    return {name.split(".")[0] for name in imports(rooms()[room], at_once=True)} - {"sngd"}


def purpose(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = SOURCE / room / "__init__.py"
    docstring = ast.get_docstring(ast.parse((path if path.exists() else SOURCE / f"{room}.py").read_text("utf-8")))
    first = (docstring or "").split("\n\n")[0]
    return first.split(". ")[0].removesuffix(".").replace("``", "")


def essential(whole: Graph) -> dict[str, set[str]]:
    """A graph's arrows without those that a longer way implies (its transitive reduction)."""
    return {
        room: {other for other in others if not any(other in _reached(via, whole) for via in others - {other})}
        for room, others in whole.items()
    }


def _reached(room: str, whole: Graph) -> set[str]:
    return set(whole[room]).union(*(_reached(other, whole) for other in whole[room]))


# --- the picture; lengths are pixels

LEFT, WIDTH, HEIGHT, BETWEEN, ABOVE = 32, 276, 74, 44, 34  # margin, a box, the space beside it and over it
COLORS = {"Python alone": "#e3f1e1", "torch": "#e2ecf9", "torch and numpy": "#fdf0d5", "more packages": "#f6e1e6"}


class Arrow(NamedTuple):
    """From one room to another: down, along a vertical lane at x where it passes floors between, and down again."""

    start: str
    end: str
    lane: float


def drawn() -> str:
    """The picture, as SVG."""
    width = 2 * LEFT + 3 * WIDTH + 2 * BETWEEN
    height = _top(len(FLOORS)) + 30
    arrows = [_arrow(start, end) for start, ends in sorted(essential(graph()).items()) for end in sorted(ends)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#222">',
        "<title>The rooms of sngd and their imports</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#55606e"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(_curve(arrow, arrows) for arrow in arrows),
        *(_box(room) for room in sorted(FLOOR)),
        *_legend(_top(len(FLOORS))),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _column(room: str) -> int:
    return FLOORS[_row(room)].index(room)


def _row(room: str) -> int:
    return len(FLOORS) - 1 - FLOOR[room]


def _left(column: int) -> int:
    return LEFT + column * (WIDTH + BETWEEN)


def _top(row: int) -> int:
    return LEFT + row * (HEIGHT + ABOVE)


def _arrow(start: str, end: str) -> Arrow:
    """Straight in the end's column or the start's if that is free on the floors between, else beside the end's box."""
    between = range(_row(start) + 1, _row(end))
    for column in (_column(end), _column(start)):
        if all(FLOORS[row][column] == "." for row in between):
            return Arrow(start, end, _left(column) + WIDTH / 2)
    beside = -BETWEEN / 2 if _column(start) < _column(end) else WIDTH + BETWEEN / 2
    return Arrow(start, end, _left(_column(end)) + beside)


def _curve(arrow: Arrow, arrows: list[Arrow]) -> str:
    x0 = _port(arrow, [other for other in arrows if other.start == arrow.start], arrow.start)
    x1 = _port(arrow, [other for other in arrows if other.end == arrow.end], arrow.end)
    y0, y1 = _top(_row(arrow.start)) + HEIGHT, _top(_row(arrow.end))
    half = ABOVE / 2
    if y1 - y0 == ABOVE:
        path = f"M{x0:g} {y0}C{x0:g} {y0 + half:g} {x1:g} {y1 - half:g} {x1:g} {y1}"
    else:
        lane = x0 if _is_inside(arrow.lane, arrow.start) else x1 if _is_inside(arrow.lane, arrow.end) else arrow.lane
        down, up = y0 + ABOVE, y1 - ABOVE
        path = (
            f"M{x0:g} {y0}C{x0:g} {y0 + half:g} {lane:g} {down - half:g} {lane:g} {down}V{up}"
            f"C{lane:g} {up + half:g} {x1:g} {y1 - half:g} {x1:g} {y1}"
        )
    return f'<path d="{path}" fill="none" stroke="#55606e" stroke-width="1.4" marker-end="url(#tip)"/>'


def _is_inside(x: float, room: str) -> bool:
    return 0 < x - _left(_column(room)) < WIDTH


def _port(arrow: Arrow, together: list[Arrow], room: str) -> float:
    """Where on a room's edge an arrow begins or ends: those of one edge side by side, ordered by where they go."""

    def away(other: Arrow) -> tuple[float, int, int]:
        far = other.end if room == other.start else other.start
        return other.lane if not _is_inside(other.lane, room) else _left(_column(far)), _column(far), _row(far)

    place = sorted(together, key=away).index(arrow)
    return round(_left(_column(room)) + WIDTH * (place + 1) / (len(together) + 1), 1)


def _box(room: str) -> str:
    x, y = _left(_column(room)), _top(_row(room))
    color = COLORS[_needs(room)]
    words = [escape(line) for line in wrap(purpose(room), 42, max_lines=3, placeholder=" …")]
    text = "".join(f'<tspan x="{x + 12}" dy="15" font-size="11.5">{line}</tspan>' for line in words)
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{color}" stroke="#55606e"/>'
        f'<text x="{x + 12}" y="{y + 20}"><tspan font-weight="bold" font-size="14">{room}</tspan>{text}</text>'
    )


def _needs(room: str) -> str:
    """What importing a room takes, by itself and by the rooms that it imports."""
    everything = set().union(*(packages(other) for other in {room} | _reached(room, graph())))
    if not everything:
        return "Python alone"
    if everything == {"torch"}:
        return "torch"
    return "torch and numpy" if everything == {"torch", "numpy"} else "more packages"


def _legend(y: int) -> Iterator[str]:
    for n, (needs, color) in enumerate(COLORS.items()):
        x = LEFT + 160 * n
        yield f'<rect x="{x}" y="{y}" width="14" height="14" fill="{color}" stroke="#55606e"/>'
        yield f'<text x="{x + 20}" y="{y + 12}">{needs}</text>'
    x = LEFT + 160 * len(COLORS)
    yield f'<text x="{x}" y="{y + 12}">Arrow: imports; what others imply is left out</text>'


if __name__ == "__main__":
    main()

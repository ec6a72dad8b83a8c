"""Figures of a study for papers and READMEs: training loss and test accuracy against #grad/n, as PNG and SVG.

#grad/n is the number of gradient evaluations so far over the number n of training samples.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from importlib import import_module
from pathlib import Path
from textwrap import wrap
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from sngd.studies.runs import Band, Study, band
from sngd.training.folder_lock import make_folder
from sngd.training.run_folder import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito's colours, which colour-blind readers can distinguish, and five more; no two of 60 arms share colour and
# dash.
COLORS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#8B0057", "#7A8B00", "#808080", "#5B3FBF", "#7A4B20"),
)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
DASH_LENGTHS = {"solid": (), "dash": (6, 2.5), "dot": (1.5, 1.5), "dashdot": (6, 2, 1.5, 2), "longdash": (11, 3)}

_LEGEND_WIDTH = 45  # characters; longer labels are wrapped
_NOTE_WIDTH = 66  # characters of a line above a panel
_DPI = 110  # of PNGs: about two pixels for one of a page that is as wide as most are

MOST_LINES = 10  # in a figure of a study

COST_AXIS = "#grad/n (gradient evaluations / training samples)"


class Style(NamedTuple):
    color: str  # "#rrggbb"
    dash: str  # a key of DASH_LENGTHS


class Panel(NamedTuple):
    key: str  # of a row in metrics.jsonl
    title: str
    scale: float  # from the file's unit to the axis's
    may_be_log: bool
    thin: str | None = None  # key of a second quantity, drawn in thin lines


TRAIN_LOSS = Panel("train_loss", "training loss", 1, True)
TEST_LOSS = Panel("test_loss", "test loss", 1, True)
TEST_ACCURACY = Panel("test_accuracy", "test accuracy (%)", 100, False)
GRAD_NORM = Panel("grad_norm", "gradient norm", 1, True)
LR = Panel("lr", "learning rate", 1, True)
# What ``sngd train --track`` adds to rows.
SMOOTHNESS = Panel("smoothness_along", "smoothness along the step (off it: thin)", 1, True, "smoothness_off")
NOISE_SCALE = Panel("noise_scale", "gradient noise scale (samples)", 1, True)
HESSIAN = Panel("hessian_max", "largest eigenvalue of the Hessian (smallest: thin)", 1, False, "hessian_min")


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Each arm's colour and dash; figures and report use the same."""
    return {label: Style(COLORS[i % len(COLORS)], _DASHES[i % len(_DASHES)]) for i, label in enumerate(labels)}


def bands(study: Study, panel: Panel) -> dict[str, Band]:
    """The arms' curves in the units of the panel's axis; arms without data are left out."""
    curves = {label: band(runs, panel.key) for label, runs in study.arms.items()}
    return {
        label: Band(curve.cost, *(panel.scale * part for part in curve[1:]))
        for label, curve in curves.items()
        if curve is not None
    }


def wants_log(panel: Panel, curves: dict[str, Band]) -> bool:
    """Whether a logarithmic axis can show every point of the panel."""
    return panel.may_be_log and all((curve.low > 0).all() for curve in curves.values())


def view(curves: dict[str, Band]) -> tuple[float, float] | None:
    """Limits for a linear axis that leave out the untrained model, whose low accuracy would squeeze other points."""
    later = [part[1:] for curve in curves.values() for part in (curve.low, curve.high) if len(part) > 2]
    if not later:
        return None
    low, high = min(part.min() for part in later), max(part.max() for part in later)
    margin = 0.06 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def band_note(study: Study) -> str:
    """The explanation of lines, bands and what was measured, for a legend or a caption."""
    counts = {len(runs) for runs in study.arms.values()}
    if counts == {1}:
        return "one seed" + _samples_note(study)
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"
    return f"line: mean of {seeds} seeds; band: lowest to highest seed{_samples_note(study)}"


def _samples_note(study: Study) -> str:
    """How many samples losses and accuracies before the last ones are of, if not of all."""
    counts = {run.curve_samples for run in study.runs}
    told = " or ".join(f"{count:,}" for count in sorted(counts - {None}, key=lambda count: count or 0))
    return f"; before the end {'some runs are ' if None in counts else ''}measured on {told} samples" if told else ""


def draw(study: Study, folder: str | os.PathLike[str]) -> list[Path]:
    """Draw ``curves.png`` and ``curves.svg`` into ``folder`` (made if absent).

    One panel each for training loss (logarithmic when all of it is positive) and test accuracy; a panel
    without data is left out, and with none there is no figure. Of more than ``MOST_LINES`` arms the figure has those
    of lowest final training loss, and says so; report and table have all.

    Returns:
        The files written, in that order; empty if nothing was measured.
    """
    shown = _best(study)
    panels = [
        (panel, {label: curve for label, curve in bands(study, panel).items() if label in shown})
        for panel in (TRAIN_LOSS, TEST_ACCURACY)
    ]
    panels = [(panel, curves) for panel, curves in panels if curves]
    if not panels:
        return []
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive and picks a display

    with plain_style():
        columns = _columns(shown, len(panels))
        height = 4.1 + 0.22 * math.ceil(len(shown) / columns)  # inches; a row of the legend takes 0.22
        figure = Figure(figsize=(4.8 * len(panels), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        look = styles(shown)
        lines: dict[str, Line2D] = {}
        for ax, (panel, curves) in zip(axes, panels, strict=True):
            lines |= draw_panel(ax, panel, curves, look)
        drawn = [label for label in shown if label in lines]
        figure.legend(
            [lines[label] for label in drawn],
            [_literal("\n".join(wrap(label, _LEGEND_WIDTH))) for label in drawn],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            handlelength=3.2,
        )
        left_out = "" if len(shown) == len(study.labels) else f"; the {len(shown)} best of {len(study.labels)}"
        note = "\n".join(wrap(band_note(study) + left_out, _NOTE_WIDTH * len(panels)))
        figure.suptitle(f"{_literal(study.problem)}\n{note}", fontsize=10)
        return save(figure, Path(folder) / "curves")


def prepare() -> Thread:
    """Begin to import what ``draw`` needs, in a thread: while runs are waited for this takes less time than after them.

    It is no daemon, since Python may crash if it ends while one imports.
    """

    def work() -> None:
        with suppress(Exception):  # ``draw`` meets it again, and raises it
            import_module("matplotlib.figure")

    thread = Thread(target=work)
    thread.start()
    return thread


def _best(study: Study) -> list[str]:
    """The arms to draw, in the study's order: of more than can be told apart those of lowest final training loss."""
    if len(study.labels) <= MOST_LINES:
        return list(study.labels)
    curves = bands(study, TRAIN_LOSS)
    last = {label: curve.mean[-1] for label, curve in curves.items() if math.isfinite(curve.mean[-1])}
    best = sorted(last, key=last.__getitem__)[:MOST_LINES]
    return [label for label in study.labels if label in best]


def plain_style() -> AbstractContextManager[None]:
    """Inside, figures are drawn without a box around the axes, and the same data give the same SVG."""
    import matplotlib

    return matplotlib.rc_context({"svg.hashsalt": "sngd", "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path) -> list[Path]:
    """Write ``path``.png, of 256 colours, and ``path``.svg, each atomically; the same data give the same files.

    The folder is made if absent.
    """
    make_folder(path.parent)
    pictures = {".png": io.BytesIO(), ".svg": io.BytesIO()}
    figure.savefig(pictures[".svg"], format="svg", dpi=_DPI, metadata={"Date": None})
    figure.savefig(pictures[".png"], format="png", dpi=_DPI)
    for suffix, picture in pictures.items():
        content = picture.getvalue()
        replace_file(path.with_suffix(suffix), _with_palette(content) if suffix == ".png" else content)
    return [path.with_suffix(suffix) for suffix in pictures]


def _with_palette(png: bytes) -> bytes:
    """The picture in 256 colours: a quarter of the size, and no difference that the eye sees in a drawing of lines.

    The palette covers rare colours too, and is then moved to the means of what it stands for. Pillow's usual one gives
    most of it to frequent colours, and drew a green line blue.
    """
    from PIL import Image  # which matplotlib needs too

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        dpi = picture.info["dpi"]
        few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, 3, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", optimize=True, dpi=dpi)
    return buffer.getvalue()


def draw_panel(ax: Axes, panel: Panel, curves: dict[str, Band], look: dict[str, Style]) -> dict[str, Line2D]:
    lines = {}
    if wants_log(panel, curves):
        ax.set_yscale("log")
        plain_labels(ax.yaxis, min(c.low.min() for c in curves.values()), max(c.high.max() for c in curves.values()))
    elif limits := view(curves):
        ax.set_ylim(limits)
    for label, curve in curves.items():
        color, dash = look[label]
        (line,) = ax.plot(curve.cost, curve.mean, color=color, linewidth=1.7)
        if DASH_LENGTHS[dash]:
            line.set_dashes(DASH_LENGTHS[dash])
        if (curve.high > curve.low).any():
            ax.fill_between(curve.cost, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
        lines[label] = line
    ax.set_xlabel(COST_AXIS)
    ax.set_ylabel(panel.title)
    ax.grid(True, which="major", color="#dddddd", linewidth=0.6)
    return lines


def plain_labels(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis, from ``low`` to ``high`` (> 0), with plain numbers if that is less than three decades.

    Powers of ten alone would leave too few labels there, and within one decade 1, 2 and 5 would. Labels at equal
    distances stand too near to each other at the upper end of half a decade or more.
    """
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter

    decades = math.log10(high / low)
    if decades < 3:
        digits = (1, 2, 5) if decades > 1 else (1, 1.5, 2, 3, 4, 5, 7)
        axis.set_major_locator(LogLocator(subs=digits) if decades > 0.5 else AutoLocator())
        axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib reads what lies between two dollars as a formula


def _columns(labels: Sequence[str], panels: int) -> int:
    room = 60 * panels  # characters, about, across the figure
    longest = min(max(map(len, labels)), _LEGEND_WIDTH)
    return max(1, min(len(labels), room // (longest + 10)))

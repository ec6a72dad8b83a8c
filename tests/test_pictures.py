"""Every committed picture, drawn anew from committed measurements: panels, labels, colours, and that it is current."""

import re
from collections import Counter
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from sngd.norms import product_of
from sngd.paper.reproduce import FIGURES, stored
from sngd.studies import diagnosis, figures
from sngd.studies.diagnosis import Diagnosis
from sngd.studies.runs import read_run, read_study

RESULTS = Path(__file__).parents[1] / "results"
PICTURES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.png"))
MOST_LINES = 12  # with a label in a panel: more cannot be told apart


def draw(picture, folder):
    """Draw ``picture`` into ``folder`` from the measurements that are committed beside it; the names of all files."""
    if picture.name == "curves.png":
        files = figures.draw(read_study(picture.parent.parent), folder)
    elif picture.name == "diagnosis.png":
        files = diagnosis.draw(tracked(picture.parent), folder)
    else:
        figure = picture.parent.name
        files = FIGURES[figure].draw(stored(figure, picture.parent), folder)
    return [file.name for file in files if file.suffix == ".png"]


def tracked(folder):
    """The diagnosis of the run in ``folder`` as far as the picture shows it: what was tracked along the run."""
    run = read_run(folder)
    where = f"{run.label}, seed {run.seed}, after {run.curve[-1]['grads_over_n']:.4g} #grad/n"
    fits = diagnosis._fits(run.curve, seed=0)
    size = run.settings.batch_size_or_default
    norm = product_of([torch.zeros(1)])
    target = folder.relative_to(RESULTS.parent).as_posix()
    return Diagnosis(target, where, 60_000, 79_510, size, None, None, None, run.curve, fits, norm)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a picture: the figure itself, laid out, and the file."""
    figures_seen = []
    save = matplotlib.figure.Figure.savefig

    def remember(figure, target, *, format, **options):
        if format == "svg":
            figure.draw_without_rendering()  # the layout settles, as when the file is written
        else:
            figures_seen.append(figure)
            save(figure, target, format=format, **options)

    def call(name):
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", remember)
        names = draw(RESULTS / name, tmp_path)
        return figures_seen[names.index(Path(name).name)], tmp_path / Path(name).name

    return call


def panels(figure):
    """The axes that show data, without bars of colours."""
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def labelled(ax):
    """The lines of a panel that a legend can name: colour and dashes of each."""
    return {
        line.get_label(): look(line)
        for line in ax.get_lines()
        if not line.get_label().startswith("_") and line.get_label() != ""
    }


def look(line):
    """Colour, dashes and marker."""
    return to_hex(line.get_color()), str(line._unscaled_dash_pattern), str(line.get_marker())


def legends(figure):
    found = [ax.get_legend() for ax in figure.axes]
    found += [legend for part in [figure, *figure.subfigs] for legend in part.legends]
    return [legend for legend in found if legend]


def test_there_are_pictures_of_every_kind():
    assert {"curves.png", "diagnosis.png", "fig1.png", "fig3.png", "alternatives.png"} < {
        Path(p).name for p in PICTURES
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_a_committed_picture(drawn, name):
    figure, file = drawn(name)
    for ax in panels(figure):
        data = [*ax.get_lines(), *ax.collections, *ax.patches, *ax.images]
        assert data, "an empty panel"
        others = panels(figure)
        assert any(names(o.get_xlabel(), o.get_xticklabels()) for o in others if o is ax or is_below(o, ax))
        assert any(names(o.get_ylabel(), o.get_yticklabels()) for o in others if o is ax or is_left(o, ax))
        looks = labelled(ax)
        assert len(looks) <= MOST_LINES
        assert [one for one, times in Counter(looks.values()).items() if times > 1] == [], "two lines look the same"
    for legend in legends(figure):
        texts = [text.get_text() for text in legend.get_texts()]
        assert texts
        assert len(set(texts)) == len(texts)
        handles = [look(line) for line in legend.get_lines()]
        assert len(set(handles)) == len(handles)
    assert thumbnail(file) == pytest.approx(thumbnail(RESULTS / name), abs=25), "drawn anew, it differs: commit that"


def names(title, labels):
    """Whether an axis says what stands along it: in a title, or in words instead of numbers."""
    words = [label.get_text().replace("mathdefault", "") for label in labels]
    return bool(title) or any(re.search("[a-zA-Z]{3}", word) for word in words)


def is_below(other, ax):
    """Whether it stands in the same column and names the axis of both."""
    one, two = ax.get_position(), other.get_position()
    return two.y1 <= one.y0 and abs(two.x0 - one.x0) < 0.05


def is_left(other, ax):
    one, two = ax.get_position(), other.get_position()
    return two.x1 <= one.x0 and abs(two.y0 - one.y0) < 0.05


def thumbnail(path):
    """In grey, 24 × 24: other fonts and versions draw nearly the same one."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L").resize((24, 24), Image.Resampling.BOX), dtype=float)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fig2", "fig3", "fig4", "sensitivity"])
def test_arms_have_a_colour_each(drawn, name):
    figure, _ = drawn(f"small/{name}/{name}.png")
    for ax in panels(figure):
        colors = [color for color, _, _ in labelled(ax).values()]
        assert len(set(colors)) == len(colors)
    (legend,) = legends(figure)
    colors = [to_hex(line.get_color()) for line in legend.get_lines()]
    assert len(set(colors)) == len(colors) > 1


@pytest.mark.slow
def test_no_legend_hides_a_path(drawn):
    figure, _ = drawn("small/fig1/fig1.png")
    landscapes = [ax for ax in panels(figure) if ax.get_ylabel() == "$w_1$"]
    assert len(landscapes) == 2
    for ax in landscapes:
        assert not ax.get_legend().get_window_extent().overlaps(ax.get_window_extent())


@pytest.mark.slow
def test_no_line_joins_readings(drawn):
    figure, _ = drawn("small/alternatives/alternatives.png")
    for ax in panels(figure):
        for line in ax.get_lines():
            assert line.get_linestyle() == "None" or len(set(line.get_xdata())) == 1


@pytest.mark.slow
def test_three_panels_leave_no_empty_one(drawn):
    figure, _ = drawn("mnist-tracked/diagnosis.png")
    assert len(panels(figure)) == 3
    assert all(ax.has_data() for ax in panels(figure))


@pytest.mark.slow
def test_a_figure_of_many_arms_shows_the_best_and_says_so(drawn):
    figure, _ = drawn("small/sensitivity/learning-rates/figures/curves.png")
    study = read_study(RESULTS / "small" / "sensitivity" / "learning-rates")
    assert len(study.labels) > 30
    (legend,) = legends(figure)
    shown = [text.get_text() for text in legend.get_texts()]
    assert len(shown) == figures.MOST_LINES
    assert f"the {len(shown)} best of {len(study.labels)}" in figure.get_suptitle()
    ends = {label: curve.mean[-1] for label, curve in figures.bands(study, figures.TRAIN_LOSS).items()}
    assert sorted(shown) == sorted(sorted(ends, key=ends.get)[: len(shown)])

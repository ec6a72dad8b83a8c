import io
import sys

import numpy as np
import pytest
from fake_runs import edit_rows, write_run, write_study
from matplotlib.figure import Figure
from PIL import Image

from sngd.studies import figures
from sngd.studies.figures import TEST_ACCURACY, TRAIN_LOSS, band_note, bands, draw, plain_labels, styles, wants_log
from sngd.studies.runs import read_study


@pytest.mark.slow
def test_draws_png_and_svg(tmp_path):
    study = read_study(write_study(tmp_path / "study"))
    png, svg = draw(study, tmp_path / "figures")
    assert (png, svg) == (tmp_path / "figures" / "curves.png", tmp_path / "figures" / "curves.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()
    assert "<!-- test accuracy (%) -->" in svg.read_text()


@pytest.mark.slow
def test_the_same_study_gives_the_same_files(tmp_path):
    study = read_study(write_study(tmp_path / "study", seeds=2))
    one, other = draw(study, tmp_path / "one"), draw(study, tmp_path / "other")
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_a_panel_without_data_is_left_out(tmp_path):
    _, svg = draw(read_study(write_run(tmp_path / "a", test=False)), tmp_path)
    assert "<!-- training loss -->" in svg.read_text()
    assert "test accuracy" not in svg.read_text()


def test_nothing_measured_no_figure(tmp_path):
    run = write_run(tmp_path / "a", stop=0)
    (run / "metrics.jsonl").write_text("")
    assert draw(read_study(run), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("label", ["$x$", "$\\frac{", "_hidden", "<b>&amp;"])
def test_any_label_is_drawn_as_it_is(tmp_path, label):
    write_run(tmp_path / "a", label)
    write_run(tmp_path / "b", "sngd")
    _, svg = draw(read_study(tmp_path), tmp_path)
    comment = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<!-- {comment} -->" in svg.read_text()


def test_loss_is_logarithmic_only_when_positive(tmp_path):
    study = read_study(write_run(tmp_path / "a"))
    assert wants_log(TRAIN_LOSS, bands(study, TRAIN_LOSS))
    assert not wants_log(TEST_ACCURACY, bands(study, TEST_ACCURACY))
    zero = read_study(write_run(tmp_path / "b", answer={"train_loss": 0.0}))
    assert not wants_log(TRAIN_LOSS, bands(zero, TRAIN_LOSS))
    draw(zero, tmp_path)


def test_accuracy_is_in_percent(tmp_path):
    study = read_study(write_run(tmp_path / "a", answer={"test_accuracy": 0.5}))
    assert bands(study, TEST_ACCURACY)["sngd"].mean[-1] == 50


def test_arms_differ_in_colour_and_in_dash():
    look = styles([str(i) for i in range(35)])
    assert len(set(look.values())) == 35
    first = [look[str(i)] for i in range(5)]
    assert len({style.color for style in first}) == len({style.dash for style in first}) == 5


BEFORE_THE_LAST = slice(None, -1)


def test_the_note_says_what_was_measured(tmp_path):
    edit_rows(write_run(tmp_path / "a" / "0", "a", 0), {"samples": 2000}, BEFORE_THE_LAST)
    assert band_note(read_study(tmp_path)) == "one seed; before the end measured on 2,000 samples"
    write_run(tmp_path / "b" / "0", "b", 0)
    assert band_note(read_study(tmp_path)) == "one seed; before the end some runs are measured on 2,000 samples"


@pytest.mark.slow
def test_the_note_fits_above_one_panel(tmp_path, monkeypatch):
    for seed in (0, 1):
        folder = write_run(tmp_path / "a" / str(seed), "a", seed)
        edit_rows(folder, {"test_accuracy": None})
        edit_rows(folder, {"samples": 2000}, BEFORE_THE_LAST)
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, _: drawn.append(figure))
    draw(read_study(tmp_path), tmp_path / "figures")
    figure = drawn[0]
    figure.draw_without_rendering()
    assert len(figure.axes) == 1
    title = figure._suptitle.get_window_extent()
    assert "2,000" in figure._suptitle.get_text()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.width


def test_the_note_counts_seeds(tmp_path):
    write_run(tmp_path / "a" / "0", "a", 0)
    assert band_note(read_study(tmp_path)) == "one seed"
    write_run(tmp_path / "a" / "1", "a", 1)
    assert band_note(read_study(tmp_path)) == "line: mean of 2 seeds; band: lowest to highest seed"
    write_run(tmp_path / "b" / "0", "b", 0)
    assert band_note(read_study(tmp_path)) == "line: mean of 1 to 2 seeds; band: lowest to highest seed"


def test_what_drawing_needs_is_imported_in_the_background(monkeypatch):
    asked = []
    monkeypatch.setattr(figures, "import_module", asked.append)
    figures.prepare().join()
    assert asked == ["matplotlib.figure"]


def test_an_import_that_fails_is_left_to_drawing(monkeypatch, capsys):
    def fail(_name):
        raise OSError("no fonts")

    monkeypatch.setattr(figures, "import_module", fail)
    figures.prepare().join()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("low", [0.21, 1.0, 1.51, 2.05, 2.7, 3.1, 9.0])
@pytest.mark.parametrize("ratio", [1.1, 1.9, 3.2, 5.0, 9.0, 30.0, 900.0])
def test_a_logarithmic_axis_has_plain_labels_in_both_halves(low, ratio):
    ax = Figure().subplots()
    ax.set(yscale="log", ylim=(low, low * ratio))
    plain_labels(ax.yaxis, low, low * ratio)
    ax.figure.draw_without_rendering()
    shown = [
        label.get_text() for label in ax.yaxis.get_majorticklabels() if low <= label.get_position()[1] <= low * ratio
    ]
    numbers = [float(text) for text in shown]
    assert 3 <= len(numbers) <= 11
    assert min(numbers) < low * ratio**0.5 < max(numbers)


def test_pyplot_stays_out(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    draw(read_study(write_run(tmp_path / "a")), tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.slow
def test_a_long_label_is_wrapped_not_cut(tmp_path):
    words = " ".join(f"setting-{i}=0.{i}" for i in range(9))
    _, svg = draw(read_study(write_run(tmp_path / "a", words)), tmp_path)
    assert all(f"setting-{i}=0.{i}" in svg.read_text() for i in range(9))
    assert words not in svg.read_text()


def test_a_rare_colour_stays_itself_among_many_frequent_ones():
    rows = np.linspace(0, 255, 400)[:, None, None] * np.ones((1, 400, 3))
    rows[190:215, 100:102] = 0, 158, 115  # a short green line
    rows[:, 200:260] = np.linspace(0, 255, 400)[:, None, None] * (0.2, 0.6, 1)
    png = io.BytesIO()
    Image.fromarray(rows.astype(np.uint8)).save(png, "PNG", dpi=(100, 100))
    drawn = np.asarray(Image.open(io.BytesIO(figures._with_palette(png.getvalue()))).convert("RGB"), dtype=int)
    assert np.abs(drawn - rows).max() < 16
    assert np.abs(drawn[200, 100] - (0, 158, 115)).max() < 4

import html.parser
import json
import re
import shutil
import time
import tomllib
from pathlib import Path

import pytest
from fake_runs import write_comparison, write_run, write_study

from sngd.studies.certify import certify
from sngd.studies.publish import publish
from sngd.studies.report import write_report
from sngd.studies.runs import read_study
from sngd.theory import Smooth

CHROMIUM = shutil.which("chromium")
EVIL = "<script>window.broken = true</script>\"'&<img src=x onerror='window.broken = true'>"


def page_of(folder, out=None):
    return write_report(folder, out).read_text(encoding="utf-8")


def visible(page):
    """The text of a page, without scripts and styles."""
    parts = []

    class Parser(html.parser.HTMLParser):
        hidden = False

        def handle_starttag(self, tag, _attributes):
            self.hidden = tag in ("script", "style")

        def handle_endtag(self, _tag):
            self.hidden = False

        def handle_data(self, data):
            if not self.hidden:
                parts.append(data.strip())

    Parser().feed(page)
    return " | ".join(part for part in parts if part)


def test_says_what_was_found(tmp_path):
    text = visible(page_of(write_study(tmp_path)))
    assert "s-sngd's final training loss is lower than " in text
    assert "at equal oracle calls and equal tuning" in text
    assert "behind the best by | training loss" in text
    assert "sngd compare digits-mlp --methods sgd,sngd,s-sngd --seeds 3 --tune" in text
    assert "torch | 2.13.0" in text
    assert "batch size | 32" in text
    assert "diverged" in text  # a trial of the search


def test_path_and_atomic_replacement(tmp_path):
    folder = write_run(tmp_path / "a")
    assert write_report(folder) == folder / "report.html"
    assert write_report(folder, tmp_path / "deep" / "page.html") == tmp_path / "deep" / "page.html"
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ValueError, match="is a folder, the report must be a file") as error:
        write_report(folder, tmp_path)
    assert str(error.value) == f"{tmp_path}: is a folder, the report must be a file"


def test_publishing_shows_the_study_that_it_returns(tmp_path, monkeypatch):
    """Read once when there is nobody to wait for any more, so that table, figures and report are of the same rows."""
    folder, read = write_study(tmp_path), []

    def reading(folder):
        read.append(read_study(folder))
        return read[-1]

    for module in ("publish", "report"):
        monkeypatch.setattr(f"sngd.studies.{module}.read_study", reading)
    assert publish(folder) is read[-1]
    assert len(read) == 2  # the first is to see that there is a study
    published = (folder / "report.html").read_bytes()
    assert published == write_report(folder, tmp_path / "again.html").read_bytes()


def test_the_package_takes_along_every_file_that_is_no_module():
    """pyproject.toml must name the parts of the page, or an installed sngd lacks them."""
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    assert list(patterns) == ["sngd"]
    package = root / "src" / "sngd"
    taken = {file for pattern in patterns["sngd"] for file in package.glob(pattern)}
    others = {file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
    assert taken == others
    assert {file.name for file in taken} == {"py.typed", "style.css", "script.js", "icon.svg"}


def test_a_chosen_rate_at_the_edge_of_the_grid_is_noted(tmp_path):
    write_run(tmp_path / "a", "sngd")
    outcomes = [{"label": "sngd", "lr": lr, "train_loss": lr} for lr in (0.1, 0.5)]
    tuning = {"grid": [0.5, 0.1], "seed": 0, "outcomes": outcomes, "chosen": {"sngd": 0.1}}
    write_comparison(tmp_path, tuning=tuning)
    note = "sngd: the chosen learning rate 0.1 is the smallest of the grid; a smaller one may be better."
    assert note in visible(page_of(tmp_path))


def test_an_unfinished_study_says_so(tmp_path):
    write_run(tmp_path / "a", "sngd", 0)
    write_run(tmp_path / "b", "sngd", 1, stop=2)
    write_comparison(tmp_path, methods=["sgd", "sngd"], seeds=[0, 1])
    assert "2 of 4 runs" not in (text := visible(page_of(tmp_path)))
    assert "1 of 4 runs have finished so far." in text


def test_settings_common_and_different(tmp_path):
    write_run(tmp_path / "a", "sgd", 0, lr=0.1)
    write_run(tmp_path / "b", "sngd", 0, lr=0.5, config={"plan": "poly"})
    text = visible(page_of(tmp_path))
    assert "What differs | method | lr | plan | sgd | 0.1 | none | sngd | 0.5 | poly" in text


@pytest.mark.parametrize("test", [True, False])
def test_numbers_that_json_lacks_never_reach_the_page(tmp_path, test):
    write_run(tmp_path / "a", "sgd", 0, diverge=3, test=test)
    write_run(tmp_path / "b", "sngd", 0, test=test)
    charts = page_of(tmp_path).partition("</head>")[2]
    assert "NaN" not in charts
    assert "Infinity" not in charts
    assert ('id="chart-test_accuracy"' in charts) is test


def test_every_run_has_the_command_that_repeats_it(tmp_path):
    commands = re.findall(r"sngd train [^<\n]+", page_of(write_study(tmp_path / "study")))
    assert len(commands) == 9
    options = "--lr 0.1 --batch-size 32 --epochs 10 --seed 1 --weight-decay 0.0"
    assert any(line.startswith(f"sngd train digits-mlp --method s-sngd {options}") for line in commands)


def test_nothing_measured_yet(tmp_path):
    run = write_run(tmp_path / "a", stop=0)
    (run / "metrics.jsonl").unlink()
    assert "Nothing has been measured yet." in visible(page_of(run))


def test_labels_are_text(tmp_path):
    write_run(tmp_path / "a", EVIL, config={"method": "sngd", "device": EVIL})
    page = page_of(tmp_path)
    assert EVIL in visible(page).replace("| ", "")
    assert "<script>window.broken" not in page
    assert "<img src=x" not in page


def test_charts_of_what_was_tracked(tmp_path):
    tracked = [f'id="chart-{key}"' for key in ("smoothness_along", "noise_scale", "hessian_max")]
    write_run(tmp_path / "plain" / "a")
    assert not any(chart in page_of(tmp_path / "plain") for chart in tracked)
    write_run(tmp_path / "tracked" / "a", tracked=True)
    page = page_of(tmp_path / "tracked")
    assert all(chart in page for chart in tracked)
    assert "Largest eigenvalue of the Hessian (smallest: thin)" in visible(page)
    assert page.count('"batch size 32"') == 1  # beside the noise scale, nowhere else


# ---- certificates --------------------------------------------------------------------------------------------


def test_certificates_are_shown_where_constants_are_known(tmp_path):
    assert "Certificate" not in visible(page_of(write_run(tmp_path / "a")))
    text = visible(page_of(write_run(tmp_path / "b", config={"problem": "saddle", "plan": "constant"})))
    assert "Certificate | method | verdict | mean ‖∇F‖ | 95 % interval | bound | progress | curvature | noise |" in text
    assert (
        "sngd: Theorem 1, and what it rests on | Not certified by Theorem 1 (gap violated, batches violated): " in text
    )
    assert "smoothness | given | L = 1 known of the problem; nothing was measured to compare it with" in text
    assert "batches | violated | cut from shuffled passes" in text


def test_certificates_of_given_constants_are_shown(tmp_path):
    write_study(tmp_path, {"sgd": 0.1, EVIL: 0.2, "sngm": 0.1})
    for path in tmp_path.rglob("config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"method": "sngd" if config["label"] == EVIL else config["label"]}))
    certify(tmp_path, smoothness=Smooth(4), sigma=1, gap=3)
    page = page_of(tmp_path)
    text = visible(page)
    assert "sgd: Ghadimi and Lan 2013, Theorem 2.1, and what it rests on" in text
    assert "sngm: no theorem | Not certified: no theorem covers sngm." in text
    assert f"{EVIL}: Theorem 1, and what it rests on" in text.replace("| ", "")
    assert "<img src=x" not in page


def test_a_certificate_of_other_runs_is_not_shown(tmp_path):
    write_run(tmp_path / "a", seed=0)
    certify(tmp_path, smoothness=Smooth(4), sigma=1, gap=3)
    assert "what it rests on" in visible(page_of(tmp_path))
    write_run(tmp_path / "b", seed=1)
    text = visible(page_of(tmp_path))
    assert "certificate.json is about other runs than those that are here; sngd certify makes it anew." in text
    assert "what it rests on" not in text


# ---- in a browser --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens a file without network; afterwards there must have been no request and no complaint."""
    complaints, requests = [], []
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    context.route("http://**", lambda route: route.abort())
    context.route("https://**", lambda route: route.abort())

    def open_(path):
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(".plotly-graph-div .xtick", state="attached")
        return page

    yield open_
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1  # the page itself


def shown(page, chart):
    """Which traces of a chart are visible, by arm: the mean line and the band under it."""
    script = """id => {
        const plot = document.getElementById(id);
        return plot.data.map((trace, i) => [trace.legendgroup, plot._fullData[i].visible]);
    }"""
    groups = {}
    for group, is_visible in page.evaluate(script, f"chart-{chart}"):
        groups.setdefault(group, []).append(is_visible)
    return groups


@pytest.mark.slow
def test_a_click_on_the_legend_hides_curve_and_band_everywhere(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path)))
    assert shown(page, "train_loss") == {f"arm-{i}": [True, True] for i in range(3)}
    entry = page.get_by_role("button", name="sngd", exact=True)
    entry.click()
    assert entry.get_attribute("aria-pressed") == "false"
    for chart in ("train_loss", "test_accuracy", "grad_norm"):
        assert shown(page, chart) == {"arm-0": [True, True], "arm-1": [False, False], "arm-2": [True, True]}
    assert shown(page, "lr")["arm-1"] == [False]  # no band: all seeds have one learning rate
    entry.press("Enter")  # by keyboard, and back
    assert shown(page, "train_loss")["arm-1"] == [True, True]


@pytest.mark.slow
def test_a_click_on_the_legend_hides_thin_lines_too(tmp_path, open_page):
    for label in ("sgd", "sngd"):
        write_run(tmp_path / label, label, tracked=True)
    page = open_page(write_report(tmp_path))
    page.get_by_role("button", name="sngd", exact=True).click()
    for chart in ("smoothness_along", "hessian_max"):
        assert shown(page, chart) == {"arm-0": [True, True], "arm-1": [False, False]}
    widths = "document.getElementById('chart-hessian_max').data.map(trace => trace.line.width)"
    assert page.evaluate(widths) == [2.2, 2.2, 1.1, 1.1]
    levels = "document.getElementById('chart-noise_scale').data.map(trace => trace.y[0])"
    assert page.evaluate(levels) == [10, 10, 32]  # the last one is the batch size


@pytest.mark.slow
def test_the_switch_changes_the_axis(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path)))
    kind = "document.getElementById('chart-train_loss')._fullLayout.yaxis.type"
    other = "document.getElementById('chart-grad_norm')._fullLayout.yaxis.type"
    switch = page.get_by_role("group", name="Axis of training loss")
    assert page.evaluate(kind) == "log"
    switch.get_by_role("button", name="linear").click()
    assert (page.evaluate(kind), page.evaluate(other)) == ("linear", "log")
    switch.get_by_role("button", name="log").click()
    assert page.evaluate(kind) == "log"
    assert page.get_by_role("group", name="Axis of test accuracy").count() == 0


@pytest.mark.slow
def test_charts_fit_wide_and_narrow_screens(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path)))
    overflow = """() => Math.max(...[...document.querySelectorAll(".chart")].map(
        chart => chart.querySelector(".main-svg").clientWidth - chart.clientWidth))"""
    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        deadline = time.monotonic() + 10  # the charts follow the window after a moment
        while page.evaluate(overflow) > 0 and time.monotonic() < deadline:
            page.wait_for_timeout(50)
        assert page.evaluate(overflow) <= 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_a_label_cannot_run_code(tmp_path, open_page):
    write_run(tmp_path / "a", EVIL, config={"method": "sngd"})
    write_comparison(tmp_path, methods=[EVIL], seeds=[0], command=EVIL)
    page = open_page(write_report(tmp_path))
    page.hover("#chart-train_loss .nsewdrag")  # the hover text has the label too
    page.wait_for_selector("#chart-train_loss .hoverlayer text")
    assert page.evaluate("window.broken") is None
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert json.dumps(EVIL)[1:-1].replace('\\"', '"') in page.inner_text(".legend")


@pytest.mark.slow
def test_the_page_names_itself(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path, {"sgd": 0.1}, seeds=1)))
    assert page.title() == "digits-mlp: sgd"
    assert page.get_attribute("html", "lang") == "en"
    assert page.get_attribute("link[rel=icon]", "href").startswith("data:image/svg+xml;base64,")


@pytest.mark.slow
def test_no_button_sends_the_data_anywhere(tmp_path, open_page):
    page = open_page(write_report(write_run(tmp_path / "a")))
    titles = "[...document.querySelectorAll('#chart-train_loss .modebar-btn')].map(b => b.dataset.title)"
    assert page.evaluate(titles) == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]
    with page.expect_download() as download:  # which the content security policy must allow
        page.locator("#chart-train_loss .modebar-btn").first.click(force=True)
    assert download.value.suggested_filename.endswith(".png")

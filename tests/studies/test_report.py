import html.parser
import json
import re
import shutil
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_runs import edit_rows, write_comparison, write_run, write_study

from sngd.studies import report
from sngd.studies.certify import certify
from sngd.studies.figures import COLORS
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
    charts = page_of(tmp_path).partition("</head>")[2].partition("<script>")[0]
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
        page.wait_for_selector("svg.plot .tick.x", state="attached")
        return page

    yield open_
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1  # the page itself


def drawn(page, chart):
    """What a chart draws of each arm: ["band", "mean"], or without a band."""
    script = """id => [...document.querySelectorAll(`#${id} path[data-arm]`)]
        .filter(path => path.getAttribute("d"))
        .map(path => [path.dataset.arm, path.getAttribute("class")])"""
    groups = {}
    for arm, kind in page.evaluate(script, f"chart-{chart}"):
        groups.setdefault(arm, []).append(kind)
    return groups


def overlapping(page):
    """Labels of axes that lie over one another or leave their chart: in each chart, and along each axis."""
    return page.evaluate(
        """() => [...document.querySelectorAll("svg.plot")].flatMap(svg => ["x", "y"].flatMap(axis => {
        const labels = [...svg.querySelectorAll(`.tick.${axis}`)], frame = svg.getBoundingClientRect();
        const boxes = labels.map(label => label.getBoundingClientRect());
        const wrong = boxes.filter(box => box.left < frame.left - 1 || box.right > frame.right + 1);
        for (const [i, a] of boxes.entries()) for (const b of boxes.slice(i + 1)) {
            const apart = axis === "x" ? a.right < b.left || b.right < a.left : a.bottom <= b.top || b.bottom <= a.top;
            if (!apart) wrong.push(b);
        }
        if (labels.length < 2) wrong.push(frame);
        return wrong.map(box => `${svg.id} ${axis}`);
    }))"""
    )


@pytest.mark.slow
def test_a_click_on_the_legend_hides_curve_and_band_everywhere(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path)))
    both = ["band", "mean"]
    assert drawn(page, "train_loss") == {f"arm-{i}": both for i in range(3)}
    entry = page.get_by_role("button", name="sngd", exact=True)
    entry.click()
    assert entry.get_attribute("aria-pressed") == "false"
    for chart in ("train_loss", "test_loss", "test_accuracy", "grad_norm"):
        assert drawn(page, chart) == {"arm-0": both, "arm-2": both}
    assert drawn(page, "lr") == {"arm-0": ["mean"], "arm-2": ["mean"]}  # no band: all seeds have one learning rate
    entry.press("Enter")  # by keyboard, and back
    assert drawn(page, "train_loss")["arm-1"] == both


@pytest.mark.slow
def test_a_click_on_the_legend_hides_thin_lines_too(tmp_path, open_page):
    for label in ("sgd", "sngd"):
        write_run(tmp_path / label, label, tracked=True)
    page = open_page(write_report(tmp_path))
    widths = (
        """[...document.querySelectorAll("#chart-hessian_max path.mean")].map(p => p.getAttribute("stroke-width"))"""
    )
    assert page.evaluate(widths) == ["2.2", "2.2", "1.1", "1.1"]
    page.get_by_role("button", name="sngd", exact=True).click()
    for chart in ("smoothness_along", "hessian_max"):
        assert drawn(page, chart) == {"arm-0": ["mean", "mean"]}
    assert page.text_content("#chart-noise_scale g .tick") == "batch size 32"
    level = page.locator("#chart-noise_scale .reference").get_attribute("y1")
    ticks = page.eval_on_selector_all(
        "#chart-noise_scale .tick.y", "labels => labels.map(l => [Number(l.textContent), Number(l.getAttribute('y'))])"
    )
    above = min(place for number, place in ticks if number < 32)
    assert max(place for number, place in ticks if number > 32) < float(level) + 4.5 < above


@pytest.mark.slow
def test_the_switch_changes_the_axis(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path)))
    switch = page.get_by_role("group", name="Axis of training loss")

    def kinds():
        return [page.get_attribute(f"#chart-{key}", "data-axis") for key in ("train_loss", "grad_norm")]

    assert kinds() == ["log", "log"]
    assert overlapping(page) == []
    switch.get_by_role("button", name="linear").click()
    assert kinds() == ["linear", "log"]
    assert overlapping(page) == []
    switch.get_by_role("button", name="log").click()
    assert kinds() == ["log", "log"]
    assert page.get_by_role("group", name="Axis of test accuracy").count() == 0


@pytest.mark.slow
def test_the_mouse_reads_values_and_zooms(tmp_path, open_page):
    page = open_page(write_report(write_study(tmp_path)))
    page.locator("#chart-train_loss").scroll_into_view_if_needed()
    box = page.locator("#chart-train_loss").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + 100
    page.mouse.move(*middle)
    lines = page.locator(".chart .tip").first.inner_text().splitlines()
    assert lines[0] == "#grad/n 5"
    loss = read_study(tmp_path).arms["sgd"][0].rows[5]["train_loss"]
    name, mean, low, high = re.fullmatch(r"(\S+): (\S+) \[(\S+), (\S+)\]", lines[1]).groups()
    assert name == "sgd"
    assert float(low) <= min(float(mean), loss) + 1e-3
    assert float(high) >= max(float(mean), loss) - 1e-3

    def last_tick():
        return float(page.locator("#chart-train_loss .tick.x").last.text_content())

    assert last_tick() == 10
    page.mouse.down()
    page.mouse.move(middle[0] - 100, middle[1] + 80, steps=3)
    page.mouse.up()
    assert last_tick() < 6
    page.mouse.dblclick(*middle)
    assert last_tick() == 10


def four_decades(tmp_path):
    """Curves that fall through several decades, by many methods with long names."""
    floors = {f"spider-sfo lr={10.0**-i} period={i}": 10.0 ** -(i + 1) for i in range(8)}
    return write_study(tmp_path, floors, seeds=1, epochs=25)


@pytest.mark.slow
@pytest.mark.parametrize("study", [write_study, four_decades])
def test_charts_fit_wide_and_narrow_screens(tmp_path, open_page, study):
    page = open_page(write_report(study(tmp_path)))
    overflow = """() => Math.max(...[...document.querySelectorAll(".chart")].map(
        chart => chart.querySelector(".plot").getBoundingClientRect().width - chart.getBoundingClientRect().width))"""
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(200)  # the charts follow the window after a moment
        assert page.evaluate(overflow) <= 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert overlapping(page) == []


@pytest.mark.slow
def test_on_a_narrow_screen_the_first_column_stays_and_the_legend_folds(tmp_path, browser, open_page):
    path = write_report(four_decades(tmp_path))
    assert open_page(path).get_attribute(".legend", "open") == ""
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("svg.plot .tick.x", state="attached")
    assert page.get_attribute(".legend", "open") is None
    assert page.locator(".legend").bounding_box()["height"] < 60
    box = page.get_by_role("region", name="Results")
    name = box.locator("tbody th").first
    before = name.bounding_box()["x"]
    assert name.bounding_box()["width"] < 200  # numbers fit beside it
    box.evaluate("box => box.scrollLeft = 300")
    assert name.bounding_box()["x"] == before
    assert name.inner_text() == "spider-sfo lr=1.0 period=0"
    page.close()


@pytest.mark.slow
def test_dark_screens(tmp_path, browser):
    path = write_report(write_study(tmp_path, {f"m{i}": 0.02 * (i + 1) for i in range(12)}))
    for scheme, is_dark in (("light", False), ("dark", True)):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("svg.plot .tick.x", state="attached")
        styles = [
            ("body", "backgroundColor"),
            ("body", "color"),
            (".plot .tick", "fill"),
            ("thead th", "backgroundColor"),
        ]
        back, ink, label, column = (
            page.eval_on_selector(where, f"element => getComputedStyle(element).{name}") for where, name in styles
        )
        assert (luminance(back) < 0.1) is (luminance(column) < 0.1) is is_dark
        lines = page.eval_on_selector_all("#chart-train_loss .mean", "all => all.map(p => getComputedStyle(p).stroke)")
        assert len(set(lines)) == 12
        assert min(contrast(color, back) for color in (ink, label)) > 7
        assert min(contrast(color, back) for color in lines) > 2.2  # Okabe and Ito's orange and blue on white
        context.close()


def luminance(color):
    """Of "rgb(…)", as the accessibility guidelines define it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
def test_a_label_cannot_run_code(tmp_path, open_page):
    write_run(tmp_path / "a", EVIL, config={"method": "sngd"})
    write_comparison(tmp_path, methods=[EVIL], seeds=[0], command=EVIL)
    page = open_page(write_report(tmp_path))
    page.hover("#chart-train_loss")  # the hover text has the label too
    assert EVIL in page.locator(".chart .tip").first.inner_text()
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
def test_a_chart_can_be_saved(tmp_path, open_page):
    page = open_page(write_report(write_run(tmp_path / "a")))
    with page.expect_download() as download:  # which the content security policy must allow
        page.get_by_role("button", name="Save the chart of training loss as SVG").click()
    assert download.value.suggested_filename == "chart-train_loss.svg"
    picture = ElementTree.parse(download.value.path()).getroot()
    strokes = [path.get("stroke") for path in picture.iter("{http://www.w3.org/2000/svg}path")]
    assert "rgb(0, 114, 178)" in strokes  # colours are written out, as the file has no style sheet


# ---- what the page weighs and says ---------------------------------------------------------------------------


def test_the_page_is_small_and_needs_nothing(tmp_path):
    path = write_report(write_study(tmp_path))
    assert path.stat().st_size < 100_000
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", path.read_text(encoding="utf-8"))


def test_every_chart_says_what_it_shows(tmp_path):
    page = page_of(write_study(tmp_path))
    charts = re.findall(r'<svg class="plot" id="chart-(\w+)" role="img" aria-label="([^"]+)">', page)
    assert [key for key, _ in charts] == ["train_loss", "test_loss", "test_accuracy", "grad_norm", "lr"]
    assert page.count('<svg class="plot"') == len(charts)
    last = [run.rows[-1]["train_loss"] for run in read_study(tmp_path).arms["sgd"]]
    assert charts[0][1].startswith(f"Training loss against #grad/n; at the end: sgd {sum(last) / 3:.4g}, sngd ")


def test_the_page_has_the_colours_of_the_figures():
    css = (Path(report.__file__).parent / "page" / "style.css").read_text(encoding="utf-8")
    light, dark = css.split("@media (prefers-color-scheme: dark)")[:2]
    hues = dict(re.findall(r"--hue-(\d+): (#\w{6})", light))
    assert [hues[str(i)] for i in range(len(COLORS))] == [color.lower() for color in COLORS]
    assert "--hue-6: #ffffff" in dark  # black would be lost


def test_one_method_alone_has_sentences_of_its_own(tmp_path):
    write_study(tmp_path, {"sgd": 0.1})
    text = visible(page_of(tmp_path))
    assert "nothing to compare" not in text
    runs = read_study(tmp_path).arms["sgd"]
    end = sum(run.rows[-1]["train_loss"] for run in runs) / 3
    start = sum(run.rows[0]["train_loss"] for run in runs) / 3
    assert f"sgd ended at #grad/n = 10 with training loss {end:.4f} ± " in text
    assert f"Its training loss went from {start:.4g} to {end:.4g}." in text


def test_a_loss_that_was_lower_before_is_told(tmp_path):
    write_run(tmp_path / "a", answer={"test_loss": 0.5})
    text = visible(page_of(tmp_path))
    before = read_study(tmp_path).runs[0].rows[-2]["test_loss"]
    assert "with one seed (seed noise unknown)." in text
    assert f"to 0.5, and was lowest, {before:.4g}, at #grad/n = 9." in text


def test_a_loss_of_samples_is_not_held_against_one_of_all(tmp_path):
    write_run(tmp_path / "a", answer={"test_loss": 0.5})
    edit_rows(tmp_path, {"samples": 2000}, slice(None, -1))
    edit_rows(tmp_path, {"test_loss": 0.01}, slice(4, 5))
    first, *_, end, _ = read_study(tmp_path).runs[0].rows
    text = visible(page_of(tmp_path))
    went = f"On 2,000 samples its training loss went from {first['train_loss']:.4g} to {end['train_loss']:.4g}"
    assert f"{went} before the end." in text
    went = f"On 2,000 samples its test loss went from {first['test_loss']:.4g} to {end['test_loss']:.4g}"
    assert f"{went} before the end, and was lowest, 0.01, at #grad/n = 4." in text

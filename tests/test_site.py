"""The site builds, its links lead somewhere, it needs no network, and what is made from the code is fresh."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sngd.training import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import run_notebook  # noqa: E402
import write_gallery  # noqa: E402
import write_methods  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_with_all_links_checked_and_loads_nothing_from_elsewhere(site):
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    assert len(pages) > 50
    assert not [tag for page in pages for tag in re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?https?:", page)]


@pytest.mark.slow
def test_no_heading_is_swallowed_by_a_snippet(site):
    pages = sorted(DOCS.rglob("*.md"))
    assert len(pages) > 40
    for page in pages:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        html = (site / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        written = len(re.findall(r"^##? ", text, flags=re.M))
        assert len(re.findall(r"<h[12] id=\"(?!sngd\.)", html)) >= written, page


@pytest.mark.slow
def test_every_snippet_is_shown_as_code(site):
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert not [page for page, html in pages.items() if "```" in html]


@pytest.mark.slow
def test_formulas_are_there_without_a_script(site):
    page = (site / "theory.html").read_text(encoding="utf-8")
    assert page.count("<math") > 200
    assert "arithmatex" not in page
    assert "<merror" not in page


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    import sngd

    text = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    public = {name for name in sngd.__all__ if not name.islower() or name == "groups"}
    public |= {f"{room}.{name}" for room in ("estimators", "norms") for name in getattr(sngd, room).__all__}
    missing = {name for name in public if f'id="sngd.{name}"' not in text}
    assert missing <= {"norms.NORMS", "norms.spelled"}


# --- pages made from the code and from results


@pytest.mark.parametrize(("path", "name", "text"), list(write_methods.blocks()), ids=lambda value: str(value)[:20])
def test_tables_are_those_of_the_registry_and_the_results(path, name, text):
    assert text == f"{write_methods.content(name)}\n", f"{path} is stale: make docs"


def test_every_method_has_a_page():
    assert {path.stem for path in write_methods.PAGES.glob("*.md")} == METHODS.keys() | {"index"}


@pytest.mark.parametrize("name", METHODS)
def test_a_page_says_when_a_method_helps_and_when_not(name):
    text = (write_methods.PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}: {METHODS[name].summary}\n")
    headings = re.findall(r"^## (.+)$", text, flags=re.M)
    assert headings == ["When it helps", "When it does not", "In your own loop"]
    assert f"<!-- registry: {name} -->" in text


def test_the_gallery_has_every_picture_with_its_command():
    assert write_gallery.PAGE.read_text(encoding="utf-8") == write_gallery.page(), "docs/gallery.md is stale: make docs"


def test_what_is_added_takes_less_than_forty_lines():
    text = (DOCS / "extend.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python.*?\n(.*?)```", text, flags=re.S)
    assert len(snippets) == 4
    assert all(len([line for line in snippet.splitlines() if line.strip()]) < 40 for snippet in snippets)


@pytest.mark.slow
def test_the_notebook_runs_and_its_outputs_are_those_committed():
    path = ROOT / "examples" / "two_minutes.ipynb"
    stored, notebook = (json.loads(path.read_text(encoding="utf-8")) for _ in range(2))
    variables = run_notebook.run(notebook)
    assert min(variables["accuracies"].values()) > 0.9
    assert [kinds(cell) for cell in notebook["cells"]] == [kinds(cell) for cell in stored["cells"]]


def kinds(cell):
    return [output["output_type"] for output in cell.get("outputs", [])]

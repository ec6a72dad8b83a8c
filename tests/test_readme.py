"""What the README shows runs, and its numbers are those of the committed results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_python_snippet_runs_as_it_stands(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 15
    result = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.count("gradient norm") == 10


@pytest.mark.parametrize("page", ["README.md", "docs/reproduction.md"])
def test_every_spread_shown_is_in_a_committed_table(page):
    tables = "\n".join(path.read_text() for path in (ROOT / "results").rglob("table.md"))
    spreads = re.findall(r"\d[\d.]* ± \d[\d.]*\d", (ROOT / page).read_text())
    assert len(spreads) >= 6
    missing = [spread for spread in spreads if spread not in tables]
    assert not missing


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("page", ["README.md", "docs/reproduction.md"])
def test_every_verdict_shown_is_the_computed_one(page):
    verdicts = json.loads((ROOT / "results" / "small" / "verdicts.json").read_text())["verdicts"]
    computed = {(v["claim"], v["text"], v["outcome"]) for v in verdicts}
    shown = re.findall(r"^\| (C\d+) \| (.*?) \| \*\*(.*?)\*\* \|$", (ROOT / page).read_text(), flags=re.M)
    assert len(shown) >= 6
    assert set(shown) <= computed

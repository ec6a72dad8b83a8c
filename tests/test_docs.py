"""What the documentation shows runs as it stands, and its links lead somewhere."""

import json
import re
import shlex
import subprocess
import sys
import warnings
from math import inf
from pathlib import Path

import pytest
import torch
import typer

from forked import FORKED
from sngd.cli import app, main
from sngd.problems import PROBLEMS
from sngd.studies.compare import parse_arms
from sngd.studies.runs import all_runs
from sngd.training import METHODS, RunConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
PAGES = sorted(DOCS.rglob("*.md"))
OWN_INTERPRETER = {"in-your-project"}  # pages whose snippets load large libraries
LIBRARY_WARNINGS = [  # that a reader of the page gets too, and that say nothing about it
    "`isinstance(treespec, LeafSpec)` is deprecated",  # lightning 2.6
    "'pin_memory' argument is set as true",  # transformers, where there is no GPU
]


def snippets(fence: str, *marks: pytest.MarkDecorator, alone: bool | None = None) -> list:
    """Of all pages, or of those whose snippets have (not) an interpreter of their own."""
    chosen = [page for page in PAGES if alone is None or alone == (page.stem in OWN_INTERPRETER)]
    found = [(named(page), re.findall(rf"```{fence}\n(.*?)```", page.read_text(), flags=re.S)) for page in chosen]
    return [pytest.param(text, id=f"{page}-{n}", marks=marks) for page, texts in found for n, text in enumerate(texts)]


def named(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())]


FOR_PACKAGES = ["pytorch_optimizer", "timm"]  # which the tests' own environment need not have


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python", alone=True))
def test_every_snippet_runs_as_it_stands(snippet, tmp_path):
    strict = ["-W", "error", *(f"-Wignore:{start}" for start in LIBRARY_WARNINGS)]
    subprocess.run([sys.executable, *strict, "-c", snippet], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python", alone=False))
def test_every_snippet_runs(snippet, tmp_path, monkeypatch):
    if "torch.optim.Muon" in snippet and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    monkeypatch.chdir(tmp_path)
    process = FORKED.Process(target=_run, args=(snippet, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def _run(snippet: str, folder: Path) -> None:
    import os

    os.chdir(folder)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(snippet, {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("package", FOR_PACKAGES)
def test_every_snippet_for_a_package_runs_where_it_is_installed(package, tmp_path):
    installed = [sys.executable, "-c", f"import {package}"]
    if subprocess.run(installed, capture_output=True, check=False).returncode:
        pytest.skip(f"{package} is not installed")
    for snippet in snippets(f"python {package}"):
        subprocess.run([sys.executable, "-c", *snippet.values], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", snippets("python hub"))
def test_every_snippet_for_torch_hub_runs_in_a_clone(snippet):
    subprocess.run([sys.executable, "-W", "error", "-c", snippet], cwd=ROOT, check=True, timeout=120)


# torch 2.13 does so as a process exits, its group destroyed: in one of four runs of DDP, with torch.optim.SGD too.
TORCH_ABORTS = "terminate called without an active exception"


@pytest.mark.parametrize("snippet", snippets("python torchrun", pytest.mark.slow))
def test_every_snippet_for_several_processes_runs_as_it_stands(snippet, tmp_path):
    (tmp_path / "snippet.py").write_text(snippet)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "snippet.py"]
    for _ in range(10):
        result = subprocess.run(torchrun, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        if TORCH_ABORTS not in result.stderr:
            break
    assert result.returncode == 0, result.stderr


def test_no_snippet_is_left_out():
    fences = [fence for page in PAGES for fence in re.findall(r"^```(.+)$", page.read_text(), flags=re.M)]
    own = [f"python {package}" for package in FOR_PACKAGES]
    known = [
        snippets(fence) for fence in ("python", "python torchrun", "python hub", 'python title="[^"]+"', "sh", *own)
    ]
    assert len(fences) == sum(map(len, known))
    assert all(known)


# --- commands


STEP = re.compile(r'^```(sh|python title="(.+?)")\n(.*?)^```', flags=re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "```sh\n" in page.read_text()], ids=named)
def test_every_command_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fence, name, text in STEP.findall(page.read_text()):
        if name:
            Path(name).write_text(text)
        for line in text.splitlines() if fence == "sh" else []:
            monkeypatch.setattr(sys, "argv", shlex.split(line))
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code, line
    if page.stem == "tutorial":
        guarantees_as_told(page.read_text())


def guarantees_as_told(text: str) -> None:
    alone, network = (
        json.loads(Path("runs", name, "certificate.json").read_text())["certificates"][0]
        for name in ("certified", "network")
    )
    assert (alone["verdict"], alone["vacuous"], network["vacuous"]) == ("holds", False, True)
    told = f"a mean gradient norm of about {alone['measured']['value']:.2f}, and a bound of about {alone['bound']:.2f}"
    assert told in " ".join(text.split())


def shown_commands() -> list[str]:
    """Commands that stand indented, of which many take long, and cannot all be run here."""
    pages = [*PAGES, ROOT / "README.md"]
    return sorted({line for page in pages for line in re.findall(r"^    (sngd .+)$", page.read_text(), flags=re.M)})


@pytest.mark.parametrize("line", shown_commands())
def test_every_command_shown_is_understood(line):
    _, name, *words = shlex.split(line.split(" > ")[0], comments=True)
    command = typer.main.get_command(app).commands[name]
    given = command.make_context(name, words).params
    if given.get("problem"):
        problem = given["problem"].split(":")[0]
        assert problem in PROBLEMS or (ROOT / problem).is_file() or problem.endswith(".py")
    if "method" in given:
        assert given["method"] in METHODS
    if name == "compare":
        for arm in parse_arms(given["methods"], RunConfig(given["problem"], "")):
            arm.resolved()


def test_every_make_target_shown_is_there():
    text = "".join(page.read_text() for page in [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"(?:^    |`)make (\w+)", text, flags=re.M)) <= targets


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_somewhere(page, link):
    assert (page.parent / link).exists()


def test_the_noise_scales_told_are_those_of_the_run():
    (run,) = all_runs(RESULTS / "mnist-tracked")
    first, *later = [(row["noise_scale"], row["noise_scale_low"], row["noise_scale_high"]) for row in run.rows]
    known = [scale for scale, _, _ in later if scale is not None]
    text = " ".join((DOCS / "constants.md").read_text("utf-8").split())
    assert "{:.0f} [{:.0f}, {:.0f}] at initial weights".format(*first) in text
    assert f"between {min(known):.0f} and {max(known):,.0f} after that" in text
    assert [place for place, (scale, _, _) in enumerate(later, 1) if scale is None] == [8, 9]
    assert "after passes 8 and 9 the gradient cannot be told from noise" in text
    holds = [low <= 900 <= (high or inf) for _, low, high in later]
    assert holds == [True] * 7 + [False] * 3
    assert all(low > 900 for _, low, _ in later[7:])
    assert "contain 900 from the first pass to the seventh and lie above 900 later" in text

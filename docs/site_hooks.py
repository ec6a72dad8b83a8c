"""What mkdocs does for the site beyond its own: methods in the menu, links that leave `docs/`, formulas.

The pages are written so that they can be read in the repository too. There a link such as `../src/sngd/stages.py` leads
to the file. On the site it leads to a copy below `repository/`: Markdown and source files become pages, and all other
files are copied as they are. A formula in LaTeX becomes MathML, which browsers show without a script.
"""

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from run_notebook import as_markdown

DOCS = Path(__file__).parent
ROOT = DOCS.parent
COPIES = "repository/"
SOURCES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".cff": "yaml"}
LINK = re.compile(r"\]\(((?!\w+:|#)[^)#\s]+)((?:#[^)\s]*)?)\)")
OPTIONAL = {"Results": "performance.md"}  # pages that the menu takes once they are there


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the menu: all methods, in the registry's order, and optional pages that are there."""
    from sngd.training import METHODS

    for section in config.nav or []:
        ((title, entries),) = section.items()
        if title == "Methods":
            section[title] = ["methods/index.md", *({name: f"methods/{name}.md"} for name in METHODS)]
        elif (DOCS / OPTIONAL.get(title, "none")).is_file():
            entries.append(OPTIONAL[title])
    return config


# --- links that leave docs/


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a copy of every file of the repository that a page links to, and of those that the copies link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        uri = waiting.pop()
        for target in links_out(uri):
            if files.get_file_from_path(copy_of(target)) is None:
                files.append(copied(target, config))
                if target.endswith(".md"):
                    waiting.append(copy_of(target))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links that leave `docs/` lead to the copies."""
    uri = page.file.src_uri
    if uri.startswith(COPIES):
        page.meta["search"] = {"exclude": True}

    def to_copy(link: re.Match[str]) -> str:
        target = target_of(uri, link[1])
        if target.startswith("docs/"):
            there = target.removeprefix("docs/")
        elif (ROOT / target).exists():
            there = copy_of(target)
        else:
            return link[0]
        return f"]({relpath(there, str(Path(uri).parent))}{link[2]})"

    # Superfences take one word after a fence; the second one tells the tests how to run a snippet.
    return re.sub(r"^```python \w+$", "```python", LINK.sub(to_copy, markdown), flags=re.M)


def links_out(uri: str) -> Iterator[str]:
    """Paths in the repository, outside of `docs/`, that a page of the site links to."""
    path = ROOT / target_of(uri, "") / Path(uri).name
    if not path.is_file() or path.suffix != ".md":
        return
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        target = target_of(uri, link[0])
        if not target.startswith("docs/") and (ROOT / target).exists():
            yield target


def target_of(uri: str, link: str) -> str:
    """The path in the repository that a link of the page ``uri`` means."""
    folder = Path(uri.removeprefix(COPIES)).parent if uri.startswith(COPIES) else Path("docs", uri).parent
    return normpath(str(folder / link))


def copy_of(target: str) -> str:
    """Where the site has its copy of a file or folder of the repository."""
    page = Path(target).suffix in (*SOURCES, ".ipynb") or (ROOT / target).is_dir()
    return f"{COPIES}{target}.md" if page else COPIES + target


def copied(target: str, config: MkDocsConfig) -> File:
    path, uri = ROOT / target, copy_of(target)
    if path.is_dir():
        names = sorted(file.name for file in path.iterdir() if not file.name.startswith(("_", ".")))
        return File.generated(config, uri, content=f"# `{target}`\n\n" + "\n".join(f"* `{name}`" for name in names))
    if path.suffix == ".ipynb":
        return File.generated(config, uri, content=as_markdown(json.loads(path.read_text(encoding="utf-8"))))
    if path.suffix in SOURCES:
        text = path.read_text(encoding="utf-8")
        return File.generated(config, uri, content=f"# `{target}`\n\n~~~~{SOURCES[path.suffix]}\n{text}\n~~~~\n")
    return File.generated(config, uri, abs_src_path=str(path))


# --- formulas


def on_page_content(html: str, **_: Any) -> str:
    """Turn the formulas that arithmatex has found into MathML, and let a picture lead to its file."""
    html = re.sub(r'<img [^>]*src="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', html)
    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: mathml(m[1], "inline"), html, flags=re.S)
    return re.sub(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', lambda m: mathml(m[1], "block"), html, flags=re.S)


def mathml(latex: str, display: str) -> str:
    latex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad(\1)", unescape(latex))
    latex = re.sub(r"(\\(?:begin|end))\{aligned\}", r"\1{align*}", latex)  # the name that the converter knows
    return f'<span class="formula-{display}">{convert(latex.strip(), display=display)}</span>'

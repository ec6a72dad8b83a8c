"""Write what the pages `docs/methods/*.md` take from the registry of methods and from committed runs.

    make docs

Formulas, costs, parameters and default learning rates are those of `sngd.training.METHODS`. Measured numbers are read
from the packed studies in `results/`. A page's own words stand below the block that is written here, and a test sees
when a block is stale.
"""

import re
from collections.abc import Iterator
from dataclasses import MISSING
from functools import cache
from pathlib import Path

from sngd.studies.markdown import markdown_table
from sngd.studies.runs import Run, Study, read_study
from sngd.studies.table import format_spread, summarize
from sngd.training import METHODS
from sngd.training.config import SETTINGS
from sngd.training.methods import Method

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
PAGES = DOCS / "methods"
BLOCK = re.compile(r"<!-- registry: (\S+) -->\n(.*?)<!-- end -->\n", flags=re.S)

OF_THE_PAPER = re.compile(r"(eq\.|§|Algorithm)[^;]*$")

STUDIES = {  # what a page calls a committed study, and its picture
    "mnist-mlp-tuned": ("MNIST, perceptron, thirteen methods tuned alike", "figures/curves.png"),
    "mnist-mlp-peers": ("MNIST, perceptron, with the peers, tuned alike", "figures/curves.png"),
    "small/sensitivity/learning-rates": ("MNIST, perceptron, the best of several rates", "../sensitivity.png"),
    "small/norms/shakespeare-gpt": ("a small GPT on Shakespeare's plays, 1,000 steps, tuned alike", "../norms.png"),
    "small/norms/mnist-mlp": ("MNIST, perceptron, falling rates, tuned alike", "../norms.png"),
    "small/norms/cifar10-resnet8": ("10,000 images of CIFAR-10, ResNet8, batch 128, tuned alike", "../norms.png"),
    "small/fig4/large-batch": ("10,000 images of CIFAR-10, ResNet8, batch 256, tuned alike", "../fig4.png"),
    "small/fig3/resnet8": ("CIFAR-10, ResNet8, the paper's rates", "../fig3.png"),
    "small/fig3/resnet8-beyond": ("CIFAR-10, ResNet8, rates not tuned", "../fig3.png"),
    "small/large-batches/mnist-mlp-2048": ("MNIST, perceptron, batch 2048, tuned alike", "../large-batches.png"),
    "cifar10-resnet8-one-epoch": ("CIFAR-10, ResNet8, default rates, one seed", "figures/curves.png"),
}
LEAVING = ("small/fig1/fig1-map.png", "Who leaves a saddle or a sharp minimum at which learning rate")
REDUCING = ("small/reduced-variance/reduced-variance.png", "Methods that reduce variance on MNIST, tuned alike")
PICTURES = dict.fromkeys(("gd", "ngd", "saddle-ngd", "noisy-gd"), LEAVING) | dict.fromkeys(
    ("spider-sfo", "svrg", "scsg", "natasha2"), REDUCING
)


def main() -> None:
    for path in pages():
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")


def refreshed(text: str) -> str:
    """A page with its blocks as the registry and the results have them now."""
    return BLOCK.sub(lambda block: f"<!-- registry: {block[1]} -->\n{content(block[1])}\n<!-- end -->\n", text)


def content(name: str) -> str:
    tables = {"all": overview, "rates": rates, "settings": settings}
    return tables[name]() if name in tables else about(METHODS[name])


def pages() -> list[Path]:
    return [*sorted(PAGES.glob("*.md")), DOCS / "choosing.md", DOCS / "reference" / "training.md"]


# --- a method's page


def about(method: Method) -> str:
    lines = ["", *facts(method), ""]
    if method.parameters:
        lines += parameters(method)
    lines += ["Try it:", "", f"    sngd train digits-mlp --method {method.name} --epochs 3", "", *measured(method)]
    return "\n".join(lines).rstrip() + "\n"


def facts(method: Method) -> list[str]:
    rows = [
        ("gradient", f"`{method.estimate.formula}`"),
        ("step", f"`{method.step_rule.formula}`"),
        ("oracle calls a step", method.estimate.cost_text),
        ("default learning rate α", f"{method.lr:g}, stage plan `{method.plan}`"),
        ("its theory is about", {"last": "the last iterate", "random": "a random iterate"}[method.output]),
        ("source", f"{method.paper} of Zhao, Xie and Li 2021" if OF_THE_PAPER.match(method.paper) else method.paper),
    ]
    return markdown_table(["", f"`{method.name}`"], rows, text_columns=2).splitlines()


def parameters(method: Method) -> list[str]:
    rows = [(f"`{p.name}`", p.symbol, p.shown_default, p.what) for p in method.parameters]
    table = markdown_table(
        ["parameter (`--param NAME=VALUE`)", "symbol", "default", "what it is"], rows, text_columns=4
    )
    return [*table.splitlines(), ""]


def measured(method: Method) -> list[str]:
    """A table of the method's committed runs and a picture of one; or that there are none."""
    found = [(place, arm) for place in STUDIES if (arm := best_arm(place, method.name)) is not None]
    if not found:
        return ["No run of this method is in `results/` yet, so this page has no picture and no numbers.", ""]
    header = ["committed runs", "α", "passes", "training loss", "test loss", "test accuracy (%)"]
    picture, title = PICTURES.get(method.name) or picture_of(found[0][0])
    table = markdown_table(header, [row(place, arm) for place, arm in found])
    spread = ["± is the standard deviation over seeds.", ""] if "±" in table else []
    return [*table.splitlines(), "", *spread, f"![{title}](../../results/{picture})", ""]


def picture_of(place: str) -> tuple[str, str]:
    title, picture = STUDIES[place]
    parts = f"{place}/{picture}".split("/")
    while ".." in parts:
        at = parts.index("..")
        del parts[at - 1 : at + 1]
    return "/".join(parts), title


def table_of(place: str) -> str:
    """The study's own table, or where studies are packed together, that of them all, or else their picture."""
    own = RESULTS / place / "table.md"
    if own.exists():
        return f"{place}/table.md"
    above = own.parent.parent
    return next(path for kind in ("*.md", "*.png") for path in above.glob(kind)).relative_to(RESULTS).as_posix()


def best_arm(place: str, method: str) -> str | None:
    """The label of the study's arm of this method with the lowest mean training loss, None if it has none."""
    losses = {
        summary.label: summary.train_loss.mean
        for summary in summarize(study(place))
        if summary.train_loss and study(place).arms[summary.label][0].config["method"] == method
    }
    return min(losses, key=lambda label: losses[label]) if losses else None


def row(place: str, label: str) -> list[str]:
    (summary,) = (summary for summary in summarize(study(place)) if summary.label == label)
    run: Run = study(place).arms[label][0]
    plan = str(run.settings.plan or "constant").split(":")[0]
    lr = f"{summary.lr:g}" + (f", {plan}" if plan != "constant" else "")
    losses = (format_spread(summary.train_loss), format_spread(summary.test_loss))
    return [
        f"[{STUDIES[place][0]}](../../results/{table_of(place)})",
        lr,
        f"{summary.budget:.3g}",
        *losses,
        format_spread(summary.test_accuracy, percent=True),
    ]


@cache
def study(place: str) -> Study:
    return read_study(RESULTS / place)


# --- all methods


def overview() -> str:
    rows = [
        (f"[`{m.name}`]({m.name}.md)", m.summary, f"`{m.step_rule.formula}`", m.estimate.cost_text)
        for m in METHODS.values()
    ]
    return "\n" + markdown_table(["method", "", "step", "oracle calls a step"], rows, text_columns=4) + "\n"


def rates() -> str:
    rows = [(f"[`{m.name}`](methods/{m.name}.md)", f"{m.lr:g}", m.plan, best_rate(m.name)) for m in METHODS.values()]
    header = ["method", "default α", "plan", "best of a grid on MNIST (20 passes; 5; 3; 5, rising and falling)"]
    return "\n" + markdown_table(header, rows, text_columns=4) + "\n"


def best_rate(method: str) -> str:
    shown = []
    for place in ("mnist-mlp-tuned", "mnist-mlp-peers", "small/sensitivity/learning-rates", "small/norms/mnist-mlp"):
        label = best_arm(place, method)
        shown.append("–" if label is None else f"{study(place).arms[label][0].config['lr']:g}")
    return "" if set(shown) == {"–"} else "; ".join(shown)


def settings() -> str:
    """The settings of a run, as options of `sngd train` spell them."""
    rows = [(f"`{s.name}`", "–" if s.default is MISSING else f"`{s.default!r}`", s.help) for s in SETTINGS.values()]
    return "\n" + markdown_table(["setting", "default", "meaning"], rows, text_columns=3) + "\n"


def blocks() -> Iterator[tuple[Path, str, str]]:
    """Page, name and content of every block that is committed."""
    for path in pages():
        for name, text in BLOCK.findall(path.read_text(encoding="utf-8")):
            yield path, name, text


if __name__ == "__main__":
    main()

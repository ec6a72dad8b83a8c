"""Write `docs/gallery.md`: every committed picture, what it shows, and the command that makes it.

    make docs

The commands are read from the studies and measurements beside the pictures.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from sngd.studies.runs import comparison_of

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGE = DOCS / "gallery.md"

TOP = """# Pictures

Every picture of the repository, with the command that makes it. Studies that take long were made once and are kept in
`results/`. `sngd report DIR` draws the curves of a study again in seconds.
Evaluations of the kept studies are of all samples, as with `--curve-samples 0`.
"""

WORDS = {  # what each picture shows; a test sees that none is missing
    "docs/architecture.svg": "The rooms of the package, and which imports which.",
    "docs/norms.svg": "Unit balls of five norms of 2 × 2 matrices, and the step that each takes along one gradient.",
    "docs/performance.svg": "How the time of a step grows with the number of tensors and of entries.",
    "results/mnist-mlp-tuned": "MNIST: thirteen methods tuned alike; drawn are the ten of lowest training loss.",
    "results/mnist-mlp-peers": "MNIST, five passes: SGD with momentum, AdamW and normalized methods, all tuned alike.",
    "results/mnist-tracked": "Constants along ten passes over MNIST: gradient noise, smoothness, curvature.",
    "results/cifar10-resnet8-one-epoch": "One pass of CIFAR-10, default rates, one seed; drawn are ten of 17 methods.",
    "results/small/fig1/fig1.png": "Figure 1: paths from a saddle and in a sharp minimum.",
    "results/small/fig1/fig1-map.png": "Who leaves which of 40 starts, at each of 21 learning rates.",
    "results/small/fig2/fig2.png": "Figure 2: SNGD and SPIDER-SFO on MNIST.",
    "results/small/large-batches/large-batches.png": "Large batches: MNIST, Fashion-MNIST and CIFAR-10.",
    "results/small/reduced-variance/reduced-variance.png": "SPIDER-SFO, SVRG, SCSG and Natasha2 on MNIST, tuned alike.",
    "results/small/counting/counting.png": "Figure 2, with runs to the axis's end if SPIDER-SFO's steps count b each.",
    "results/small/spider-sizes/spider-sizes.png": "SPIDER-SFO with other anchors and periods, and SNGD, on MNIST.",
    "results/small/variation/variation.png": "How much the curves of SNGD and SPIDER-SFO vary.",
    "results/small/fig3/fig3.png": "Figure 3: stagewise methods on ResNet8 and CIFAR-10, two passes.",
    "results/small/fig4/fig4.png": "Figure 4: large batches on ResNet8 and a fifth of CIFAR-10.",
    "results/medium/fig3/fig3.png": "Figure 3 with ResNet20, 12 passes, one seed.",
    "results/medium/fig4/fig4.png": "Figure 4 with ResNet20, 12 passes with batch size 1024, one seed.",
    "results/small/sensitivity/sensitivity.png": "Final training loss against the learning rate.",
    "results/small/sensitivity/learning-rates": "The runs of the learning rates.",
    "results/small/alternatives/alternatives.png": "Claims C1 to C6 under other readings of the paper.",
    "results/small/conformance/conformance.png": "Lemmas and bounds held to random instances with known constants.",
    "results/small/conformance-norms/norms.png": "The same in every norm.",
    "results/small/norms/norms.png": "Steps in several norms: loss against the learning rate, and by width.",
    "results/small/scaling/scaling.png": "Oracle calls to reach a target, against the target.",
    "results/small/relaxed/relaxed.png": "Σ cosh w_i, which is L-smooth for no L.",
    "results/small/variance/variance.png": "Variance of SPIDER's gradient and of a mini-batch's, against the rate.",
}


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    return "\n".join([TOP, *(entry(picture) for picture in pictures())])


def pictures() -> list[str]:
    """Paths of all committed pictures; those of `docs/` first."""
    found = [*DOCS.glob("*.svg"), *(ROOT / "results").rglob("*.png")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def entry(picture: str) -> str:
    link = picture.removeprefix("docs/") if picture.startswith("docs/") else f"../{picture}"
    words = WORDS[next(place for place in places(picture) if place in WORDS)]
    title = picture.removeprefix("results/").removesuffix("/figures/curves.png")
    return f"## {title}\n\n{words}\n\n    {command(picture)}\n\n![{words}]({link})\n"


def command(picture: str) -> str:
    """How the picture was made, from the file beside it or above it."""
    if picture.startswith("docs/"):
        return "make docs"
    for place in places(picture):
        if comparison := comparison_of(ROOT / place):
            return comparison["command"]
        for name in ("measurements.json", "diagnosis.json"):
            path = ROOT / place / name
            if path.is_file():
                return str(json.loads(path.read_text(encoding="utf-8"))["command"])
    raise ValueError(f"{picture}: no file beside it says how it was made")


def places(picture: str) -> Iterator[str]:
    """The picture and the folders that hold it, the nearest first."""
    yield picture
    yield from (folder.as_posix() for folder in Path(picture).parents)


if __name__ == "__main__":
    main()

"""Put what `results/` has of benchmarks into `docs/performance.md` and `README.md`, and draw a picture.

    make bench    # measures, then calls this
    make docs

In the pages, what stands between `<!-- bench: NAME -->` and `<!-- end -->` is written here and nowhere else. A test
sees when a page or the picture is not that of the committed measurements.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from math import ceil, floor, log10
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "bench.json"
ENGINE = ROOT / "results" / "engine.json"
SINCE = ROOT / "results" / "since.json"
SINCE_AGAIN = ROOT / "results" / "since-batch-32.json"
SECOND = {file: file.with_stem(file.stem + "-second") for file in (RESULTS, ENGINE, SINCE)}  # of a second processor
STEPS_ON_A_GPU = ROOT / "results" / "bench-gpu.json"
GAINS_ON_A_GPU = ROOT / "results" / "gpu.json"
STEPS_OF_160_PASSES = 160 * 50_000 / 128  # over CIFAR-10
WHOLE_STEPS_ON_A_GPU = ROOT / "results" / "gpu-whole.json"
PICTURE = ROOT / "docs" / "performance.svg"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")

CLIP = "clip + SGD(foreach)"
MODELS = {"mlp": "MLP", "resnet56": "ResNet56", "shakespeare": "small GPT", "gpt2": "GPT-2"}
_BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Found = dict[str, Any]


def main() -> None:
    found = _read(RESULTS)
    PICTURE.write_text(drawn(found), encoding="utf-8")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8"), found), encoding="utf-8")


def filled(page: str, found: Found) -> str:
    """The page with every block written anew."""
    return _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block[2]](found)}\n{block[3]}", page)


# --- blocks


def machine(found: Found) -> str:
    at, second = found["step"]["environment"], _read(SECOND[RESULTS])["step"]["environment"]
    threads = f"{at['threads']} thread" + "s" * (at["threads"] > 1)
    return (
        f"The numbers on this page are from {at['processor']} with {at['instructions']}, {at['cores']} cores, "
        f"{threads},\ntorch {at['torch']}, Python {at['python']}, at {_commits(SECOND)}. "
        f"What is named second is from a second processor,\nalso {second['processor']} with {second['cores']} cores, "
        f"at {_commits(SECOND.values())}."
    )


def _commits(files: Iterable[Path]) -> str:
    """Those at which steps and passes, the engine, and whole commands were measured."""
    measured = map(_read, files)
    commits = [found.get("step", found)["environment"]["commit"][:7] for found in measured]
    return "commits {} (steps and passes), {} (engine) and {} (whole\ncommands)".format(*commits)


def sizes(found: Found) -> str:
    rows = []
    for case, title in MODELS.items():
        size, row = found["step"]["cases"][case], _row(found, case, "SNGD", "bare calls")
        ours, bare = map(_time, row["seconds"])
        rows.append([title, f"{size['tensors']:,}", f"{size['parameters']:,}", ours, bare])
    return _table(["weights", "tensors", "entries", "SNGD's step", "bare calls"], rows)


def rounds(found: Found) -> str:
    """The least and the largest number of rounds of each model's steps, and that of each problem's passes."""
    counts = []
    for measured in (found, _read(SECOND[RESULTS])):
        steps = [measured["step"]["cases"][case]["rounds"].values() for case in MODELS]
        passes = [case["rounds"] for case in measured["train"]["cases"].values()]
        counts.append([*(f"{min(some):,}–{max(some):,}" for some in steps), *map(str, passes)])
    head = ["", *(f"steps of {title}" for title in MODELS.values()), *found["train"]["cases"]]
    return _table(head, [["rounds", *counts[0]], ["second", *counts[1]]])


def step(found: Found) -> str:
    return _models(found, lambda row: row["same"])


def different(found: Found) -> str:
    return _models(found, lambda row: not row["same"])


def _models(found: Found, wanted: Callable[[Found], bool]) -> str:
    """A table with a column for each model: the ratio, and its quartiles."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in found["step"]["comparisons"]:
        if row["case"] in MODELS and wanted(row):
            cells.setdefault((row["work"], row["against"]), {})[row["case"]] = _ratio(row)
    rows = [[*pair, *(of_models.get(case, "") for case in MODELS)] for pair, of_models in cells.items()]
    return _table(["step", "against", *MODELS.values()], rows)


def train(found: Found) -> str:
    second = _by_what(_read(SECOND[RESULTS]))
    rows = [[*_what(row), _ratio(row), _ratio(second[_what(row)])] for row in found["train"]["comparisons"]]
    return _table(["problem", "work", "against", "ratio", "second"], rows)


def engine(_found: Found) -> str:
    """What compiled steps gain and cost, and the share of evaluation: `benchmarks/engine.py`."""
    head = ["problem", "step", "channels last", "compiled", "compiling", "pays after", "evaluation"]
    head += ["of all samples", "and ‖∇F‖"]
    files = ("", ENGINE), ("second", SECOND[ENGINE])
    return _table(["", *head], [[which, *_pass(case)] for which, file in files for case in _read(file)["cases"]])


def _pass(case: Found) -> list[str]:
    passes, layout = case["passes_until_compiling_pays"], case.get("channels_last_over_usual")
    return [
        f"{case['problem']}, b={case['batch_size']}",
        _time(case["step"]),
        "" if layout is None else f"× {layout:.2f}",
        f"× {case['compiled_step'] / case['step']:.2f}",
        _time(case["compiling"]),
        "never" if passes is None else f"{passes:.2g} passes",
        f"{case['share_of_evaluation']:.1%}",
        *(f"{case[name]:.0%}" for name in ("share_on_all", "share_on_all_with_gradient_norm")),
    ]


def since(_found: Found) -> str:
    """Whole commands against an earlier version: `benchmarks/since.py`."""
    head = ["what", "goal", "before", "now", "ratio", "result", "second: ratio", "result"]
    pairs = zip(_read(SINCE)["cases"], _read(SECOND[SINCE])["cases"], strict=True)
    return _table(head, [_command(case, second) for case, second in pairs])


def since_again(_found: Found) -> str:
    """More rounds of the one whose two rounds did not decide it, with a later version."""
    head = ["what", "goal", "before", "now", "ratio", "result"]
    return _table(head, [_of_command(case) for case in _read(SINCE_AGAIN)["cases"]])


def _command(case: Found, second: Found) -> list[str]:
    if case["command"] != second["command"]:
        raise ValueError(f"{case['command']} and {second['command']} must be the same command")
    return [*_of_command(case), *_of_wall_times(second)]


def _of_command(case: Found) -> list[str]:
    took = [f"{case[name]:.3g} s" for name in ("seconds_before", "seconds")]
    return [case["case"], f"≤ {case['goal']:g}", *took, *_of_wall_times(case)]


def _of_wall_times(case: Found) -> list[str]:
    """The median ratio with its range, and whether it meets the goal."""
    wall = median(case["wall"])
    ratio = f"{wall:.2f} ({min(case['wall']):.2f}–{max(case['wall']):.2f})" if len(case["wall"]) > 1 else f"{wall:.2f}"
    return [ratio, "met" if wall <= case["goal"] else "missed"]


_GOALS = ["weights or problem", "work", "against", "ratio", "goal", "result"]


def goals(found: Found) -> str:
    """Every comparison that has a goal, on both processors."""
    second = _by_what(_read(SECOND[RESULTS]))
    rows = [
        [*shown, _ratio(second[_what(row)]), second[_what(row)]["verdict"]]
        for shown, row in zip(_with_goals(found), _that_have_goals(found), strict=True)
    ]
    return _table([*_GOALS, "second: ratio", "result"], rows)


def _with_goals(found: Found) -> list[list[str]]:
    rows = []
    for row in _that_have_goals(found):
        case = MODELS.get(row["case"], row["case"])
        rows.append([case, row["work"], row["against"], _ratio(row), f"≤ {row['goal']:g}", row["verdict"]])
    return rows


def _that_have_goals(found: Found) -> list[Found]:
    return [row for part in found.values() for row in part["comparisons"] if "goal" in row]


def _by_what(found: Found) -> dict[tuple[str, ...], Found]:
    return {_what(row): row for part in found.values() for row in part["comparisons"]}


def _what(row: Found) -> tuple[str, ...]:
    return row["case"], row["work"], row["against"]


def gpu_machine(_found: Found) -> str:
    at = _read(STEPS_ON_A_GPU)["step"]["environment"]
    cores = f"{at['cores']} cores of {at['processor']}"
    return f"These numbers are from an {at['cuda']} with {cores}, torch {at['torch']}, Python {at['python']}."


def gpu_gains(_found: Found) -> str:
    """Runs as one, graphs, and bfloat16: `benchmarks/gpu.py`."""
    rows = []
    for case in _read(GAINS_ON_A_GPU)["cases"]:
        passes = f"{case['seconds_of_160_passes']:.0f} s" if "seconds_of_160_passes" in case else ""
        rows.append([case["case"], _time(case["milliseconds"] / 1e3), _ratio(case), passes])
    return _table(["what", "a step", "over the first of its kind", "160 passes"], rows)


def gpu_whole(_found: Found) -> str:
    """Whole steps as one graph, and the kernels of an optimizer's step."""
    found = _read(WHOLE_STEPS_ON_A_GPU)
    rows = [[c["case"], _time(c["milliseconds"] / 1e3), f"{c['seconds_of_160_passes']:.0f} s"] for c in found["cases"]]
    for some in found["side_by_side"]:
        each = some["milliseconds_for_each"]
        ours = f"cifar10-resnet20, b=128, one graph, {some['how']}, {some['runs']} runs at once"
        rows.append([ours, f"{_time(each / 1e3)} for each", f"{each * STEPS_OF_160_PASSES / 1e3:.0f} s for each"])
    for some in found["kernels_of_a_step"]:
        what = f"{some['case']}, the {some['kernels']:,} kernels of a step"
        rows += [[what, _time(some["milliseconds"] / 1e3), ""]]
    rows += [[f"{MODELS[k['weights']]}: {k['what']}", _time(k["microseconds"] / 1e6), ""] for k in found["kernels"]]
    return _table(["what", "time", "160 passes"], rows)


def gpu_steps(_found: Found) -> str:
    return _models(_read(STEPS_ON_A_GPU), lambda row: row["against"] in _AGAINST)


_AGAINST = ("bare calls", CLIP, "AdamW(fused)", "copying 16 bytes an entry")
TOGETHER, LONGEST = "mnist-mlp, 256 replicas", "cifar10-resnet20"
RUNS_ON_A_GPU = {TOGETHER: 8.0, LONGEST: 45.0}  # at most so many times one run; seconds of 160 passes, the quickest way


def gpu_goals(_found: Found) -> str:
    found = _read(GAINS_ON_A_GPU)["cases"] + _read(WHOLE_STEPS_ON_A_GPU)["cases"]
    cases = {case["case"]: case for case in found}
    ways = [name for name in cases if name.startswith(LONGEST) and "b=4096" not in name]
    quickest = min(ways, key=lambda name: cases[name]["seconds_of_160_passes"])
    rows = []
    for name, most in ((TOGETHER, RUNS_ON_A_GPU[TOGETHER]), (quickest, RUNS_ON_A_GPU[LONGEST])):
        seconds = cases[name].get("seconds_of_160_passes")
        value = cases[name]["ratio"][0] if seconds is None else seconds
        shown = _ratio(cases[name]) if seconds is None else f"{seconds:.0f} s"
        against = "one run" if seconds is None else "160 passes"
        work = "steps as one" if seconds is None else "steps"
        rows.append([name, work, against, shown, f"≤ {most:g}", "met" if value <= most else "missed"])
    return _table(_GOALS, rows + _with_goals(_read(STEPS_ON_A_GPU)))


def _read(file: Path) -> Found:
    found: Found = json.loads(file.read_text(encoding="utf-8"))
    return found


def readme(found: Found) -> str:
    with_goal = [case for case in MODELS if "goal" in _row(found, case, "SNGD", "bare calls")]
    bare, clip = ([_row(found, case, "SNGD", against) for case in with_goal] for against in ("bare calls", CLIP))
    loops = [row for row in found["train"]["comparisons"] if row["against"] == "DataLoader loop"]
    parts = " and ".join(f"{case['samples']:,}" for case in found["train"]["cases"].values() if case["evaluates"])
    return (
        f"An `SNGD` step takes {_named(bare)} times as long as torch's bare functions\n"
        f"that compute the same step without any check (the norms, their norm, and one addition), and {_named(clip)}\n"
        f"of the time of `clip_grad_norm_` and `SGD(foreach=True)`. `sngd train` takes {_named(loops)}\n"
        f"of the time of a `DataLoader` loop: a pass over MNIST, and {parts} samples of CIFAR-10 with an evaluation."
    )


BLOCKS: dict[str, Callable[[Found], str]] = {
    block.__name__: block
    for block in (
        machine,
        sizes,
        rounds,
        step,
        different,
        train,
        engine,
        since,
        since_again,
        goals,
        gpu_machine,
        gpu_gains,
        gpu_whole,
        gpu_steps,
        gpu_goals,
        readme,
    )
}


def _row(found: Found, case: str, work: str, against: str) -> Found:
    rows = found["step"]["comparisons"]
    (row,) = (row for row in rows if (row["case"], row["work"], row["against"]) == (case, work, against))
    return row  # type: ignore[no-any-return]


def _ratio(row: Found) -> str:
    median, low, high = row["ratio"]
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def _time(seconds: float) -> str:
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _named(rows: list[Found]) -> str:
    """Each ratio with its case: ``2.10 (MLP), 1.10 (ResNet56) and 1.02 (GPT-2)``."""
    words = [f"{row['ratio'][0]:.2f} ({MODELS.get(row['case'], row['case'])})" for row in rows]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- the picture; lengths are pixels

LEFT, TOP, WIDTH, HEIGHT, BETWEEN = 70, 50, 330, 250, 90
SIDES = {"SNGD": "#1f5fa8", CLIP: "#c25a1a", "bare calls": "#777777"}


def drawn(found: Found) -> str:
    """How a step's time grows, with the number of tensors and with the number of entries, both axes logarithmic."""
    panels = [
        ("tensors of 1000 entries", _series(found, r"(\d+) tensors of 1000")),
        ("entries in each of 4 tensors", _series(found, r"4 tensors of (10\^\d+)")),
    ]
    width, height = LEFT + 2 * WIDTH + BETWEEN + 30, TOP + HEIGHT + 60
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">',
        "<title>How the time of a step grows with tensors and with entries</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for n, (side, color) in enumerate(SIDES.items()):
        x = LEFT + 190 * n
        lines.append(f'<path d="M{x} 20h24" stroke="{color}" stroke-width="2"/><text x="{x + 30}" y="24">{side}</text>')
    for n, (title, series) in enumerate(panels):
        lines += _panel(LEFT + n * (WIDTH + BETWEEN), title, series)
    return "\n".join([*lines, "</svg>"]) + "\n"


def _series(found: Found, case: str) -> dict[str, list[tuple[float, float]]]:
    """For each side, points (size, seconds)."""
    series: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for row in found["step"]["comparisons"]:
        if (match := re.fullmatch(case, row["case"])) and row["against"] in SIDES:
            base, _, power = match[1].partition("^")
            size = float(base) ** int(power or 1)
            series[row["against"]].append((size, row["seconds"][1]))
            if row["against"] == "bare calls":
                series["SNGD"].append((size, row["seconds"][0]))
    return series


def _panel(left: int, title: str, series: dict[str, list[tuple[float, float]]]) -> Iterator[str]:
    points = [point for line in series.values() for point in line]
    x0, x1 = _ends([x for x, _ in points])
    y0, y1 = _ends([y for _, y in points])

    def x(size: float) -> float:
        return round(left + WIDTH * (log10(size) - x0) / (x1 - x0), 1)

    def y(seconds: float) -> float:
        return round(TOP + HEIGHT * (y1 - log10(seconds)) / (y1 - y0), 1)

    for power in range(x0, x1 + 1):
        at, label = x(10.0**power), "1" if power == 0 else f"10<tspan dy='-4' font-size='9'>{power}</tspan>"
        yield f'<path d="M{at} {TOP}V{TOP + HEIGHT}" stroke="#e4e4e4"/>'
        yield f'<text x="{at}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{label}</text>'
    for power in range(y0, y1 + 1):
        at = y(10.0**power)
        yield f'<path d="M{left} {at}H{left + WIDTH}" stroke="#e4e4e4"/>'
        yield f'<text x="{left - 6}" y="{at + 4}" text-anchor="end">{_time(10.0**power)}</text>'
    yield f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#555"/>'
    yield f'<text x="{left + WIDTH / 2:g}" y="{TOP + HEIGHT + 40}" text-anchor="middle">{title}</text>'
    for side, line in series.items():
        path = "L".join(f"{x(size)} {y(seconds)}" for size, seconds in sorted(line))
        yield f'<path d="M{path}" fill="none" stroke="{SIDES[side]}" stroke-width="2"/>'
        yield from (f'<circle cx="{x(a)}" cy="{y(b)}" r="3" fill="{SIDES[side]}"/>' for a, b in sorted(line))


def _ends(values: list[float]) -> tuple[int, int]:
    """The powers of ten around all values."""
    return floor(log10(min(values))), ceil(log10(max(values)))


if __name__ == "__main__":
    main()

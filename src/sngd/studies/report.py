"""The report of a study: one HTML page with everything inside, which needs no network and no server."""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from sngd.studies.certify import Entry, is_certified, shown_certificates
from sngd.studies.figures import (
    COLORS,
    DASH_LENGTHS,
    GRAD_NORM,
    HESSIAN,
    LR,
    NOISE_SCALE,
    SMOOTHNESS,
    TEST_ACCURACY,
    TEST_LOSS,
    TRAIN_LOSS,
    Panel,
    Style,
    band_note,
    bands,
    styles,
    view,
    wants_log,
)
from sngd.studies.runs import Band, Run, Study, read_study, value
from sngd.studies.table import DIFFERENCE_NOTE, SPREAD_NOTE, behind, cells, edge_notes, findings
from sngd.training.folder_lock import make_folder
from sngd.training.run_folder import replace_file

_TRACKED = (SMOOTHNESS, NOISE_SCALE, HESSIAN)
_PANELS = (TRAIN_LOSS, TEST_LOSS, TEST_ACCURACY, GRAD_NORM, LR, *_TRACKED)


def write_report(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Read the study in ``folder`` and write its report, by default to ``folder/report.html``.

    The page holds the findings, the table, curves against #grad/n with bands over seeds, certificates where constants
    are known (see `sngd.studies.certify`), the search for the learning rate if there was one, the configuration, the
    environment, and the command that repeats it all.
    The file is replaced as a whole; the page makes no request, and its content security policy forbids any.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError, ValueError: as ``read_study``; or ``out`` is a folder.
    """
    path = Path(folder) / "report.html" if out is None else Path(out)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, the report must be a file")
    if out is not None:
        make_folder(path.parent)
    replace_file(path, page_of(read_study(folder)).encode("utf-8"))
    return path


def page_of(study: Study) -> str:
    """The page itself, in HTML, as ``write_report`` describes it."""
    title = f"{study.problem}: {', '.join(study.labels)}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{escape(title)}</title>
<link rel="icon" href="data:image/svg+xml;base64,{b64encode(_part("icon.svg").strip().encode()).decode()}">
<style>
{_part("style.css")}</style>
</head>
<body>
<main>
<h1>{escape(study.problem)} <small>{escape(", ".join(study.labels))}</small></h1>
{_findings(study)}
{_table(study)}
{_curves(study)}
{_certificates(study)}
{_tuning(study)}
{_configuration(study)}
{_environment(study)}
{_command(study)}
</main>
<script>
{_part("script.js")}</script>
</body>
</html>
"""


def _part(name: str) -> str:
    """One of the files that the page is put together from, which lie beside this module in ``page``."""
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


# ---- findings and table --------------------------------------------------------------------------------------


def _findings(study: Study) -> str:
    sentences = [*findings(study), *_incomplete(study)]
    return f'<p class="findings">{" ".join(escape(sentence) + "." for sentence in sentences)}</p>'


def _incomplete(study: Study) -> list[str]:
    asked = study.comparison
    planned = max(len(asked["methods"]) * len(asked["seeds"]) if asked else 0, len(study.runs))
    finished = sum(run.finished for run in study.runs)
    return [] if finished == planned else [f"{finished} of {planned} runs have finished so far"]


def _table(study: Study) -> str:
    header, rows = cells(study)
    head = _row("th", (escape(text) for text in header), ' scope="col"')
    body = []
    for name, *rest in rows:
        texts = [f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text) for cell in rest]
        body.append(f'<tr><th scope="row">{escape(name.text)}</th>{_tags("td", texts)}</tr>')
    table = _scroll("Results", head, body) + f'<p class="note">{SPREAD_NOTE}.</p>'
    return _section("Results", table + _behind(study))


def _behind(study: Study) -> str:
    """The differences from the best arm, collapsed, because the findings state the important ones."""
    differences = behind(study)
    if differences is None:
        return ""
    header, rows = differences
    head = _row("th", map(escape, header), ' scope="col"')
    body = [f'<tr><th scope="row">{escape(label)}</th>{_tags("td", map(escape, texts))}</tr>' for label, *texts in rows]
    table, note = _scroll("Behind the best", head, body), f'<p class="note">{DIFFERENCE_NOTE}.</p>'
    return f"<details><summary>Every method's distance from the best</summary>{table}{note}</details>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}\n</section>"


def _scroll(name: str, head: str, body: Iterable[str]) -> str:
    """A table in a box that scrolls sideways on a narrow screen, by keyboard too."""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0"><table>'
        f"<thead>{head}</thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _row(tag: str, contents: Iterable[str], attributes: str = "") -> str:
    return f"<tr>{_tags(tag, contents, attributes)}</tr>"


def _tags(tag: str, contents: Iterable[str], attributes: str = "") -> str:
    return "".join(f"<{tag}{attributes}>{content}</{tag}>" for content in contents)


# ---- curves --------------------------------------------------------------------------------------------------


def _curves(study: Study) -> str:
    look = styles(study.labels)
    charts = [(panel, _lines(study, panel)) for panel in _PANELS]
    charts = [(panel, lines) for panel, lines in charts if lines]
    if not charts:
        return _section("Curves", "<p>Nothing has been measured yet.</p>")
    batch_sizes = sorted({size for run in study.runs if (size := value(run.config, "batch_size"))})
    legend = "".join(_legend_entry(i, label, look[label]) for i, label in enumerate(study.labels))
    figures = "".join(
        _chart(panel, lines, look, batch_sizes if panel is NOISE_SCALE else []) for panel, lines in charts
    )
    note = (
        f"{band_note(study)}. #grad/n: gradient evaluations so far, over the number of training samples. "
        "Click a method to hide or show it in every chart; drag to zoom, double-click to undo."
    )
    return _section(
        "Curves",
        '<details class="legend" open><summary>Methods shown</summary>'
        f'<div role="group" aria-label="Methods shown">{legend}</div></details>'
        f'<p class="note">{note[0].upper() + note[1:]}</p><div class="charts">{figures}</div>',
    )


def _legend_entry(index: int, label: str, style: Style) -> str:
    swatch = (
        f'<svg width="34" height="10" aria-hidden="true"><line x1="0" y1="5" x2="34" y2="5" '
        f'stroke="{_hue(style)}" stroke-width="3" stroke-dasharray="{_dashes(style)}"/></svg>'
    )
    return f'<button type="button" aria-pressed="true" data-toggle="arm-{index}">{swatch}{escape(label)}</button>'


def _hue(style: Style) -> str:
    """The style's colour as the page knows it; page/style.css has it for light and dark screens."""
    return f"var(--hue-{COLORS.index(style.color)})"


def _dashes(style: Style) -> str:
    return " ".join(f"{1.6 * length:g}" for length in DASH_LENGTHS[style.dash])


class _Line(NamedTuple):
    """An arm's curve in a chart."""

    label: str
    name: str
    curve: Band
    width: float


def _lines(study: Study, panel: Panel) -> list[_Line]:
    lines = [_Line(label, label, curve, 2.2) for label, curve in bands(study, panel).items()]
    if panel.thin:
        thin = bands(study, panel._replace(key=panel.thin))
        lines += [_Line(label, f"{label} (thin)", curve, 1.1) for label, curve in thin.items()]
    return lines


def _chart(panel: Panel, lines: list[_Line], look: dict[str, Style], references: Sequence[float]) -> str:
    """The numbers of a chart and an empty picture, which page/script.js draws as wide as the screen allows."""
    log = wants_log(panel, {line.name: line.curve for line in lines})
    title = panel.title[0].upper() + panel.title[1:]
    numbers = {
        "log": log,
        "view": None if log or panel in _TRACKED else view({line.name: line.curve for line in lines}),
        "lines": [_numbers(line, look[line.label], list(look).index(line.label)) for line in lines],
        "references": [{"y": size, "text": f"batch size {size:g}"} for size in references],
    }
    content = json.dumps(numbers, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")  # no tag, no end
    save = f'<button type="button" data-save aria-label="Save the chart of {escape(panel.title)} as SVG">Save</button>'
    words = escape(_in_words(title, lines))
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<div>{_axis_switch(panel) if log else ""}{save}</div>'
        f'</figcaption><svg class="plot" id="chart-{panel.key}" role="img" aria-label="{words}"></svg>'
        '<div class="tip" aria-hidden="true" hidden></div>'
        f'<script type="application/json">{content}</script></figure>'
    )


def _in_words(title: str, lines: list[_Line]) -> str:
    """What a chart shows, for those who do not see it: where each line ends."""
    ends = [f"{line.name} {_short(_last(line.curve))}" for line in lines]
    return f"{title} against #grad/n; at the end: {', '.join(ends)}"


def _last(curve: Band) -> float | None:
    return next((float(number) for number in curve.mean[::-1] if math.isfinite(number)), None)


def _axis_switch(panel: Panel) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="{str(kind == "log").lower()}" data-axis="{kind}">{kind}</button>'
        for kind in ("log", "linear")
    )
    return f'<span class="switch" role="group" aria-label="Axis of {escape(panel.title)}">{buttons}</span>'


def _numbers(line: _Line, style: Style, index: int) -> dict[str, object]:
    """A line in the words of page/script.js; seeds that all agree have no band."""
    curve, varies = line.curve, (line.curve.high > line.curve.low).any()
    return {
        "arm": f"arm-{index}",
        "name": line.name,
        "color": _hue(style),
        "dash": _dashes(style),
        "width": line.width,
        "x": _round_for_chart(curve.cost),
        "y": _round_for_chart(curve.mean),
        "low": _round_for_chart(curve.low) if varies else None,
        "high": _round_for_chart(curve.high) if varies else None,
    }


def _round_for_chart(numbers: Iterable[float]) -> list[float | None]:
    """Values rounded to six digits, more than a chart shows; a value that is not finite becomes null, for JSON."""
    return [float(f"{number:.6g}") if math.isfinite(number) else None for number in numbers]


# ---- certificates --------------------------------------------------------------------------------------------

_TERMS = ("progress", "curvature", "noise")


def _certificates(study: Study) -> str:
    entries = shown_certificates(study)
    if not entries:
        return ""
    if not all(is_certified(entry, study) for entry in entries):
        warning = "certificate.json is about other runs than those that are here; sngd certify makes it anew."
        return _section("Certificate", f'<p class="warning">{warning}</p>')
    head = _row("th", ["method", "verdict", "mean ‖∇F‖", "95 % interval", "bound", *_TERMS], ' scope="col"')
    body = [
        f'<tr><th scope="row">{escape(entry["label"])}</th>{_tags("td", _certificate_cells(entry))}</tr>'
        for entry in entries
    ]
    note = (
        "The bound is on E‖∇F(w̄)‖ for an iterate w̄ drawn at random from those that a step was taken from; beside it "
        "the measured mean over the same iterates. Neither says anything of the last iterate. The three terms add up "
        "to the bound, for SGD to its square."
    )
    if any("norm" in entry for entry in entries):
        note += " Where an arm's assumptions name another norm than ‖·‖₂, ‖∇F‖ is in the dual of that norm."
    return _section(
        "Certificate",
        _scroll("Certificate", head, body)
        + f'<p class="note">{note}</p>'
        + "".join(_assumptions(entry, unfolded=len(entries) == 1) for entry in entries),
    )


def _certificate_cells(entry: Entry) -> list[str]:
    measured, terms = entry["measured"], entry["terms"]
    mean = [_short(measured["value"]), f"[{_short(measured['low'])}, {_short(measured['high'])}]"] if measured else None
    numbers = [_short(entry["bound"]), *(_short(value(terms or {}, name)) for name in _TERMS)]
    return [f"<strong>{escape(entry['verdict'])}</strong>", *(mean or ["–", "–"]), *numbers]


def _assumptions(entry: Entry, unfolded: bool) -> str:
    items = "".join(
        f'<tr><th scope="row">{escape(assumption["name"])}</th>'
        f'<td class="text {escape(assumption["status"])}">{escape(assumption["status"])}</td>'
        f'<td class="text">{escape(assumption["detail"])}</td></tr>'
        for assumption in entry["assumptions"]
    )
    head = _row("th", ["assumption", "status", "why"], ' scope="col" class="text"')
    theorem = f"{entry['theorem']}, and what it rests on" if entry["theorem"] else "no theorem"
    title = f"{entry['label']}: {theorem}"
    return (
        f"<details{' open' * unfolded}><summary>{escape(title)}</summary>"
        f"<p>{escape(entry['statement'])}</p>{_scroll('Assumptions of ' + entry['label'], head, [items])}</details>"
    )


def _short(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"


# ---- the search for the learning rate ------------------------------------------------------------------------


def _tuning(study: Study) -> str:
    tuning = study.tuning
    if not tuning:
        return ""
    grid, chosen = sorted(tuning["grid"]), tuning["chosen"]
    losses = {(outcome["label"], outcome["lr"]): outcome["train_loss"] for outcome in tuning["outcomes"]}
    labels = list(dict.fromkeys(outcome["label"] for outcome in tuning["outcomes"]))
    head = _row("th", ["method", *(f"lr {lr:g}" for lr in grid)], ' scope="col"')
    body = []
    for label in labels:
        texts = [_trial(losses, label, lr, chosen.get(label) == lr) for lr in grid]
        body.append(f'<tr><th scope="row">{escape(label)}</th>{_tags("td", texts)}</tr>')
    budget = f" and a budget of {tuning['epochs']:g} #grad/n" if "epochs" in tuning else ""
    intro = "Every method tried the same learning rates, and the lowest training loss was chosen (bold)." + (
        f" The search used seed {tuning['seed']}{budget}."
    )
    edges = "".join(f'<p class="warning">{escape(note)}</p>' for note in edge_notes(tuning))
    return _section("Learning-rate search", f"<p>{intro}</p>{_scroll('Learning-rate search', head, body)}{edges}")


def _trial(losses: dict[tuple[str, float], float | None], label: str, lr: float, chosen: bool) -> str:
    if (label, lr) not in losses:
        return "–"
    loss = losses[label, lr]
    text = "diverged" if loss is None else f"{loss:.4g}"
    return f"<strong>{text}</strong>" if chosen else text


# ---- how it was made -----------------------------------------------------------------------------------------


def _configuration(study: Study) -> str:
    keys = list(dict.fromkeys(key for run in study.runs for key in run.config if key != "label"))
    by_arm = {label: {key: _setting_of_arm(runs, key) for key in keys} for label, runs in study.arms.items()}
    common = {key: texts.pop() for key in keys if len(texts := {arm[key] for arm in by_arm.values()}) == 1}
    content = _pairs(common)
    names = [key for key in keys if all(arm[key] == label for label, arm in by_arm.items())]  # repeat the label
    differing = [key for key in keys if key not in common and key not in names]
    if differing:
        head = _row("th", ["method", *map(_readable, differing)], ' scope="col"')
        body = [
            f'<tr><th scope="row">{escape(label)}</th>{_tags("td", (escape(arm[key]) for key in differing))}</tr>'
            for label, arm in by_arm.items()
        ]
        content += "<h3>What differs</h3>" + _scroll("Settings that differ between methods", head, body)
    return _section("Configuration", content)


def _setting_of_arm(runs: Sequence[Run], key: str) -> str:
    """The setting in all runs of an arm: one value, or several after one another (its seeds)."""
    return ", ".join(dict.fromkeys(_setting(run.config.get(key)) for run in runs))


def _setting(content: object) -> str:
    if content is None or content in ({}, []):
        return "none"
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _readable(key: str) -> str:
    return escape(key.replace("_", " "))


def _environment(study: Study) -> str:
    keys = dict.fromkeys(key for run in study.runs for key in run.environment)
    values = {
        key: ", ".join(dict.fromkeys(_setting(run.environment[key]) for run in study.runs if key in run.environment))
        for key in keys
    }
    return _section("Environment", _pairs(values)) if values else ""


def _pairs(values: dict[str, str]) -> str:
    items = (f"<div><dt>{_readable(key)}</dt><dd>{escape(text)}</dd></div>" for key, text in values.items())
    return f"<dl>{''.join(items)}</dl>"


def _command(study: Study) -> str:
    command = study.comparison["command"] if study.comparison else ""
    whole = f'<pre tabindex="0"><code>{escape(command)}</code></pre>' if command else ""
    single = "\n".join(escape(run.settings.command()) for run in study.runs)
    if single:
        whole += (
            f'<details><summary>The runs, one by one</summary><pre tabindex="0"><code>{single}</code></pre></details>'
        )
    return _section("Command", whole) if whole else ""

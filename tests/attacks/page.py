"""The counts in ``docs/reliability.md``, put there from ``results/attack.json`` by ``python -m attacks.page``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks.target import KINDS, Counts

_ROOT = Path(__file__).parents[2]
PAGE, REPORT = _ROOT / "docs" / "reliability.md", _ROOT / "results" / "attack.json"
_PLACE = re.compile(r"(<!-- counts: (\w+) -->\n).*?(<!-- end -->)", flags=re.S)


def table(counts: Sequence[Counts]) -> str:
    """What was tried, what came of it, and what was found, as a table of Markdown."""
    lines = ["| target | tried | what came of it | found | memory grew by |", "|---|--:|---|---|--:|"]
    for one in counts:
        outcomes = ", ".join(f"{number:,} {name}" for name, number in sorted(one.outcomes.items())) or "–"
        found = ", ".join(f"{one.number(kind):,} {kind}" for kind in KINDS if one.number(kind)) or "0"
        lines.append(f"| {one.target} | {one.tried:,} | {outcomes} | {found} | {one.growth:.0f} MB |")
    return "\n".join(lines)


def filled(page: str, report: Mapping[str, Any]) -> str:
    """``page`` with the counts of ``report`` in its places."""
    counts = [Counts.from_json(one) for one in report["targets"]]
    return _PLACE.sub(lambda place: f"{place[1]}{_part(place[2], counts, report)}\n{place[3]}", page)


def _part(name: str, counts: Sequence[Counts], report: Mapping[str, Any]) -> str:
    if name != "all":
        return table([one for one in counts if one.attack == name])
    tried, found = sum(one.tried for one in counts), sum(one.number(kind) for one in counts for kind in KINDS)
    kills = sum(one.outcomes["kills"] for one in counts)
    seen = report["environment"]
    return (
        f"The last committed run, of {report['date']}: {tried:,} tries, {kills:,} kills among them, found {found:,} "
        f"failures, in {report['minutes']:g} minutes with sngd {seen['sngd']}, torch {seen['torch']} and Python "
        f"{seen['python']}.\n\n    {report['command']}"
    )


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8"), json.loads(REPORT.read_text("utf-8"))), "utf-8")

"""The paper's claims, C1 to C15: which study measures each, and the verdicts computed from its measurements."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from sngd.checks import cut
from sngd.paper.at_once import reproduce_at_once
from sngd.paper.closed_form import conformance, escape, relaxed, variance
from sngd.paper.closed_form.share_done import say
from sngd.paper.reproduce import FIGURES, Figure, Measurements, Provenance, provenance, reproduce, stored
from sngd.paper.trained import judges, large_batches, reduced_variance, spider_sizes, variation
from sngd.paper.trained.alternatives import Alternatives, ReadingMeasured
from sngd.paper.trained.counting import BY_STEP, COUNTINGS, recount
from sngd.paper.trained.experiments import PROFILES
from sngd.paper.trained.runs import FigureMeasured
from sngd.paper.verdicts import NOT_TESTED, Answer, Evidence, ReadingOutcome, Verdict, as_json, as_markdown
from sngd.studies.execution.execution import Execution
from sngd.studies.markdown import markdown_table
from sngd.training.folder_lock import FolderLock, locked, make_folder
from sngd.training.run_folder import replace_file, write_json

_FILES = ("verdicts.json", "verdicts.md")

OnFigure = Callable[[str, int, int], None]  # (name, how many came before it, how many there are)


class Claim(NamedTuple):
    """A claim, its place in the paper, the figures that measure it, and the judge of their measurements, in order.

    If the paper is ``ambiguous`` here, ``alternatives`` measures the same figures under other readings. If the claim
    depends on how SPIDER's gradients are ``counted``, it is judged under each way of counting too.
    """

    name: str
    text: str
    where: str
    figures: tuple[str, ...]
    judge: Callable[..., Evidence]  # takes the figures' measurements; a test checks that their types fit
    ambiguous: bool = False
    counted: bool = False  # not C3: a shorter axis has fewer evaluations; not C4: its plans are stretched over the axis


ALTERNATIVES, COUNTING = "alternatives", "counting"

CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "C1",
            "SNGD with α = 0.1 beats SPIDER-SFO with α = 0.1 and 0.001 on MNIST",
            "§6.1, Figure 2",
            ("fig2",),
            judges.judge_large_rate,
            ambiguous=True,
            counted=True,
        ),
        Claim(
            "C2",
            "with α = 0.001 SPIDER-SFO converges faster than SNGD",
            "§6.1, Figure 2",
            ("fig2",),
            judges.judge_small_rate,
            ambiguous=True,
            counted=True,
        ),
        Claim(
            "C3",
            "with large α SPIDER-SFO's curves vary strongly, SNGD's are smooth",
            "§6, Figures 2 and 3",
            ("variation", "fig3"),
            variation.judge_variation,
        ),
        Claim(
            "C4",
            "S-SNGD v1 and v2 beat SNGD and SPIDER-SFO on ResNet20 and ResNet56",
            "§6.2, Figure 3",
            ("fig3",),
            judges.judge_stages,
            ambiguous=True,
        ),
        Claim(
            "C5",
            "S-SNGD v2 equals SNGD with α = 0.5 until epoch 80 (a check of determinism)",
            "§6.2, Figure 3",
            ("fig3",),
            judges.judge_until_milestone,
            ambiguous=True,
        ),
        Claim(
            "C6",
            "at batch size 4096 S-SNGD beats S-SGD in training loss and test accuracy",
            "§6.2, Figure 4",
            ("fig4",),
            judges.judge_large_batch,
            ambiguous=True,
        ),
        Claim("C7", "the bounds of Theorems 1–4 hold", "§3, §4", ("conformance", "scaling"), conformance.judge),
        Claim("C8", "SNGD leaves saddles and sharp minima faster than SGD", "§1, Figure 1", ("fig1",), escape.judge),
        Claim(
            "C9",
            "SNGD handles (L0, L1)-smooth objectives without clipping",
            "§3, Theorem 2",
            ("relaxed",),
            relaxed.judge,
        ),
        Claim(
            "C10",
            "the variance of SPIDER's estimator grows with α, that of SNGD's does not",
            "§5, eq. 15",
            ("variance",),
            variance.judge,
        ),
        Claim(
            "C11",
            "with other B and M SNGD beats SPIDER-SFO as well",
            "§6.1",
            ("spider-sizes",),
            spider_sizes.judge_sizes,
        ),
        Claim(
            "C12",
            "with large batches that are trained to the end S-SNGD beats S-SGD",
            "§6.2",
            ("large-batches",),
            large_batches.judge_large_batches,
        ),
        Claim(
            "C13",
            "the larger the batch, the larger S-SNGD's advantage over S-SGD, as a ratio of training losses",
            "§6.2",
            ("large-batches",),
            large_batches.judge_growth,
        ),
        Claim(
            "C14",
            "with large batches S-SNGD ends in flatter minima than S-SGD",
            "§6.2",
            ("large-batches",),
            large_batches.judge_sharpness,
        ),
        Claim(
            "C15",
            "SPIDER is the best of the methods that reduce variance",
            "§5",
            ("reduced-variance",),
            reduced_variance.judge_reduced_variance,
        ),
    )
}


def reproduce_claims(
    only: Sequence[str],
    profile: str,
    out: Path,
    command: str = "",
    execution: Execution = Execution(),
    *,
    on_progress: OnFigure = lambda *_: None,
    stored_only: bool = False,
) -> list[Verdict]:
    """Measure what is missing, draw it, and judge: ``out`` gets a folder for each figure, verdicts.json, verdicts.md.

    Runs, and measurements of the same profile, that are already in ``out`` are kept. So an interrupted call can be
    repeated.

    Args:
        only: names such as "C9"; none for all.
        profile: ``quick``, ``small`` or ``paper``.
        out: folder, made if need be.
        command: the command line, kept with what it measured and with the verdicts.
        execution: how runs are done, see ``reproduce``.
        on_progress: told the name of each figure before it is measured or drawn, how many came before it, and how many
            there are.
        stored_only: measure and draw nothing; claims whose figures are not there are not tested.

    Returns:
        The verdicts, in the order of ``CLAIMS``.

    Raises:
        ValueError: unknown claim or profile, another process is working in ``out``, or a measurements.json that is
            none; for runs see ``compare``.
        FileNotFoundError: ``stored_only``, and there is nothing.
        Interrupted: ``execution.should_stop`` said so.
    """
    chosen = _chosen(only)
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; claims have {', '.join(PROFILES)}")
    if stored_only:
        if not any(verdict.evidence for verdict in judge(out, only)):
            raise FileNotFoundError(f"{out}: holds no measurements of these claims")
    else:
        make_folder(out)
    with locked(out, _FILES) as lock:
        if not stored_only:
            _reproduce_each(_figures(chosen), profile, out, command, execution, on_progress, lock)
        return _judged(out, profile, command, only, lock)


def _judged(out: Path, profile: str, command: str, only: Sequence[str], lock: FolderLock) -> list[Verdict]:
    """The verdicts, in verdicts.json and verdicts.md too."""
    verdicts = judge(out, only)
    lock.check()
    _write(out, profile, command, verdicts)
    return verdicts


def _write(out: Path, profile: str, command: str, verdicts: Sequence[Verdict]) -> None:
    made = {figure: found for figure in FIGURES if (found := provenance(out / figure))}
    content = {"command": command, "profile": profile, "verdicts": [as_json(verdict) for verdict in verdicts]}
    write_json(out / "verdicts.json", {**content, "studies": made}, compact=True)
    title = f"# Verdicts on the paper's claims, {profile} profile"
    replace_file(out / "verdicts.md", f"{title}\n\n{as_markdown(verdicts)}\n{_what_was_run(made)}".encode())


def _what_was_run(made: Mapping[str, Provenance]) -> str:
    """The studies with their commands and times; a dash stands for times that an earlier version did not store."""
    times = {figure: about.get("process_seconds") for figure, about in made.items()}
    rows = [
        [f"[{figure}]({figure}/measurements.json)", f"`{about['command']}`", _minutes(times[figure])]
        for figure, about in made.items()
    ]
    total = _minutes(sum(seconds for seconds in times.values() if seconds is not None))
    intro = (
        f"Time is that of all processes, added up: {total} minutes. Of training runs, trial runs too, it is the time "
        "spent in steps; evaluations come on top."
    )
    table = markdown_table(["study", "command", "process minutes"], rows, text_columns=2)
    return f"## What was run\n\n{intro}\n\n{table}\n"


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f}"


def reproduce_all(
    profile: str,
    out: Path,
    command: str = "",
    execution: Execution = Execution(),
    *,
    on_progress: OnFigure = lambda *_: None,
) -> list[Verdict]:
    """Every figure, also those that no claim needs, and then ``reproduce_claims``, whose arguments these are."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; claims have {', '.join(PROFILES)}")
    make_folder(out)
    with locked(out, _FILES) as lock:
        _reproduce_each(list(FIGURES), profile, out, command, execution, on_progress, lock)
        return _judged(out, profile, command, (), lock)


def _reproduce_each(
    figures: Sequence[str],
    profile: str,
    out: Path,
    command: str,
    execution: Execution,
    on_progress: OnFigure,
    lock: FolderLock,
) -> None:
    """First those that are not made of runs, several at once; training runs share the processes themselves."""

    def tell(present: Sequence[str], done: float) -> None:
        lock.check()
        on_progress(", ".join(present), int(done), len(figures))
        say(done % 1)

    def is_missing(figure: str) -> bool:
        return execution.overwrite or stored(figure, out / figure, profile) is None

    apart = [figure for figure in figures if isinstance(FIGURES[figure], Figure) and is_missing(figure)]
    if len(apart) == 1:
        apart = []  # there is nothing to measure beside it
    if apart:
        reproduce_at_once(apart, profile, out, command, execution, on_progress=tell)
    for index, figure in enumerate([figure for figure in figures if figure not in apart], len(apart)):
        on_progress(figure, index, len(figures))
        lock.check()
        reproduce(figure, profile, out / figure, command, execution, reuse=True)


def judge(folder: Path, only: Sequence[str] = ()) -> list[Verdict]:
    """The verdicts that follow from the measurements in ``folder``/FIGURE/measurements.json, and from nothing else.

    Args:
        folder: where ``reproduce_claims`` measured. A claim with measurements missing is not tested.
        only: names such as "C9"; none for all.

    Raises:
        ValueError: unknown claim, or a measurements.json that is none, or that the claim cannot be judged by.
    """
    chosen = _chosen(only)
    measurements = {figure: stored(figure, folder / figure) for figure in _figures(chosen)}
    found = {figure: measured for figure, measured in measurements.items() if measured}
    return [_verdict(claim, folder, found) for claim in chosen]


def _chosen(only: Sequence[str]) -> list[Claim]:
    for name in only:
        if name not in CLAIMS:
            raise ValueError(f"unknown claim {name!r}; must be one of {', '.join(CLAIMS)}")
    return [claim for claim in CLAIMS.values() if not only or claim.name in only]


def _figures(claims: Sequence[Claim]) -> list[str]:
    """Each once, those under other readings last."""
    figures = dict.fromkeys(figure for claim in claims for figure in claim.figures)
    counted, ambiguous = (any(flags) for flags in zip(*((c.counted, c.ambiguous) for c in claims), strict=True))
    return [*figures, *([COUNTING] * counted), *([ALTERNATIVES] * ambiguous)]


def _verdict(claim: Claim, folder: Path, measurements: Mapping[str, Measurements]) -> Verdict:
    verdict = Verdict(claim.name, claim.text, claim.where)
    if not set(claim.figures) <= set(measurements):
        return verdict
    counted = [COUNTING] if claim.counted and COUNTING in measurements else []
    with _judging(claim, folder, [*claim.figures, *counted]):
        evidence = claim.judge(*(measurements[figure] for figure in claim.figures))
        countings = _countings(claim, measurements) if claim.counted else ()
    found = measurements.get(ALTERNATIVES) if claim.ambiguous else None
    with _judging(claim, folder, [ALTERNATIVES]):
        readings = _readings(claim, cast(Alternatives, found)["alternatives"]) if found else ()
    sources = [*claim.figures, *counted, *([ALTERNATIVES] if readings else [])]
    return replace(
        verdict,
        evidence=evidence,
        sources=tuple(f"{figure}/measurements.json" for figure in sources),
        readings=readings,
        countings=countings,
    )


@contextmanager
def _judging(claim: Claim, folder: Path, figures: Sequence[str]) -> Iterator[None]:
    """Turn errors of a judge into a ValueError: measurements that do not fit together can fail anywhere in it."""
    try:
        yield
    except (ValueError, LookupError, TypeError, ArithmeticError, AssertionError) as error:
        files = " or ".join(str(folder / figure / "measurements.json") for figure in figures)
        reason = cut(f"{type(error).__name__}: {error}")
        raise ValueError(f"{files}: {claim.name} cannot be judged by these measurements ({reason})") from error


def _countings(claim: Claim, measurements: Mapping[str, Measurements]) -> tuple[ReadingOutcome, ...]:
    """The claim judged by the same runs under each way to count SPIDER's gradients."""
    figures = [cast(FigureMeasured, measurements[figure]) for figure in claim.figures]
    evidence = {way.name: claim.judge(*(recount(figure, way) for figure in figures)) for way in COUNTINGS}
    if COUNTING in measurements:
        to_the_end = recount(cast(FigureMeasured, measurements[COUNTING]), BY_STEP)
        evidence[f"{BY_STEP.name}, to the axis's end"] = claim.judge(to_the_end)
    return _outcomes(claim, evidence)


def _readings(claim: Claim, alternatives: Mapping[str, ReadingMeasured]) -> tuple[ReadingOutcome, ...]:
    """The claim judged under each reading that changes one of its figures; other figures are the first reading's."""
    base = next(iter(alternatives.values()))["figures"]
    evidence = {}
    for name, reading in alternatives.items():
        figures = {**base, **reading["figures"]}
        if set(claim.figures) <= set(figures) and set(claim.figures) & set(reading["figures"]):
            evidence[name] = claim.judge(*(figures[figure] for figure in claim.figures))
    return _outcomes(claim, evidence)


def _outcomes(claim: Claim, evidence: Mapping[str, Evidence]) -> tuple[ReadingOutcome, ...]:
    """By reading, each compared with the first; nothing of readings that do not test the claim."""
    verdicts = {name: Verdict(claim.name, claim.text, claim.where, found) for name, found in evidence.items()}
    tested = {name: verdict for name, verdict in verdicts.items() if verdict.outcome != NOT_TESTED}
    first: dict[str, Answer | None] = {}
    readings = []
    for name, verdict in tested.items():
        first = first or {q.name: q.answer for q in verdict.required}
        changed = tuple(q.name for q in verdict.required if q.answer != first.get(q.name, q.answer))
        readings.append(ReadingOutcome(name, verdict.outcome, verdict.tally, changed))
    return tuple(readings)

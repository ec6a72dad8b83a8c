"""The paper's figures made of runs: the table, measurements of runs on disk, what follows from them, the pictures."""

import json
import math
from pathlib import Path

import matplotlib
import pytest

from sngd.paper import reproduce as registry
from sngd.paper.reproduce import reproduce
from sngd.paper.trained import (
    alternatives,
    counting,
    large_batches,
    norms,
    pictures,
    reduced_variance,
    runs,
    sensitivity,
    spider_sizes,
    variation,
)
from sngd.paper.trained.experiments import (
    BASE,
    EXPERIMENTS,
    FIG4,
    NORM_EXPERIMENTS,
    READINGS,
    Arm,
    Experiment,
    default_device,
    experiments_by_reading,
    fig2,
    fig3,
    fig3_scaled,
    learning_rates,
    scaled,
)
from sngd.paper.trained.sensitivity import FACTOR, Plateau, plateau
from sngd.studies.execution.execution import Execution
from sngd.studies.pack import pack
from sngd.studies.packed import read_packed
from sngd.studies.runs import all_runs, seconds_spent
from sngd.training.plan_words import build_plan
from studies.fake_runs import write_comparison, write_run

N = 1437  # of the fake runs
TABLES = {
    **EXPERIMENTS,
    "variation": variation.EXPERIMENTS,
    "counting": counting.EXPERIMENTS,
    "spider-sizes": spider_sizes.EXPERIMENTS,
    "large-batches": large_batches.EXPERIMENTS,
    "reduced-variance": reduced_variance.EXPERIMENTS,
}


def fake(figure: str, profile: str, out: Path, diverge: dict[str, int] | None = None) -> Path:
    """The folder of a figure as its runs leave it; ``diverge`` by label, after so many rows, of seed 0."""
    for experiment in TABLES[figure][profile]:
        folder, chosen = out / experiment.name, {}
        for place, arm in enumerate(experiment.arms):
            chosen[arm.label] = lr = arm.lr or experiment.grid[min(place, 2)]
            params = {"anchor_batch_size": 1024, "period": 16} if arm.method == "spider-sfo" else {}
            for seed in experiment.seed_numbers:
                write_run(
                    folder / "runs" / arm.label / f"seed-{seed}",
                    arm.label,
                    seed,
                    lr=lr,
                    floor=0.02 + 0.02 * place,
                    epochs=4,
                    diverge=(diverge or {}).get(arm.label) if seed == experiment.first_seed else None,
                    config={"method": arm.method, "plan": arm.plan, "params": params, "problem": experiment.problem},
                )
        outcomes = [
            {"label": arm.label, "lr": lr, "train_loss": None if lr > 3 else 1 + abs(math.log(lr / chosen[arm.label]))}
            for arm in experiment.arms
            for lr in experiment.grid
        ]
        tuning = {"grid": list(experiment.grid), "seed": 1_000_000, "outcomes": outcomes, "chosen": chosen}
        labels = [arm.label for arm in experiment.arms]
        write_comparison(folder, problem=experiment.problem, methods=labels, tuning=tuning if experiment.grid else None)
    return out


# ---- the table -----------------------------------------------------------------------------------------------


def test_every_profile_can_be_configured():
    for figure, profiles in TABLES.items():
        assert set(profiles) == set(registry.FIGURES[figure].profiles)
        for experiments in profiles.values():
            assert len({experiment.name for experiment in experiments}) == len(experiments)
            for experiment in experiments:
                configs = experiment.configs("cpu")
                assert len({config.label for config in configs}) == len(configs)
                assert all((config.threads, config.curve_samples) == (1, 0) for config in configs)


@pytest.mark.parametrize(("compiled", "precision"), [(False, "float32"), (True, "float32"), (False, "bfloat16")])
def test_runs_are_compiled_and_rounded_as_the_execution_says(monkeypatch, tmp_path, compiled, precision):
    asked = []
    monkeypatch.setattr(runs, "compare", lambda configs, *_, **__: asked.extend(configs))
    runs.run("fig4", "quick", tmp_path, "", Execution(compile=compiled, precision=precision))
    assert {(config.compile, config.precision) for config in asked} == {(compiled, precision)}


@pytest.mark.parametrize(("asked_for", "device"), [(None, "cpu"), ("cuda", "cuda")])
def test_runs_are_where_the_execution_says(monkeypatch, tmp_path, asked_for, device):
    asked = []
    monkeypatch.setattr(runs, "compare", lambda configs, *_, **__: asked.extend(configs))
    runs.run("fig4", "quick", tmp_path, "", Execution(device=asked_for))
    assert {config.device for config in asked} == {device}


@pytest.mark.parametrize(
    ("asked_for", "expected"),
    [
        ({}, [("cuda", "bfloat16", True), ("cpu", "float32", False)]),
        ({"device": "cpu"}, [("cpu", "bfloat16", True), ("cpu", "float32", False)]),
        ({"precision": "float32", "compile": False}, [("cuda", "float32", False), ("cpu", "float32", False)]),
    ],
)
def test_an_experiment_goes_on_as_it_was_begun(monkeypatch, tmp_path, asked_for, expected):
    asked = []
    monkeypatch.setattr(
        runs, "compare", lambda configs, *_, **__: asked.append([(c.device, c.precision, c.compile) for c in configs])
    )
    begun = {"device": "cuda", "precision": "bfloat16", "compile": True}
    write_run(tmp_path / "batch-32" / "runs" / "sngd" / "seed-0", config=begun)
    runs.run("fig2", "quick", tmp_path, "", Execution(**asked_for))
    assert [{*some} for some in asked] == [{one} for one in expected]


def test_the_papers_own_setting():
    assert [(e.problem, e.batch_size, e.epochs, e.weight_decay) for e in EXPERIMENTS["fig2"]["paper"]] == [
        ("mnist-mlp", 32, 20, 0),
        ("mnist-mlp", 128, 20, 0),
    ]
    assert [(e.problem, e.batch_size, e.epochs, e.weight_decay) for e in EXPERIMENTS["fig3"]["paper"]] == [
        ("cifar10-resnet20", 128, 160, 1e-4),
        ("cifar10-resnet56", 128, 160, 1e-4),
    ]
    (large,) = EXPERIMENTS["fig4"]["paper"]
    assert (large.problem, large.batch_size, large.epochs, large.weight_decay) == ("cifar10-resnet20", 4096, 160, 1e-4)
    assert [arm.label for arm in large.arms] == ["S-SGD", "S-SNGD"]
    for experiment in EXPERIMENTS["fig3"]["paper"]:
        assert [arm.label for arm in experiment.arms] == [
            *("SPIDER-SFO, α=0.1", "SPIDER-SFO, α=0.5", "SNGD, α=0.1", "SNGD, α=0.5"),
            *("S-SNGD(v1), α=0.5", "S-SNGD(v2), α=0.5"),
        ]


def test_the_plans_are_the_papers():
    arms = {arm.label: arm for arm in fig3(20).arms}
    steps = 50_000 / 128
    v1, v2 = (build_plan(arms[f"S-SNGD({v}), α=0.5"].plan, 0.5, 160, steps) for v in ("v1", "v2"))
    assert v1 == build_plan("poly:power=1.1", 0.5, 160, steps)
    assert v2 == build_plan("multistep:milestones=80/120", 0.5, 160, steps)


def test_small_figure_2_is_the_papers():
    assert EXPERIMENTS["fig2"]["small"] == EXPERIMENTS["fig2"]["paper"]
    assert {experiment.seed_numbers for experiment in EXPERIMENTS["fig2"]["small"]} == {range(100, 105)}


def test_what_was_written_down_before_it_was_run_has_fresh_seeds():
    later = [*variation.EXPERIMENTS["small"], *EXPERIMENTS["fig3"]["small"], *EXPERIMENTS["fig4"]["small"]]
    sizes = [(100, 20), (100, 20), (200, 30), (100, 20), (100, 5), (100, 8)]  # the last but one: beyond the paper
    assert [(e.first_seed, e.seeds) for e in later] == sizes
    paper = [*EXPERIMENTS["fig3"]["paper"], *EXPERIMENTS["fig4"]["paper"]]
    assert {e.seed_numbers for e in paper} == {range(100, 103)}
    assert large_batches.EXPERIMENTS["paper"][-1:] == EXPERIMENTS["fig4"]["paper"]
    assert {e.first_seed for e in EXPERIMENTS["alternatives"]["paper"]} == {100}
    readings = experiments_by_reading("small").values()
    assert {e.seed_numbers for found in readings for part in found.values() for e in part} == {range(100, 105)}


def test_c3_is_measured_at_evaluations_enough():
    for experiment in variation.EXPERIMENTS["small"]:
        assert 0.75 * experiment.epochs / experiment.eval_every >= variation.EVALUATIONS


def test_what_is_changed_is_a_departure():
    changed = fig3_scaled("cifar10-resnet8:1024", 32, 4)
    assert changed.departures[:3] == (
        "cifar10-resnet8:1024 in place of cifar10-resnet20",
        "batch size 32, not 128",
        "4 #grad/n, not 160, milestones and stages scaled with it",
    )
    assert changed.departures[3:] == fig3(20).departures
    assert scaled(fig2(32)).departures == fig2(32).departures
    assert "weight decay 0, not 0.0001" in scaled(FIG4, weight_decay=0.0).departures
    assert not any("normalized" in phrase for phrase in scaled(FIG4, problem="digits-mlp").departures)
    (alone,) = EXPERIMENTS["fig4"]["medium"]
    assert "one seed; the paper does not say how many it has" in alone.departures
    assert not any("several seeds" in phrase for phrase in alone.departures)


@pytest.mark.parametrize("method", ["sgd", "sngd", "s-sngd", "sngm", "adamw"])
def test_learning_rates_span_three_decades(method):
    rates = learning_rates(method)
    assert rates[-1] / rates[0] == pytest.approx(1000)
    assert len(rates) == 7


@pytest.mark.parametrize("profile", NORM_EXPERIMENTS)
def test_torchs_muon_is_given_hidden_matrices(profile):
    """It refuses to start on a model of convolutions, after hours in which other arms were tuned."""
    for experiment in NORM_EXPERIMENTS[profile]:
        has_matrices = experiment.problem.startswith(("shakespeare-gpt", "mnist-mlp", "digits-mlp"))
        assert has_matrices or "muon-adamw" not in {arm.method for arm in experiment.arms}


def test_alternatives_change_what_they_say():
    readings = experiments_by_reading("small")
    assert list(readings) == list(READINGS)
    problems = {name: {e.problem for part in found.values() for e in part} for name, found in readings.items()}
    assert problems["no augmentation"] == {"cifar10-resnet8:unaugmented", "cifar10-resnet8:10000:unaugmented"}
    assert "mnist-mlp:normalized" in problems["inputs scaled otherwise"]
    (staged,) = readings["poly by step"]["fig3"]
    (arm,) = staged.arms
    assert (arm.label, arm.plan) == ("S-SNGD(v1), α=0.5", f"poly:stages={round(2 * 50_000 / 128)}")
    assert readings["poly by step"]["fig2"] == []
    assert not any(arm.beyond for found in readings[BASE].values() for e in found for arm in e.arms)


# ---- measured ------------------------------------------------------------------------------------------------


def test_measurements_are_those_of_the_runs(tmp_path):
    fake("fig2", "quick", tmp_path)
    measured = runs.measure("fig2", "quick", tmp_path)
    assert (measured["figure"], measured["profile"], measured["device"]) == ("fig2", "quick", "cpu")
    assert measured["environment"]["torch"] == "2.13.0"
    assert runs.machines(measured) == ["cpu, PyTorch 2.13.0"]
    assert list(measured["experiments"]) == ["batch-32", "batch-128"]
    experiment = measured["experiments"]["batch-32"]
    assert (experiment["n"], experiment["batch_size"], experiment["tuning"]) == (N, 32, None)
    assert "10 #grad/n, not 20" in experiment["departures"]
    assert list(experiment["arms"]) == ["SPIDER-SFO, α=0.001", "SPIDER-SFO, α=0.1", "SNGD, α=0.001", "SNGD, α=0.1"]
    arm = experiment["arms"]["SNGD, α=0.1"]
    assert (arm["method"], arm["lr"], arm["seeds"], arm["diverged"]) == ("sngd", 0.1, [0, 1, 2], [])
    rows = (tmp_path / "batch-32/runs/SNGD, α=0.1/seed-1/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    assert arm["curves"]["grads_over_n"] == [row["grads_over_n"] for row in rows]
    assert arm["curves"]["test_accuracy"][1] == [float(f"{row['test_accuracy']:.6g}") for row in rows]
    assert arm["final"]["train_loss"][1] == rows[-1]["train_loss"]
    json.dumps(measured, allow_nan=False)


def test_a_diverged_run_has_no_final_value(tmp_path):
    fake("fig2", "quick", tmp_path, diverge={"SPIDER-SFO, α=0.1": 2})
    arm = runs.measure("fig2", "quick", tmp_path)["experiments"]["batch-32"]["arms"]["SPIDER-SFO, α=0.1"]
    assert arm["diverged"] == [0]
    assert arm["final"]["train_loss"][0] is None
    assert [loss is None for loss in arm["curves"]["train_loss"][0]] == [False, False, True, True, True]
    assert None not in arm["curves"]["train_loss"][1]


def test_tuning_is_kept_and_its_edge_is_named(tmp_path):
    fake("fig4", "quick", tmp_path)
    tuning = runs.measure("fig4", "quick", tmp_path)["experiments"]["large-batch"]["tuning"]
    assert len(tuning["outcomes"]) == 4 * len(FIG4.grid)
    assert tuning["chosen"] == {"S-SGD": 0.01, "S-SNGD": 0.03, "SNGM": 0.1, "S-SGD with momentum": 0.1}
    assert tuning["at_edge"] == ["S-SGD"]


def test_a_run_that_is_absent_is_named(tmp_path):
    fake("fig2", "quick", tmp_path)
    (tmp_path / "batch-32/runs/SNGD, α=0.1/seed-2/config.json").unlink()
    with pytest.raises(ValueError, match=r"batch-32: 2 finished runs of 'SNGD, α=0\.1', must be 3: run it again$"):
        runs.measure("fig2", "quick", tmp_path)


# ---- sensitivity ---------------------------------------------------------------------------------------------


def test_a_plateau_ends_where_the_loss_crosses_its_limit():
    rates = [0.01, 0.1, 1.0, 10.0]
    found = plateau(rates, [100.0, 1.0, 1.0, 10.0], limit=10**0.5)
    assert found.low == pytest.approx(0.1 * 10**-0.25)  # a quarter of the way from 1 to 100, in logarithms
    assert found.high == pytest.approx(10**0.5)
    assert found.decades == pytest.approx(1.75)
    assert not found.clipped
    assert plateau(rates, [None, 2.0, 1.4, None]) == Plateau(0.1, 1.0, False) or FACTOR != 1.5


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 1.2, 1.4], Plateau(0.1, 10.0, True)),
        ([None, 1.0, None], Plateau(1.0, 1.0, False)),
        ([None, None, None], None),
    ],
)
def test_plateaus_that_end_with_the_grid_or_at_divergence(losses, expected):
    assert plateau([0.1, 1.0, 10.0], losses) == expected


def test_no_plateau_where_the_limit_is_out_of_reach():
    assert plateau([0.1, 1.0], [2.0, 3.0], limit=1.0) is None


def test_plateaus_of_measured_runs(tmp_path):
    fake("sensitivity", "quick", tmp_path, diverge={"sgd, α=10": 1})
    measured = sensitivity.measure("quick", tmp_path)
    assert list(measured["plateaus"]) == ["sgd", "sngd", "s-sngd", "sngm", "adamw"]
    sgd, adamw = measured["plateaus"]["sgd"], measured["plateaus"]["adamw"]
    assert sgd["lrs"] == list(learning_rates("sgd"))
    assert sgd["train_loss"][-1][0] is None
    assert len(sgd["decades"]) == 2
    assert sgd["decades"][0] == sgd["sgd_decades"][0] or sgd["train_loss"][0][0] != min(sgd["train_loss"][0])
    assert adamw["sgd_decades"] == [0, 0]  # its fake losses are far above SGD's


# ---- alternatives --------------------------------------------------------------------------------------------


def test_readings_are_measured_and_keep_what_they_leave_alone(tmp_path):
    measured = alternatives.measure("quick", fake("alternatives", "quick", tmp_path))
    readings = measured["alternatives"]
    assert list(readings) == list(READINGS)
    assert set(readings[BASE]["figures"]) == {"fig2", "fig3"}
    assert set(readings["no augmentation"]["figures"]) == {"fig3"}
    base, staged = (readings[name]["figures"]["fig3"]["experiments"]["resnet8"] for name in (BASE, "poly by step"))
    assert list(staged["arms"]) == list(base["arms"])
    assert staged["arms"]["SNGD, α=0.5"] == base["arms"]["SNGD, α=0.5"]
    assert staged["arms"]["S-SNGD(v1), α=0.5"]["plan"] != base["arms"]["S-SNGD(v1), α=0.5"]["plan"]
    json.dumps(measured, allow_nan=False)


def test_every_machine_is_named(tmp_path):
    fake("fig2", "quick", tmp_path)
    for folder in (tmp_path / "batch-128" / "runs").glob("*/*"):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "device": "cuda", "precision": "bfloat16"}))
        made_with = json.loads((folder / "environment.json").read_text())
        (folder / "environment.json").write_text(json.dumps({**made_with, "cuda": "A GPU", "torch": "2.11.0"}))
    measured = runs.measure("fig2", "quick", tmp_path)
    assert runs.machines(measured) == ["cpu, PyTorch 2.13.0", "A GPU, PyTorch 2.11.0, products in bfloat16"]
    del measured["experiments"]["batch-128"]["machines"]  # as earlier measurements
    assert runs.machines(measured) == ["cpu, PyTorch 2.13.0"]


# ---- drawn and registered ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["fig2", "variation", "fig3", "fig4", "sensitivity", "alternatives"])
def test_every_figure_is_drawn(figure, tmp_path):
    fake(figure, "quick", tmp_path)
    measurements = registry.FIGURES[figure].measure("quick", tmp_path)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        files = registry.FIGURES[figure].draw(measurements, tmp_path)
    assert [file.name for file in files] == [f"{figure}.png", f"{figure}.svg"]
    drawn = files[1].read_text("utf-8")
    assert "quick profile, cpu, PyTorch 2.13.0" in drawn
    if figure != "sensitivity":
        assert "Departures from the paper" in drawn


@pytest.mark.slow
def test_a_picture_of_one_seed_says_so(tmp_path):
    fake("fig4", "medium", tmp_path)
    measurements = registry.FIGURES["fig4"].measure("medium", tmp_path)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        drawn = registry.FIGURES["fig4"].draw(measurements, tmp_path)[1].read_text("utf-8")
    assert "medium profile, cpu, PyTorch 2.13.0; one seed<" in drawn
    assert "band" not in drawn


@pytest.mark.parametrize(
    ("profile", "here", "gpus", "device"),
    [
        ("paper", True, None, "cuda"),
        ("paper", False, None, "cpu"),
        ("paper", False, 0.25, "cuda"),  # the cluster has what this machine lacks
        ("paper", True, 0.0, "cpu"),
        ("small", True, None, "cpu"),
    ],
)
def test_the_paper_s_profile_goes_where_gpus_are(monkeypatch, profile, here, gpus, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: here)
    assert default_device(profile, gpus) == device


def test_divergence_and_tuning_are_in_the_legend(tmp_path):
    measured = runs.measure("fig4", "quick", fake("fig4", "quick", tmp_path, diverge={"SNGM": 1}))
    arms = measured["experiments"]["large-batch"]["arms"]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        _, drawn = pictures.draw(measured, tmp_path)
        assert "SNGM * (tuned: α=0.1, 1 of 3 diverged)" in drawn.read_text("utf-8")
        assert "S-SGD (tuned: α=0.01)" in drawn.read_text("utf-8")
        for arm in arms.values():
            arm["beyond"] = True
        _, drawn = pictures.draw(measured, tmp_path)  # nothing is the paper's, so that no star tells it apart
        assert "SNGM (tuned: α=0.1, 1 of 3 diverged)" in drawn.read_text("utf-8")


@pytest.mark.slow
def test_stored_runs_are_measured_anew_and_stored_measurements_suffice(tmp_path):
    fake("fig2", "quick", tmp_path)
    old = {"figure": "fig2", "profile": "quick", "experiments": {}}
    (tmp_path / "measurements.json").write_text(json.dumps({"profile": "quick", "measurements": old}))
    reproduce("fig2", "quick", tmp_path, reuse=True)
    stored = json.loads((tmp_path / "measurements.json").read_text())
    assert stored["measurements"] == runs.measure("fig2", "quick", tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "measurements.json").write_text(json.dumps(stored))
    assert [path.name for path in reproduce("fig2", "quick", alone, reuse=True)] == ["fig2.png", "fig2.svg"]
    assert json.loads((alone / "measurements.json").read_text()) == stored


@pytest.mark.slow
@pytest.mark.parametrize(("figure", "together"), [("fig4", False), ("fig4", True), ("alternatives", True)])
def test_packed_runs_are_measured_as_their_folders(tmp_path, figure, together):
    fake(figure, "quick", tmp_path)
    old = registry.FIGURES[figure].measure("quick", tmp_path)
    pack(tmp_path, together=together)
    assert not list(tmp_path.rglob("config.json"))
    assert len(list(tmp_path.rglob("study.json"))) == (1 if together else len(EXPERIMENTS[figure]["quick"]))
    assert registry.FIGURES[figure].measure("quick", tmp_path) == old

    changed = json.dumps({"profile": "quick", "measurements": old | {"figure": "another"}})
    (tmp_path / "measurements.json").write_text(changed)
    reproduce(figure, "quick", tmp_path, reuse=True)
    stored = json.loads((tmp_path / "measurements.json").read_text())
    assert stored["measurements"] == old  # measured anew from the packed runs
    assert stored["process_seconds"] == seconds_spent(tmp_path) > 0
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.slow
def test_a_figure_whose_studies_are_packed_together_goes_on(tmp_path, monkeypatch):
    arms = (Arm("S-SGD", "s-sgd", 0.5, "poly"),)
    one, other = (Experiment(name, "digits-mlp:400", 64, 1, arms, seeds=1) for name in ("deep/one", "other"))

    def reproduced(*experiments):
        monkeypatch.setitem(EXPERIMENTS, "fig4", {**EXPERIMENTS["fig4"], "quick": experiments})
        reproduce("fig4", "quick", tmp_path, execution=Execution(jobs=1))
        return {run.path: run.rows for run in all_runs(tmp_path)}

    first = reproduced(one)
    pack(tmp_path, together=True, drop_weights=True)
    assert not (tmp_path / "deep").exists()
    both = reproduced(one, other)
    assert len(both) == 2
    assert first.items() <= both.items()  # seconds too: not repeated
    assert list(read_packed(tmp_path).comparisons) == ["deep/one", "other"]
    assert not list(tmp_path.rglob("config.json"))
    assert not (tmp_path / "deep").exists()


@pytest.mark.slow
def test_a_figure_from_nothing(tmp_path, monkeypatch):
    arms = (Arm("S-SGD", "s-sgd", 0.5, "poly"), Arm("S-SNGD", "s-sngd", 0.5, "poly"))
    tiny = Experiment("tiny", "digits-mlp:400", 64, 2, arms, seeds=1, departures=("tiny",))
    monkeypatch.setitem(EXPERIMENTS, "fig4", {**EXPERIMENTS["fig4"], "quick": [tiny]})
    titles = []

    def begin(title, configs):
        titles.append((title, len(configs)))
        return lambda _index, _progress: None

    files = reproduce("fig4", "quick", tmp_path, "sngd reproduce fig4", Execution(jobs=1, begin=begin))
    assert all(file.stat().st_size for file in files)
    assert titles == [("fig4, study 1 of 1, tiny, runs", 2)]
    assert (tmp_path / "tiny" / "report.html").exists()
    stored = json.loads((tmp_path / "measurements.json").read_text())
    assert stored["command"] == "sngd reproduce fig4"
    last = [path.read_text().splitlines()[-1] for path in (tmp_path / "tiny").rglob("metrics.jsonl")]
    assert 0 < stored["process_seconds"] == pytest.approx(sum(json.loads(row)["seconds"] for row in last))
    found = stored["measurements"]["experiments"]["tiny"]
    assert (found["n"], found["departures"]) == (400, ["tiny"])
    assert all(arm["final"]["train_loss"][0] < 2.3 for arm in found["arms"].values())

    config = next((tmp_path / "tiny").rglob("config.json"))
    before = config.stat().st_mtime_ns
    reproduce("fig4", "quick", tmp_path, execution=Execution(jobs=1))
    assert config.stat().st_mtime_ns == before
    reproduce("fig4", "quick", tmp_path, execution=Execution(jobs=1, overwrite=True))
    assert config.stat().st_mtime_ns > before


# ---- steps in other norms ------------------------------------------------------------------------------------


def test_the_tables_of_norms(tmp_path):
    measured = norms.measure("small", fake("norms", "small", tmp_path, diverge={"signum": 2}))
    gpt = measured["experiments"]["shakespeare-gpt"]
    assert list(gpt["arms"]) == [arm.label for arm in EXPERIMENTS["norms"]["small"][0].arms]
    arm = gpt["arms"]["scion"]
    assert norms.best_rate(gpt, arm) == arm["lr"] == gpt["grid"][2]
    assert arm["losses"] == [1 + abs(math.log(lr / arm["lr"])) for lr in gpt["grid"]]
    assert gpt["arms"]["signum"]["train_loss"][0] is None
    text = norms.tables(measured)
    finals = text.partition("## Final loss")[2].partition("## Width")[0]
    assert "| signum | 0.003 | 1 of 3 diverged |" in finals
    widths = text.partition("## Width")[2].partition("## Best")[0].splitlines()
    left, right = (math.log10(gpt["grid"][i] / 0.003) / math.log(arm["losses"][i]) for i in (1, 3))
    decades = math.log(FACTOR) * (right - left)  # log α is linear in log loss on both sides of the best
    assert next(row for row in widths if row.startswith("| scion")).startswith(f"| scion | {decades:.2f} |")
    assert text.rstrip().splitlines()[-1].startswith("| muon | 0.003 | 0.003 | 0.003 | 0.003 | +0 |")


def test_a_first_run_that_diverges_says_neither_n_nor_the_steps(tmp_path):
    measured = norms.measure("quick", fake("norms", "quick", tmp_path, diverge={"sgd-momentum": 1}))
    found = measured["experiments"]["digits-mlp"]
    assert found["arms"]["sgd-momentum"]["train_loss"][0] is None
    assert (found["n"], found["steps"]) == (N, 180)


def test_a_best_rate_at_the_end_of_the_grid_is_in_brackets(tmp_path):
    measured = norms.measure("small", fake("norms", "small", tmp_path))
    widest = measured["experiments"]["width-256"]
    widest["arms"]["adamw"]["losses"] = [3.0] * (len(widest["grid"]) - 1) + [1.0]
    widest["arms"]["scion"]["losses"] = [None] * len(widest["grid"])
    rows = norms.tables(measured).partition("## Best")[2].splitlines()
    assert next(row for row in rows if row.startswith("| adamw")) == "| adamw | 0.001 | 0.001 | 0.001 | (1) | +6 |"
    assert next(row for row in rows if row.startswith("| scion")) == "| scion | 0.003 | 0.003 | 0.003 | – | – |"


@pytest.mark.slow
def test_norms_are_drawn_with_their_tables(tmp_path):
    measured = norms.measure("quick", fake("norms", "quick", tmp_path / "runs"))
    measured["experiments"]["digits-mlp"]["arms"]["scion"]["losses"][0] = 0.0
    pictures_made = norms.draw(measured, tmp_path)
    assert [path.name for path in pictures_made] == ["norms.png", "norms.svg"]
    assert (tmp_path / "norms.md").read_text() == norms.tables(measured)

"""The benchmarks measure what they say, refuse sides that compute different things, and write what others read."""

import json
import re

import pytest
import torch

from sngd.bench import Comparison, Result, bench_step, bench_train, plain_loop, read_results, write_result
from sngd.bench import step as steps
from sngd.bench import train as trains
from sngd.bench.timing import Spread
from sngd.cli.bench import lines
from sngd.problems import Problem

DIGITS = trains.Case("digits-mlp", 32, samples=320, evaluates=True, goal=0.5)


@pytest.fixture(scope="module")
def step():
    return bench_step(cases=["tiny", "10 tensors of 1000"], seconds=0)


@pytest.fixture(scope="module")
def train():
    return bench_train(cases=[DIGITS], methods={}, studies=False, seconds=0)


@pytest.mark.slow
def test_a_step_is_compared_with_the_bare_calls_and_with_clipping(step):
    works = {row.work for row in step.comparisons}
    assert works >= {"SNGD", "SNGD momentum", "SNGD decay", "SNGD capped", "SNGD sign", "SNGD spectral"}
    for work in ("SNGD", "SNGD momentum", "SNGD decay"):
        assert {steps.BARE, steps.CLIP, steps.FUSED} <= {row.against for row in step.comparisons if row.work == work}
    assert all(0 < row.ratio.low <= row.ratio.median <= row.ratio.high for row in step.comparisons)
    assert step.cases["10 tensors of 1000"]["parameters"] == 10_000


def test_the_shapes_are_those_that_the_goals_are_about():
    sizes = {case: (len(shapes), sum(map(torch.Size.numel, map(torch.Size, shapes)))) for case, shapes in
             ((case, steps.SHAPES[case]()) for case in steps.MODELS)}  # fmt: skip
    assert sizes["mlp"] == (4, 79510)
    assert sizes["resnet56"][0] == 167
    assert sizes["shakespeare"] == (27, 804_096)
    assert round(sizes["gpt2"][1] / 1e6) == 124
    assert steps.GOALS.keys() == sizes.keys() - {"shakespeare"}


def test_every_weight_of_a_gpt_takes_a_step_in_the_norm_of_its_kind():
    (group,) = (group for group in steps.groups("shakespeare") if group.name == "SNGD scion")
    moved = steps._moved(group.ours, steps._weights(steps.SHAPES["shakespeare"](), torch.float32, "cpu"))
    assert all(t.abs().max() > 0 for t in moved)
    assert moved[0].abs().unique().numel() == 3  # the embedding is the output's too: two steps by signs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # the compiler's own
def test_a_compiled_step_is_checked_against_the_step():
    if not steps.compiles("cpu"):
        pytest.skip("needs a C++ compiler")
    (group,) = (group for group in steps.groups("mlp") if group.name == "SNGD Kahan compiled")
    steps.check(group, steps.SHAPES["tiny"]())
    assert len(group.goals) == 1


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr("sngd.bench.peers.find_spec", lambda _: None)
    result = bench_step(cases=["tiny"], seconds=0)
    assert result.left_out["optimi"] == "not installed"
    assert not any("optimi" in row.against for row in result.comparisons)


def test_steps_that_compute_something_else_are_refused():
    (group, *_) = steps.groups("tiny")
    wrong = {"half a step": lambda params, lr: steps._bare(params, lr / 2)}
    with pytest.raises(ValueError, match=r"SNGD and half a step must do the same .*, but differ by 0\.5 of a step"):
        steps.check(steps.Group("SNGD", group.ours, wrong), steps.SHAPES["tiny"]())


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_step_that_overwrites_gradients_has_its_own(overwritten):
    def build(params, _lr):
        return lambda: [p.grad.zero_() for p in params]

    group = steps.Group("SNGD", steps._sngd(), {}, {"zeros": build}, overwritten=overwritten)
    arguments = "tiny", group, steps.SHAPES["tiny"](), "cpu", 0, {}
    if overwritten:
        (row,), _ = steps._measured(*arguments)
        assert row.against == "zeros"
        return
    with pytest.raises(ValueError, match="one of SNGD, zeros overwrites the gradients"):
        steps._measured(*arguments)


@pytest.mark.parametrize("group", list(steps.groups("tiny")), ids=lambda group: group.name)
def test_every_group_computes_the_same(group):
    steps.check(group, steps.SHAPES["tiny"]())


@pytest.mark.parametrize("case", ["tiny", "mlp"])
def test_the_gradients_are_longer_than_the_limit_of_clipping(case):
    params = steps._weights(steps.SHAPES[case](), torch.float32, "cpu")
    assert torch.nn.utils.get_total_norm([p.grad for p in params]) > 2 * steps._LIMIT


def test_an_unknown_case_is_refused():
    with pytest.raises(ValueError, match=r"cases must be some of mlp, .*, got huge"):
        bench_step(cases=["huge"])


def test_a_pass_is_compared_with_a_loop(train):
    (row,) = train.comparisons
    assert (row.work, row.against, row.same, row.goal) == ("sngd train", "DataLoader loop", True, 0.5)
    assert train.cases == {"digits-mlp, b=32": {"samples": 320, "evaluates": True, "rounds": 3}}


def test_the_loops_images_lie_in_memory_as_a_user_has_them():
    images = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    problem = Problem(
        lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2)),
        torch.nn.functional.cross_entropy,
        (images, torch.arange(12) % 2),
        prepare=lambda x: x.contiguous(memory_format=torch.channels_last),
    )
    case = trains.Case("images", 4)
    for usual in (True, False):
        sides, seen = trains.Sides(case, problem, usual_layout=usual), []
        sides.model.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].is_contiguous()))
        sides.loop()
        assert seen == [usual] * 3
    trains.check(case, problem)


def test_training_steps_of_methods_are_compared_with_adamw_s():
    rows = trains.compare_methods({"scion": 1.2, "sngd": None}, "digits-mlp", seconds=0)
    assert [(row.case, row.work, row.against, row.same, row.goal) for row in rows] == [
        ("digits-mlp, b=128", "scion", "adamw", False, 1.2),
        ("digits-mlp, b=128", "sngd", "adamw", False, None),
    ]


def test_a_loop_that_computes_something_else_is_refused(monkeypatch):
    def lazy(batches, *rest):
        return honest([batch for i, batch in enumerate(batches) if i != 3], *rest)

    honest = plain_loop.train_pass
    monkeypatch.setattr(plain_loop, "train_pass", lazy)
    with pytest.raises(
        ValueError, match=r"must do the same arithmetic, but after 10 steps their weights differ by 0\.\d+"
    ):
        bench_train(cases=[DIGITS], methods={}, studies=False, seconds=0)


def test_data_that_are_not_there_are_left_out(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "tinyshakespeare").mkdir()
    result = bench_train(cases=[trains.Case("mnist-mlp", 32)], studies=True, data=tmp_path, seconds=0)
    assert result.left_out.keys() == {"mnist-mlp, b=32", "shakespeare-gpt", "8 seeds"}
    assert result.comparisons == []


def test_the_plain_loop_is_a_program(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(64, 1, 28, 28, generator=generator), torch.arange(64) % 10
    torch.save(((x, y), (x, y)), tmp_path / "data.pt")
    threads = torch.get_num_threads()
    plain_loop.main(str(tmp_path / "data.pt"), 0, 1, 16)
    torch.set_num_threads(threads)
    assert 0 <= float(capsys.readouterr().out) <= 1


# --- the file


@pytest.mark.slow
def test_the_file_has_every_comparison_its_verdict_and_the_machine(step, train, tmp_path):
    file = tmp_path / "bench.json"
    write_result(step, file)
    write_result(train, file)
    write_result(step, file)
    found = json.loads(file.read_text())
    assert found.keys() == {"step", "train"}
    for part, result in (("step", step), ("train", train)):
        assert found[part].keys() == {"command", "environment", "cases", "left_out", "comparisons"}
        assert found[part]["environment"]["torch"] == torch.__version__
        assert found[part]["environment"]["threads"] == torch.get_num_threads()
        assert len(found[part]["comparisons"]) == len(result.comparisons)
        for row in found[part]["comparisons"]:
            keys = {"case", "work", "against", "ratio", "seconds", "same"}
            keys |= {"goal", "verdict"} if "goal" in row else set()
            assert row.keys() == keys
            median, low, high = row["ratio"]
            assert low <= median <= high
            assert row["seconds"][0] > 0
    assert read_results(file) == found


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "no JSON", '{"step": {"rows": []}}'])
def test_a_file_of_somebody_else_is_not_written_over(content, step, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        write_result(step, file)
    assert file.read_text() == content


def test_verdicts():
    def verdict(median, goal):
        return Comparison("mlp", "SNGD", "bare", Spread(median, 1, 3), (1, 1), True, goal).verdict

    assert (verdict(2.0, 2.0), verdict(2.1, 2.0), verdict(9.0, None)) == ("met", "missed", "")


# --- the table


@pytest.mark.slow
def test_the_table_fits_70_columns(step, train):
    for result in (step, train):
        assert max(map(len, lines(result))) <= 70


def test_the_table_marks_goals_and_what_computes_something_else():
    rows = [
        Comparison("mlp", "SNGD momentum", "clip + SGD(foreach)", Spread(0.5, 0.4, 0.6), (1, 2), True, 0.75),
        Comparison("mlp", "SNGD", "AdamW(fused)", Spread(10.126, 9, 11), (1, 2), False),
    ]
    sizes = {"tensors": 4, "parameters": 79510, "rounds": {}}
    assert list(lines(Result("step", "cpu", {"mlp": sizes}, rows, {"optimi": "not installed"}))) == [
        "mlp: 4 tensors, 79,510 parameters",
        "momentum   clip + SGD(foreach)            0.50 0.40–0.60 ≤0.75 met",
        "SNGD       ≠ AdamW(fused)                10.13 9.00–11.0",
        "left out: optimi: not installed",
    ]

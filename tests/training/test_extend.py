"""A run that goes on to more epochs ends bit for bit as one that was begun with them."""

import json
import re
from dataclasses import replace

import pytest
from test_resume import Killed, assert_bitwise_equal, outcome

from sngd.training import RunConfig, train
from sngd.training.run_folder import RunFolder

CONFIG = RunConfig("tiny", "sngd", lr=0.05, batch_size=7, epochs=3, weight_decay=0.01, threads=1)
LONGER = replace(CONFIG, epochs=7)


def extend(config, folder, problem):
    return train(config, folder, problem=problem, resume=True, extend=True)


def same_but_for_the_plan(one, other):
    """The scheduler's own plan is the shorter one, whose only stage has the same learning rate."""
    for checkpoint, _ in (one, other):
        if "scheduler" in checkpoint["loop"]:
            del checkpoint["loop"]["scheduler"]["plan"]
    assert_bitwise_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"output": "random"},
        {"output": "random", "epochs": 2.5, "eval_every": 0.4},  # its end is no evaluation of the longer run
        {"method": "spider-sfo"},
        {"method": "natasha2", "weight_decay": 0.0, "output": "random"},
        {"method": "adamw", "track": "smoothness,noise"},
        {"sampling": "independent", "eval_every": 10.0},
        {"curve_samples": 9},
    ],
    ids=str,
)
def test_it_ends_as_one_begun_with_so_many(tmp_path, tiny, changes):
    short = replace(CONFIG, **changes)
    long = replace(short, epochs=7)
    train(short, tmp_path / "extended", problem=tiny)
    extend(long, tmp_path / "extended", tiny)
    train(long, tmp_path / "whole", problem=tiny)
    same_but_for_the_plan(outcome(tmp_path / "extended"), outcome(tmp_path / "whole"))
    stored = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("extended", "whole")]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("fatal", ["save_checkpoint", "write_config", "truncate"])
def test_killed_while_it_is_extended_nothing_is_lost(tmp_path, tiny, monkeypatch, fatal):
    train(CONFIG, tmp_path / "extended", problem=tiny)
    with monkeypatch.context() as patch:

        def die(*_):
            raise Killed

        patch.setattr(RunFolder, fatal, die)
        with pytest.raises(Killed):
            extend(LONGER, tmp_path / "extended", tiny)
    extend(LONGER, tmp_path / "extended", tiny)
    train(LONGER, tmp_path / "whole", problem=tiny)
    same_but_for_the_plan(outcome(tmp_path / "extended"), outcome(tmp_path / "whole"))


def test_one_that_was_interrupted_can_be_extended_too(tmp_path, tiny):
    from sngd.training import Interrupted

    steps = iter(range(10))
    with pytest.raises(Interrupted):
        train(CONFIG, tmp_path / "extended", problem=tiny, should_stop=lambda: next(steps) == 9)
    extend(LONGER, tmp_path / "extended", tiny)
    train(LONGER, tmp_path / "whole", problem=tiny)
    same_but_for_the_plan(outcome(tmp_path / "extended"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"plan": "poly"},
            "cannot go on to 7 epochs: it was begun with 3 epochs, and its plan 'poly' is laid over all",
        ),
        ({"method": "sgd", "lr": 1e30}, "cannot go on to 7 epochs: it has diverged: more epochs would go on from a l"),
    ],
)
def test_why_not(tmp_path, tiny, changes, message):
    config = replace(CONFIG, **changes)
    train(config, tmp_path, problem=tiny)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=re.escape(message)):
        extend(replace(config, epochs=7), tmp_path, tiny)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_were_not_kept(tmp_path, tiny):
    train(CONFIG, tmp_path, problem=tiny)
    (tmp_path / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match="cannot go on to 7 epochs: it has ended, and its weights were not kept"):
        extend(LONGER, tmp_path, tiny)


def test_fewer_epochs_and_studies_are_refused_as_other_settings(tmp_path, tiny):
    train(CONFIG, tmp_path, problem=tiny)
    for epochs, may_extend in ((2.0, True), (7.0, False)):
        with pytest.raises(ValueError, match="cannot resume with other settings: epochs is 3, not "):
            train(replace(CONFIG, epochs=epochs), tmp_path, problem=tiny, resume=True, extend=may_extend)

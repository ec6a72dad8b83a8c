"""The sharpness where runs end, from their weights."""

from dataclasses import replace

import pytest

from sngd.paper.trained import runs
from sngd.paper.trained.large_batches import EXPERIMENTS
from sngd.paper.trained.sharpness import measure_sharpness, stored_sharpness
from sngd.studies.diagnosis import diagnose
from sngd.studies.execution.execution import Execution


@pytest.mark.slow
def test_it_is_that_of_the_last_weights_and_runs_without_weights_are_left_out(tmp_path):
    (first, *_) = EXPERIMENTS["quick"]
    arms = tuple(replace(arm, lr=0.1) for arm in first.arms[:2])
    experiment = replace(first, name="one", epochs=0.5, eval_every=0.5, arms=arms, grid=())
    said = []
    execution = Execution(jobs=1, on_warning=said.append)
    runs.run("large-batches", "quick", tmp_path, "", execution, table={"quick": [experiment]})
    gone, *others = sorted((tmp_path / "one" / "runs").glob("*/seed-*"))
    (gone / "checkpoint.pt").unlink()

    measure_sharpness([experiment], tmp_path, execution)
    found = stored_sharpness(tmp_path)["one"]
    assert sum(map(len, found.values())) == len(others) == 3
    assert said == [f"the sharpness of 1 of 4 runs is not measured: no weights, as in {gone}"]
    label, seed = others[-1].parent.name, others[-1].name.removeprefix("seed-")
    (own,) = (values[seed] for name, values in found.items() if name == label.partition("~")[0])
    assert own == pytest.approx(diagnose(str(others[-1])).curvature.sharpness, rel=0.03)

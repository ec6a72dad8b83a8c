import pytest

from sngd.studies.compare import compare, parse_arms
from sngd.studies.ray_runs import RayCluster
from sngd.training import RunConfig


@pytest.mark.parametrize(("ray", "met"), [(None, True), (RayCluster(gpus=0.5), False)])
def test_a_device_is_looked_for_on_the_machine_that_runs(monkeypatch, tmp_path, ray, met):
    arms = parse_arms("sngd,sgd", RunConfig("digits-mlp", "", device="cuda:77"))
    monkeypatch.setattr("sngd.studies.compare.run_all", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(ValueError if met else pytest.fail.Exception, match="is not there" if met else "started"):
        compare(arms, [0], tmp_path, ray=ray)

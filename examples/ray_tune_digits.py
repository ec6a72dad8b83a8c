"""Ray Tune chooses SNGD's learning rate on handwritten digits, two trials at a time.

pip install 'ray[tune]', then: python examples/ray_tune_digits.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from sngd.training import RunConfig, train


def trial(settings: dict[str, Any]) -> None:
    config = RunConfig("digits-mlp", "sngd", lr=settings["lr"], epochs=5, threads=1)
    with TemporaryDirectory() as folder:
        row = train(config, Path(folder))
    tune.report({"train_loss": row["train_loss"], "test_accuracy": row["test_accuracy"]})


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            trial,
            param_space={"lr": tune.grid_search([0.003, 0.03, 0.3])},
            tune_config=tune.TuneConfig(metric="train_loss", mode="min"),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        best = tuner.fit().get_best_result()
    assert best.config is not None
    assert best.metrics is not None
    print(f"loss {best.metrics['train_loss']:.4f} with lr {best.config['lr']:g}")

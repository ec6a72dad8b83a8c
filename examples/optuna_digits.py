"""Optuna chooses the learning rate and the momentum of normalized momentum on handwritten digits.

pip install optuna, then: python examples/optuna_digits.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import optuna

from sngd.training import RunConfig, train


def objective(trial: optuna.Trial) -> float:
    """The training loss after five epochs; a rate at which training diverges is as bad as can be."""
    lr = trial.suggest_float("lr", 1e-3, 10.0, log=True)
    momentum = trial.suggest_float("momentum", 0.5, 0.95)
    config = RunConfig("digits-mlp", "nsgd-momentum", lr=lr, params={"momentum": momentum}, epochs=5, threads=1)
    with TemporaryDirectory() as folder:
        loss = train(config, Path(folder))["train_loss"]
    return float("inf") if loss is None else loss


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=12)
    print(f"loss {study.best_value:.4f} with {', '.join(f'{k} {v:.3g}' for k, v in study.best_params.items())}")

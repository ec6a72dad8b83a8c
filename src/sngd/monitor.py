"""Log what an optimizer does, its gradient norm above all, where Lightning and Hugging Face's Trainer log."""

from typing import Any

from torch.optim import Optimizer

_OWN = ("last_norm", "skipped_steps")  # of an SNGD


def scalars(optimizer: Any) -> dict[str, float]:
    """The numbers of an optimizer's last step, under names that loggers group.

    Args:
        optimizer: any of torch's, or a wrapper with an ``optimizer`` inside, such as Accelerate's.

    Returns:
        ``optimizer/lr``, or ``optimizer/lr/0``, … with several param groups. Of an ``SNGD``, also inside a wrapper,
        ``optimizer/last_norm``, the (dual) norm of the gradient, and ``optimizer/skipped_steps``, the steps so far that
        changed nothing. Reading them makes the host wait for a GPU.
    """
    groups = optimizer.param_groups
    rates = {"optimizer/lr": groups[0]["lr"]}
    if len(groups) > 1:
        rates = {f"optimizer/lr/{index}": group["lr"] for index, group in enumerate(groups)}
    inner = optimizer
    while not hasattr(inner, "last_norm") and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    counts = {f"optimizer/{name}": getattr(inner, name) for name in _OWN if hasattr(inner, name)}
    return {name: float(number) for name, number in (rates | counts).items()}  # of a tensor, its item


def lightning_callback() -> Any:
    """A callback for ``lightning.Trainer(callbacks=[…])``: ``scalars`` of its optimizers go to its loggers.

    They are logged every ``log_every_n_steps`` steps of the optimizer, micro-batches not counted. With several
    optimizers the names begin with 0/, 1/, ….

    Raises:
        ImportError: the package lightning is not installed.
    """
    from lightning.pytorch import Callback

    class OptimizerMonitor(Callback):
        _logged = 0  # the last step that was

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            step = trainer.global_step
            if step == self._logged or step % trainer.log_every_n_steps:
                return
            self._logged = step
            several = len(trainer.optimizers) > 1
            found = {
                f"{index}/{name}" if several else name: number
                for index, optimizer in enumerate(trainer.optimizers)
                for name, number in scalars(optimizer).items()
            }
            for logger in trainer.loggers:
                logger.log_metrics(found, step=step)

    return OptimizerMonitor()


def watch_trainer(trainer: Any) -> None:
    """Let a ``transformers.Trainer`` log ``scalars`` of its optimizer with everything that it logs.

    A callback that adds them is put before the Trainer's other ones, so that all of these report them:
    TensorBoard, Weights & Biases, MLflow, the progress bar, and ``trainer_state.json``.

    Raises:
        ImportError: the package transformers is not installed.
    """
    from transformers import TrainerCallback

    class OptimizerMonitor(TrainerCallback):
        def on_log(self, _args: Any, state: Any, _control: Any, **given: Any) -> None:
            logs, optimizer = given.get("logs"), given.get("optimizer")
            if logs is None or not isinstance(optimizer, Optimizer) or "loss" not in logs:
                return  # an evaluation's, or before the first step
            found = scalars(optimizer)
            logs.update(found)
            state.log_history[-1].update(found)

    trainer.callback_handler.callbacks.insert(0, OptimizerMonitor())

"""One run, or replicas of it trained as one: the registry of methods, the engine, the run folder."""

from sngd.training.config import RunConfig
from sngd.training.engine import Interrupted, train
from sngd.training.methods import METHODS, Method
from sngd.training.run_state import Progress

__all__ = ["METHODS", "Interrupted", "Method", "Progress", "RunConfig", "train"]

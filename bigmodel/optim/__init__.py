"""Optimizers, schedules and parametrizations as functions of traced hyperparameters: a sweep over them compiles once.

`fields` declares the config, `optimizers` has the optimizers and `update` is one step.
"""

from bigmodel.optim import optimizers, parametrization, patterns, schedules
from bigmodel.optim.averages import averages_itself, evaluated, evaluated_in_training, is_averaged
from bigmodel.optim.checks import check, reset_without_effect
from bigmodel.optim.definitions import Optimizer, Step, optimizer
from bigmodel.optim.frozen import merged, trainable
from bigmodel.optim.lookup import by_name, declared, defaults
from bigmodel.optim.optimizers import NAMES, UPDATE_SCALES
from bigmodel.optim.schedules import SCHEDULES
from bigmodel.optim.settings import How, hyperparameters
from bigmodel.optim.state import State, initial_state
from bigmodel.optim.traced import Hyperparameters
from bigmodel.optim.updates import MOST_SKIPPED, update

__all__ = [
  "MOST_SKIPPED",
  "NAMES",
  "SCHEDULES",
  "UPDATE_SCALES",
  "How",
  "Hyperparameters",
  "Optimizer",
  "State",
  "Step",
  "averages_itself",
  "by_name",
  "check",
  "declared",
  "defaults",
  "evaluated",
  "evaluated_in_training",
  "hyperparameters",
  "initial_state",
  "is_averaged",
  "merged",
  "optimizer",
  "optimizers",
  "parametrization",
  "patterns",
  "reset_without_effect",
  "schedules",
  "trainable",
  "update",
]

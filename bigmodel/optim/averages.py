"""The parameters that a run is evaluated with: those it trains, or an average of them."""

import jax
import jax.numpy as jnp

from bigmodel.config import Config
from bigmodel.optim import lookup
from bigmodel.optim.frozen import merged, trainable
from bigmodel.optim.settings import How
from bigmodel.optim.state import State
from bigmodel.optim.traced import Hyperparameters, Number
from bigmodel.types import Params


def is_averaged(config: Config) -> bool:
  """Whether a run is evaluated with an average of its parameters, which needs no decay of the learning rate."""
  return averages_itself(config) or config.optim.average > 0


def averages_itself(config: Config) -> bool:
  """Whether the optimizer defines an average that follows from `z` in its state (schedule_free)."""
  return lookup.by_name(config.optim.name).averages


def evaluated(config: Config, params: Params, state: State) -> Params:
  """The parameters that a run is evaluated with: their average, where the optimizer or the config asks for one."""
  optim, frozen = config.optim, tuple(config.optim.frozen)
  if averages_itself(config):
    return _average_of_optimizer(frozen, optim.beta1, params, state)
  return _average(frozen, optim.average, params, state) if optim.average else params


def evaluated_in_training(how: How, h: Hyperparameters, params: Params, state: State) -> Params:
  """As `evaluated`, with traced hyperparameters, such as those of a member of a pack."""
  if how.optimizer.averages:
    return _average_of_optimizer(how.frozen, h.beta1, params, state)
  return _average(how.frozen, h.average, params, state) if how.averages else params


def _average_of_optimizer(frozen: tuple[str, ...], beta1: Number, params: Params, state: State) -> Params:
  """The average x of schedule-free optimizers (Defazio et al. 2024), which train y = (1 - beta1) z + beta1 x."""
  z = trainable(state.own.z, frozen)
  return merged(params, jax.tree.map(lambda y, z: (y - (1 - beta1) * z) / beta1, trainable(params, frozen), z))


def _average(frozen: tuple[str, ...], decay: Number, params: Params, state: State) -> Params:
  """The exponential average. It does not exist before the first step, nor for frozen parameters."""
  share = 1 - decay ** jnp.maximum(state.steps, 1).astype(jnp.float32)
  average = trainable(state.average, frozen)
  debiased = jax.tree.map(lambda a, p: jnp.where(state.steps > 0, a / share, p), average, trainable(params, frozen))
  return merged(params, debiased)

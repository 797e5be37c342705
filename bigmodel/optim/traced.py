"""The numbers that a training step takes as traced inputs: runs that differ only in these share one program."""

from collections.abc import Mapping
from typing import NamedTuple

import jax

Number = jax.Array | float  # a scalar; traced in a training step


class Hyperparameters(NamedTuple):
  """Scalars that change no shape. In a pack each has an axis of members."""

  lr: Number  # the peak learning rate
  warmup: Number  # steps
  decay: Number  # steps
  steps: Number  # the horizon
  first: Number  # step of the run at which this schedule begins
  final: Number
  beta1: Number
  beta2: Number
  epsilon: Number
  momentum: Number
  numbers: Mapping[str, Number]  # those that optimizers declare in their files, by name
  weight_decay: Number
  rates: tuple[Number, ...]  # one for each rule of `config.optim.rates`
  decays: tuple[Number, ...]  # one for each rule of `config.optim.decays`
  clip: Number
  skip_above: Number
  average: Number
  seed: jax.Array | int  # of dropout, and of what a task draws
  task: Mapping[str, Number]  # the traced numbers of the task's loss, by name
  rate: Number = 0.0  # the learning rate of this step

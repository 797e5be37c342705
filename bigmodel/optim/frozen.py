"""Parameters that keep their initial values (`optim.frozen`): trees without them, and whole trees again."""

import re
from collections.abc import Callable, Mapping

import jax

from bigmodel.types import Params


def trainable(params: Params, frozen: tuple[str, ...], prefix: str = "") -> Params:
  """The parameters (or their gradients) whose dotted names match none of the patterns.

  `params` are nested dictionaries; `prefix` is the dotted name of the outermost one.
  """
  if not frozen:
    return params
  kept = {}
  for key, value in params.items():
    name = f"{prefix}{key}"
    if isinstance(value, Mapping):
      part = trainable(value, frozen, f"{name}.")
      kept |= {key: part} if part else {}
    elif not any(re.search(pattern, name) for pattern in frozen):
      kept[key] = value
  return kept


def merged(params: Params, part: Params) -> Params:
  """All parameters, those of `part` (from `trainable`) with the values that they have there."""
  if not isinstance(params, Mapping):
    return part
  return {key: merged(value, part[key]) if key in part else value for key, value in params.items()}


def of_trainable(loss: Callable[[Params], jax.Array], params: Params) -> Callable[[Params], jax.Array]:
  """`loss`, a function of all parameters, as a function of those that are not frozen."""
  return lambda part: loss(merged(params, part))

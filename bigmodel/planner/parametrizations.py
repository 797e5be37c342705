"""The coordinate check of one config under every parametrization that its optimizer accepts."""

import dataclasses
from collections.abc import Callable, Sequence

from bigmodel import optim
from bigmodel.config import Config
from bigmodel.errors import UserError
from bigmodel.optim.parametrization import PARAMETRIZATIONS, multiples
from bigmodel.planner import coordinates

AXES = ("width", "layers")
FACTORS = (1, 2, 4)  # sizes of each axis, in units of the config's
STEPS = 5


@dataclasses.dataclass(frozen=True)
class Measured:
  """The coordinate check of one axis of one parametrization."""

  parametrization: str
  axis: str
  sizes: tuple[int, ...]
  check: coordinates.Check


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The checks that were made, and why the other parametrizations were refused."""

  measured: list[Measured]
  refused: dict[str, str]


def compare(config: Config, resolve: Callable[[Config], Config]) -> Comparison:
  """Measures how much steps move activations as width and depth grow, under each parametrization.

  `resolve` checks a config and returns it with everything derived filled in. All configs are checked before anything
  is measured. Raises `UserError` if the config's model has no width or layers, or if the config's own parametrization
  is refused.
  """
  for name in AXES:
    if name not in config.model:
      raise UserError(f"--coordinate-check: a {config.model.family} has no model.{name}")
  sizes = {axis: tuple(config.model[axis] * factor for factor in FACTORS) for axis in AXES}
  models, refused = {}, {}
  for parametrization in PARAMETRIZATIONS:
    try:
      by_axis = {
        axis: [resolve(_resized(config, parametrization, axis, size)) for size in sizes[axis]] for axis in AXES
      }
      for model in (*by_axis["width"], *by_axis["layers"]):
        multiples(model)
    except UserError as error:
      if parametrization in ("standard", config.optim.parametrization):
        raise
      refused[parametrization] = str(error)
    else:
      models[parametrization] = by_axis
  measured = [
    Measured(parametrization, axis, sizes[axis], _check(by_axis[axis], sizes[axis]))
    for parametrization, by_axis in models.items()
    for axis in AXES
  ]
  return Comparison(measured, refused)


def _check(configs: Sequence[Config], sizes: Sequence[int]) -> coordinates.Check:
  return coordinates.check(configs, sizes, steps=STEPS, seeds=1)


def _resized(config: Config, parametrization: str, axis: str, size: int) -> Config:
  """The config at another size, with a constant learning rate and no weight decay, which would hide the steps."""
  base = config.optim.base or (f"model.width={config.model.width}", f"model.layers={config.model.layers}")
  resized = config.copy_and_resolve_references()
  resized.model[axis] = size
  resized.optim.update(schedule="constant", weight_decay=0.0)
  resized.optim.update({name: optim.defaults()[name] for name in ("final", "decay", "decays", "independent_decay")})
  resized.optim.parametrization, resized.optim.base = parametrization, () if parametrization == "standard" else base
  resized.train.tokens, resized.train.steps = 0, STEPS
  return resized

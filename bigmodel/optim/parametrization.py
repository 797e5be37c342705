"""Settings that carry over between sizes: what multiplies a parameter's initial values, learning rate, decay, epsilon.

The multiples follow from the shapes of the model and of the same model at a base size (`optim.base`), where all are
1. An axis that is longer than the base's is infinite: a matrix whose input axis is so has its rate divided by the
ratio, one that leads from it to an axis that stays has its initial values divided by the root of it as well
(Yang et al. 2022, tables 3 and 8). Where a table of embeddings gives the logits, the last norm's scale is divided
by the ratio. `completep` also divides what a block adds to the stream by the ratio of the layers (Dey et al. 2025).
A multiplier of activations is never needed: scaling a parameter's initial values and its rate by as much is the same.
Adam's epsilon follows the size of gradients, which fall with the axis that a parameter leads to, and with the layers.
"""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from bigmodel import models
from bigmodel.config import Config, digest, flatten, override, parse_value, require
from bigmodel.optim import names, optimizers
from bigmodel.optim.optimizers import Step

PARAMETRIZATIONS = ("standard", "mup", "completep")
SHRINKING = ("decoder", "tabular")  # families whose tables begin with values of the size of width^-1/2
# Where blocks end in a norm, those of the stack that gives the logits.
POST_NORM = {"decoder": "blocks.feed_forward_norm.", "transformer": "decoder_blocks.feed_forward_norm."}
TABLE = re.compile(r"^(embedding|positions|output|weight|bias|token)$")
LAST_NORM = {"decoder": "final_norm.", "bert": "transform_norm."}  # before a table that gives the logits
BRANCH_ENDS = re.compile(r"blocks\.(attention|cross|feed_forward|experts)\.(out|down)(_bias)?$")
# What enters the scores in place of a query, and is smaller by the root of the ratio where heads are larger.
QUERY, QUERY_NORM = re.compile(r"\bquery(_bias)?$"), re.compile(r"\bquery_norm\.scale$")
DISTANCE_QUERY = re.compile(r"\battention\.[uv]$")  # of relative positions; added behind the norm of queries
Number = float | tuple[float, ...]  # of all layers, or of each
Multiples = tuple[tuple[str, Number, Number, Number, Number], ...]  # (name, init, rate, decay, epsilon), not all 1


def resolve(config: Config, raw: Config, facts: dict[str, Any]) -> None:
  """Fills `config.optim.base` up with the fields that follow from it, in place; `raw` is the config before."""
  if config.optim.parametrization == "standard":
    return
  base, given = raw.model.copy_and_resolve_references(), set()
  for text in raw.optim.base:
    name, _, value = text.removeprefix("model.").partition("=")
    override(base, name, parse_value(value))
    given.add(name)
  models.resolve(base, facts)
  changed = {n: v for n, v in flatten(base).items() if n in given or v != flatten(config.model)[n]}
  config.optim.base = tuple(f"model.{name}={value!r}" for name, value in sorted(changed.items()))


def check(config: Config) -> None:
  optim, model = config.optim, config.model
  if optim.parametrization == "standard":
    return
  optimizer = optimizers.known()[optim.name]
  accepted = [name for name, other in optimizers.known().items() if transfers(other)]
  require(
    transfers(optimizer),
    f"config.optim.parametrization: {optim.parametrization} has no rule for {optim.name}, whose steps it cannot scale"
    f" with the model; use 'standard', or one of {', '.join(accepted)}",
  )
  require(bool(optim.base), "config.optim.base: empty; say a base size, such as ('model.width=64', 'model.layers=2')")
  for text in optim.base:
    known = re.fullmatch(r"model\.(\w+)=.+", text)
    require(known is not None and known[1] in model, f"config.optim.base: {text!r} is not model.FIELD=VALUE")
  require(
    optim.parametrization != "completep" or not _post_norm(config),
    "config.optim.parametrization: completep is for blocks with their norms first; mup is for these, too",
  )


def transfers(optimizer: optimizers.Optimizer) -> bool:
  """Whether rates of the optimizer can be derived for other sizes, so that mup and completep accept it.

  Not for PARAMETER steps: they follow initial values, which shrink with the width already, and the values they become.
  """
  return not optimizer.own_rate and optimizer.step in (Step.ENTRY, Step.GRADIENT, Step.SPECTRAL)


def _post_norm(config: Config) -> bool:
  """Do blocks end in a norm, so that more of them don't make the stream larger?"""
  return config.model.family in ("transformer", "bert") or not config.model.get("norm_first", True)


def last_norm_of(config: Config) -> str:
  """How the parameters begin of the norm before the logits that is divided as the width grows."""
  family = config.model.family
  return (POST_NORM if _post_norm(config) and family in POST_NORM else LAST_NORM).get(family, "\0")


def multiples(config: Config) -> Multiples:
  """Of a resolved config."""
  if config.optim.parametrization == "standard":
    return ()
  base = config.copy_and_resolve_references()
  for text in config.optim.base:
    name, _, value = text.removeprefix("model.").partition("=")
    override(base.model, name, parse_value(value))
  key = digest({name: x for name, x in flatten(config).items() if name.startswith(("model.", "data.", "optim."))})
  if key not in _KNOWN:
    _KNOWN[key] = _compared(config, base)
  return _KNOWN[key]


_KNOWN: dict[str, Multiples] = {}  # of each config: runs ask for theirs many times


def _compared(config: Config, base: Config) -> Multiples:
  """The multiples of a model beside its base."""
  optimizer = optimizers.known(config.optim.update_scale)[config.optim.name]
  own, its = _shapes(config), _shapes(base)
  require(
    own.keys() == its.keys(),
    f"config.optim.base: it has other parameters ({', '.join(sorted(own.keys() ^ its.keys()))}); layers that are no"
    " stack of blocks can't differ",
  )
  depth, family = config.optim.parametrization == "completep", config.model.family
  last_norm, of_stack = last_norm_of(config), _post_norm(config) and family in POST_NORM
  scores = math.sqrt(base.model.head_size / config.model.head_size) if "head_size" in config.model else 1.0
  normed = any("query_norm" in name for name in own)
  found = []
  for name, (path, x) in own.items():
    lead = names.leading(path)
    shape, ratio = x.shape[lead:], [a / b for a, b in zip(x.shape, its[name][1].shape, strict=True)]
    into, out = (ratio[-2] if len(shape) > 1 else 1.0), (ratio[-1] if shape else 1.0)
    init, factor = 1.0, 1.0  # `factor`: multiplies what the parameter does; initial values and rate follow from it
    if family in SHRINKING and TABLE.search(name) and into == 1:
      init *= math.sqrt(out)
    if into != 1 and out == 1:
      init /= math.sqrt(into)
    if family == "transformer" and name == "embedding":  # whose rows are multiplied by the root of the width
      init, factor = math.sqrt(out), 1 / math.sqrt(out)
    last = name.startswith(last_norm)
    if last:
      factor /= math.sqrt(out) if family == "transformer" else out
    if depth and BRANCH_ENDS.search(name):
      factor /= ratio[0]
      init *= math.sqrt(ratio[0]) if not name.endswith("_bias") else 1.0  # their own (2 L)^-1/2
    if (QUERY_NORM if normed else QUERY).search(name) or DISTANCE_QUERY.search(name):
      factor *= scores
    rate = _rate(optimizer, names.is_hidden(path, x), into, out, shape, its[name][1].shape[lead:])
    layers = ratio[0] if depth and "blocks." in name else 1.0  # gradients of a block shrink as what it adds does
    if optimizer.step is Step.GRADIENT:
      rate *= layers
    decays = names.is_matrix(path, x) and not config.optim.independent_decay
    gradient = 1 / out / layers
    numbers = functools.partial(_numbers, init, rate, optimizer.step is Step.GRADIENT, decays, gradient)
    row: tuple[Any, ...] = numbers(factor)
    if last and of_stack and factor != 1:  # of a stack's norms, the last layer's
      row = tuple(zip(*([numbers(1.0)] * (x.shape[0] - 1)), row, strict=True))
    if row != (1.0, 1.0, 1.0, 1.0):
      found.append((name, *row))
  return tuple(found)


def _numbers(
  init: float, rate: float, linear: bool, decays: bool, gradient: float, factor: float
) -> tuple[float, float, float, float]:
  """(initial values, rate, decay, epsilon) of a parameter that does `factor` times as much as its values say."""
  own_rate = rate * (factor**2 if linear else factor)
  return init * factor, own_rate, 1 / own_rate if decays else 1.0, gradient / factor


def _rate(
  optimizer: optimizers.Optimizer,
  hidden: bool,
  into: float,
  out: float,
  shape: tuple[int, ...],
  base_shape: tuple[int, ...],
) -> float:
  """What the rate of a parameter is multiplied by as its axes grow."""
  if optimizer.step is Step.GRADIENT:  # gradients shrink with the width
    return 1 / into if out == 1 else 1.0 if into != 1 else out
  if optimizer.step is Step.SPECTRAL and hidden:
    assert optimizer.spectral_size is not None
    # A step whose spectral norm is sqrt(out / in) moves activations as much at every size (Bernstein 2025).
    sizes = [optimizer.spectral_size(each) / optimizers.update_size("spectral", each) for each in (shape, base_shape)]
    return sizes[1] / sizes[0]
  return 1 / into


def _shapes(config: Config) -> dict[str, tuple[names.Path, Any]]:
  leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(models.abstract_parameters(config)))
  return {names.dotted(path): (path, x) for path, x in leaves}


def over(number: Number, x: Any) -> Any:
  """A number of a parameter as what multiplies its array."""
  return np.array(number, np.float32).reshape(-1, *[1] * (x.ndim - 1)) if isinstance(number, tuple) else number


def scaled(params: Any, found: Multiples) -> Any:
  """Initial parameters, boxed or not, each times its multiple."""
  by_name = {name: init for name, init, *_ in found}
  if not by_name:
    return params
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)

  def scale(path: names.Path, x: Any) -> Any:
    times = by_name.get(names.dotted(path), 1.0)
    return x.replace_boxed(x.unbox() * over(times, x.unbox())) if is_box(x) else x * over(times, x)

  return jax.tree_util.tree_map_with_path(scale, params, is_leaf=is_box)

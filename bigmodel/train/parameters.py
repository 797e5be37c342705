"""Parameters: their shapes with and without padding, and how they are read from a checkpoint."""

import functools
import logging
from collections.abc import Mapping
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from bigmodel import models, optim, record
from bigmodel.config import Config
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.parallel import hosts
from bigmodel.train import stages
from bigmodel.train.checkpoint import Arrays, Checkpoints, to_flat
from bigmodel.types import Params

log = logging.getLogger("bigmodel")
PREFIX = "params."  # of the names of parameters in a checkpoint


def warn_of_divergence(workdir: epath.PathLike, step: int) -> None:
  """Warns once if the sound checkpoint of a step belongs to a run that diverged."""
  try:
    ended = record.read(absolute(workdir))
  except UserError:  # a corrupt record does not make a sound checkpoint unusable
    return
  if ended is not None and ended.status == "diverged":
    _warn(f"{workdir}: the checkpoint of step {step} belongs to a run that diverged: {ended.error}")


@functools.cache  # every run of a study would repeat the warning
def _warn(text: str) -> None:
  log.warning("%s", text)


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter of a resolved config's model, by its dotted name."""
  return {name: leaf.shape for name, leaf in to_flat(nn.meta.unbox(models.abstract_parameters(config))).items()}


def real_shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """The shape of every parameter without the padding of its table."""
  rows = models.real_rows(config)
  return {name: (rows.get(name, shape[0]), *shape[1:]) if shape else shape for name, shape in shapes_of(config).items()}


def padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """The array with zeros after its rows, up to this shape."""
  missing = [(0, wanted - length) for wanted, length in zip(shape, array.shape, strict=True)]
  return np.pad(array, missing) if array.shape != shape else array


def require_padding(config: Config, store: Checkpoints, step: int, shapes: Params) -> None:
  """Raises `UserError` if an earlier version saved the run's tables without padding; the run cannot be resumed."""
  stored = store.shapes(step)
  for name, x in _without_padding(config, stored, PREFIX, to_flat(shapes)).items():
    raise UserError(
      f"--workdir: {store.folder.parent}: the checkpoint of step {step} was written by an earlier version and cannot"
      f" be resumed ({name!r} has the shape {stored[PREFIX + name]}, not {x.shape}); begin another run with"
      " train.init_from"
    )


def _without_padding(
  config: Config, stored: Mapping[str, tuple[int, ...]], prefix: str, wanted: Arrays
) -> dict[str, jax.Array]:
  """The tables among `wanted` that an earlier version saved without padding; `stored` has the saved shapes."""
  others = {name: x for name, x in wanted.items() if stored.get(f"{prefix}{name}", x.shape) != x.shape}
  rows = models.real_rows(config) if others else {}
  return {name: x for name, x in others.items() if stored[f"{prefix}{name}"] == (rows.get(name), *x.shape[1:])}


def require_finite(params: Params, where: str) -> None:
  """Raises `UserError` unless all parameters are finite; `where` begins the message."""
  bad = [name for name, x in to_flat(params).items() if not _is_finite(x)]
  if bad:
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    raise UserError(f"{where}: parameters are not finite ({bad[0]}{more}); the model cannot be used")


def _is_finite(x: jax.Array | np.ndarray) -> bool:
  return bool((jnp if isinstance(x, jax.Array) else np).isfinite(x).all())


def evaluated(config: Config, store: Checkpoints, step: int, wanted: Arrays | None = None) -> dict[str, jax.Array]:
  """Reads, by name, the parameters of a checkpoint that are evaluated (see `optim.evaluated`).

  They are on the host, or with `wanted` in its shapes and shardings; tables that an earlier version saved without
  padding are then padded. Only the part of the optimizer's state that these parameters depend on is read.
  """
  config = stages.at(config, step).config  # the optimizer of this stage wrote the state

  def read(prefix: str) -> dict[str, jax.Array]:
    tables, shardings = {}, None
    if wanted is not None:
      tables = _without_padding(config, store.shapes(step), prefix, wanted)
      # The rows of tables without padding may not be divisible by the mesh, so the host pads them first.
      shardings = {name: None if name in tables else x.sharding for name, x in wanted.items()}
    arrays = {name.removeprefix(prefix): x for name, x in store.arrays(step, prefix, shardings).items()}
    for name, x in tables.items():
      arrays[name] = hosts.put(padded(np.asarray(arrays[name]), x.shape), x.sharding)
    return arrays

  params = read(PREFIX)
  if optim.averages_itself(config):
    return optim.evaluated(config, params, optim.State(SimpleNamespace(z=read("opt_state.own.z."))))
  if config.optim.average:
    average, (steps,) = read("opt_state.average."), read("opt_state.steps").values()
    return optim.evaluated(config, params, optim.State((), average, steps))
  return params


def read_evaluated(config: Config, store: Checkpoints, step: int, shapes: Params) -> Params:
  """`evaluated`, as the tree and with the shardings of `shapes`; each device reads only its part of each array.

  Raises `UserError` where the arrays are not those of the config's model.
  """
  wanted = to_flat(shapes)
  params = evaluated(config, store, step, wanted)
  for name, x in wanted.items():
    stored = f"{params[name].shape} {params[name].dtype}" if name in params else "missing"
    if stored != f"{x.shape} {x.dtype}":
      raise UserError(
        f"{store.folder}: array {name} is {stored}, and {x.shape} {x.dtype} by config.json, which was changed since"
      )
  return jax.tree.unflatten(jax.tree.structure(shapes), [params[name] for name in wanted])

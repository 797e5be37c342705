"""The mesh for evaluation and generation: that of the training run, or the closest mesh with fewer devices."""

from collections.abc import Iterator

import jax

from bigmodel import models
from bigmodel.config import Config
from bigmodel.errors import UserError
from bigmodel.parallel.checks import check
from bigmodel.parallel.fields import PRESETS
from bigmodel.parallel.logical_axes import AXES, Rules, rules
from bigmodel.parallel.mesh import make_mesh
from bigmodel.parallel.sharding import shardings
from bigmodel.parallel.sizes import mesh_sizes

# The order in which axes with a size in the config are assigned devices if there are fewer devices.
_KEPT_FIRST = ("tensor", "expert", "sequence", "pipeline")


def for_evaluation(config: Config) -> Config:
  """Returns a copy of the config with the mesh of `config.parallel`, or the closest mesh that fits these devices.

  Parameters are sharded as in training. Settings for training only (rematerialization, offloading) are removed.
  """
  plain = config.copy_and_resolve_references()
  plain.parallel.update(remat="none", offload="none")
  found = next((candidate for candidate in _candidates(plain) if _works(candidate)), None)
  if found is None:
    check(plain)  # raises the reason
    raise UserError("config.parallel: no mesh of these devices fits the config")
  return found


def for_generation(config: Config) -> Config:
  """Like `for_evaluation`, but without a pipeline, whose stages a few tokens at a time cannot fill.

  The devices of the pipeline go to `fsdp`. If no axis shards the parameters, one device generates alone.
  """
  plain = config.copy_and_resolve_references()
  given = plain.parallel
  if given.preset == "pp" or given.pipeline not in (0, 1):
    given.update(preset="fsdp" if given.preset == "pp" else given.preset, pipeline=0, microbatches=0)
    if -1 not in (given.tensor, given.sequence, given.expert):  # such an axis takes these devices as well
      given.update(fsdp=-1, data=max(given.data, 1))
  plain = for_evaluation(plain)
  mesh, boxed = make_mesh(plain), models.abstract_parameters(plain)
  if all(x.is_fully_replicated for x in jax.tree.leaves(shardings(mesh, boxed, rules(plain, mesh.shape)))):
    plain.parallel.update(_sizes(data=1))
  return plain


def generation_rules(training: Rules) -> Rules:
  """Returns rules under which weights stay sharded, and activations are sharded along `embed` like the weights.

  Gathering the weights for every token would move the whole model to each device, or keep it there.
  """
  replaced = ("batch", "expert_batch", "length", "activation_embed")
  whole = tuple((name, None) for name in replaced[:3])
  embed = tuple(("activation_embed", axes) for name, axes in training if name == "embed")
  return (*whole, *embed, *(rule for rule in training if rule[0] not in replaced))


def _candidates(config: Config) -> Iterator[Config]:
  """Yields the config, then copies with smaller meshes, most similar first, down to one device."""
  yield config
  left, sizes = jax.device_count(), {}
  for axis in _KEPT_FIRST:
    wish = config.parallel[axis] or PRESETS[config.parallel.preset].get(axis, 1)
    sizes[axis] = max(n for n in range(1, max(wish, 1) + 1) if left % n == 0 and max(wish, 1) % n == 0)
    left //= sizes[axis]
  in_pieces = config.parallel.fsdp or "fsdp" in PRESETS[config.parallel.preset]
  for kept in range(len(_KEPT_FIRST), -1, -1):
    some = {axis: sizes[axis] for axis in _KEPT_FIRST[:kept]}
    for n in range(jax.device_count(), 0, -1):
      smaller = config.copy_and_resolve_references()
      smaller.parallel.update(_sizes(**some, **{"fsdp" if in_pieces else "data": n}), microbatches=0)
      yield smaller


def _sizes(**given: int) -> dict[str, int]:
  """Returns the sizes of all axes of the mesh: 1 unless given."""
  return {axis: given.get(axis, 1) for axis in AXES[1:]}


def _works(config: Config) -> bool:
  try:
    check(config)
    mesh_sizes(config, jax.device_count())
    mesh = make_mesh(config)
    shardings(mesh, models.abstract_parameters(config), rules(config, mesh.shape))
  except UserError:
    return False
  return True

"""Rules that map the logical axes of arrays, which models name, to the axes of the mesh."""

import math
from collections.abc import Mapping

from jax.sharding import Mesh

from bigmodel.config import Config, nearest, require
from bigmodel.errors import UserError
from bigmodel.models.layers.embedding import padded

AXES = ("member", "data", "fsdp", "tensor", "sequence", "expert", "pipeline")
BATCH = ("data", "fsdp", "expert")  # rows of a batch are sharded over these axes of the mesh
Rule = tuple[str, str | tuple[str, ...] | None]  # logical axis, axes of the mesh
Rules = tuple[Rule, ...]

# The first rule of a name applies whose mesh axes the array does not use yet. Axes of size 1 have no effect.
RULES: Rules = (
  ("batch", BATCH),
  ("expert_batch", ("data", "fsdp")),
  ("length", "sequence"),
  ("activation_embed", None),
  ("layers", "pipeline"),
  ("expert", "expert"),
  ("vocab", ("tensor", "pipeline")),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
  ("embed", ("fsdp", "sequence", "expert")),
  ("embed", ("fsdp", "sequence")),
  ("head_size", None),
  ("positions", None),
  ("types", None),
  ("inputs", None),
  ("outputs", None),
  ("kernel_height", None),
  ("kernel_width", None),
  ("router", None),
  ("norm", None),
)


def rules(config: Config, sizes: Mapping[str, int] | None = None) -> Rules:
  """Returns the rules of a config, followed by the built-in rules for all other names.

  On a mesh of these `sizes`, a vocabulary is sharded only over axes that divide it.
  """
  given: list[Rule] = []
  known = {name for name, _ in RULES}
  for text in config.parallel.rules:
    name, equals, axes = text.partition("=")
    require(bool(equals), f"config.parallel.rules: {text!r} is not 'logical=axis'")
    if name not in known:
      raise UserError(f"config.parallel.rules: no logical axis {name!r}{nearest(name, known)}")
    parts = tuple(axis for axis in axes.split("+") if axis)
    for axis in parts:
      if axis not in AXES[1:]:
        raise UserError(f"config.parallel.rules: no mesh axis {axis!r}{nearest(axis, AXES[1:])}")
    given.append((name, parts or None))
  named = {name for name, _ in given}
  built_in = [rule for rule in RULES if rule[0] not in named]
  if sizes is not None:
    vocab: Rule = ("vocab", vocabulary_axes(config, sizes) or None)
    built_in = [vocab if name == "vocab" else (name, axes) for name, axes in built_in]
  return (*given, *built_in)


def vocabulary_axes(config: Config, sizes: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the axes of a mesh over which a padded vocabulary is sharded: those of the built-in rule that divide it."""
  axes, rows = mesh_axes(dict(RULES)["vocab"]), padded(config.model.get("vocab", 0))
  while rows % math.prod(sizes[axis] for axis in axes):
    axes = axes[:-1]
  return axes


def rules_on(mesh: Mesh, rules: Rules) -> Rules:
  """Returns the rules without axes of size 1, so that a model can see what is sharded."""
  return tuple((name, tuple(a for a in mesh_axes(axes) if mesh.shape[a] > 1) or None) for name, axes in rules)


def mesh_axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns an entry of a rule or PartitionSpec as a tuple of mesh axes."""
  return (axes,) if isinstance(axes, str) else axes or ()

"""Meshes and sharding. Models name the logical axes of arrays, and rules map these names to axes of the mesh.

`config.parallel` sets how a run is computed, and never its results. A preset sets the sizes of the mesh's axes.
"""

from bigmodel.parallel.checks import check
from bigmodel.parallel.fields import PRESETS, REMAT
from bigmodel.parallel.logical_axes import AXES, BATCH, RULES, Rules, rules, rules_on, vocabulary_axes
from bigmodel.parallel.mesh import asked, lanes, make_mesh, make_mesh_of, mapped
from bigmodel.parallel.sharding import (
  batch_sharding,
  bytes_on,
  local_bytes,
  member_sharding,
  replicated,
  shardings,
)
from bigmodel.parallel.sizes import mesh_sizes, microbatches, notes, notes_here

__all__ = [
  "AXES",
  "BATCH",
  "PRESETS",
  "REMAT",
  "RULES",
  "Rules",
  "asked",
  "batch_sharding",
  "bytes_on",
  "check",
  "lanes",
  "local_bytes",
  "make_mesh",
  "make_mesh_of",
  "mapped",
  "member_sharding",
  "mesh_sizes",
  "microbatches",
  "notes",
  "notes_here",
  "replicated",
  "rules",
  "rules_on",
  "shardings",
  "vocabulary_axes",
]

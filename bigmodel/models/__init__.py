"""Models: one file per family, built from shared layers. Each family counts its parameters and FLOPs.

`registry.protocol.Family` is the interface of a family's file. Each parameter has a role and named axes: see
`layers.roles`. A model is in training if it is applied with a key named 'dropout', and otherwise in evaluation.
"""

from bigmodel.models.registry.families import (
  FAMILIES,
  abstract_parameters,
  begins_blocks_with_norms,
  build,
  check,
  counts_of,
  declared,
  example,
  family,
  in_pieces,
  labels,
  real_rows,
  resolve,
  shape_of,
)

__all__ = [
  "FAMILIES",
  "abstract_parameters",
  "begins_blocks_with_norms",
  "build",
  "check",
  "counts_of",
  "declared",
  "example",
  "family",
  "in_pieces",
  "labels",
  "real_rows",
  "resolve",
  "shape_of",
]

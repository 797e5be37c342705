"""Models: one file per family on top of shared layers; each counts its own parameters and FLOPs.

`registry.protocol.Family` says what the file of a family defines. Each parameter has a role and named axes: see
`layers.roles`. A model that is applied with a key named 'dropout' is in training; without that key it is evaluated.
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

"""Names of types that several rooms use."""

from collections.abc import Mapping
from typing import Any

import jax

PyTree = Any  # nested dicts, tuples and dataclasses of arrays, as jax.tree walks them
Params = PyTree  # a model's parameters, as flax nests them
Batch = Mapping[str, jax.Array]  # arrays by name, rows first

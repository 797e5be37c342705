"""NumPy arrays of a notebook as the data of a config."""

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import cached, sources


def use_arrays(
  config: Config,
  inputs: np.ndarray,
  targets: np.ndarray,
  group: np.ndarray | None = None,
  time: np.ndarray | None = None,
) -> None:
  """Keeps the arrays in the cache and makes them the data of the config, in place.

  Raises `UserError` for a config of text, and for arrays that do not fit together or are not finite numbers.
  """
  require(config.data.kind == "examples", "use_arrays: this config is for text; begin with default_config('mlp')")
  given = {"inputs": inputs, "targets": targets, "group": group, "time": time}
  arrays = {name: np.asarray(array) for name, array in given.items() if array is not None}
  shape = arrays["inputs"].shape
  require(len(shape) >= 2, f"use_arrays: inputs have the shape {shape}; it must be [examples, ...]")
  # As flat rows they pass the same checks; of images, a hash would be computed as well.
  flat = {**arrays, "inputs": arrays["inputs"].reshape(len(arrays["inputs"]), -1)}
  sources.of_arrays(**flat, where="use_arrays")
  config.data.update(name="arrays", path=cached.keep(arrays), sha256="")

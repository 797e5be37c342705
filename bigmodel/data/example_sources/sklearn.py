"""The small datasets that scikit-learn brings; `data.name` is sklearn/digits, sklearn/wine and so on."""

import numpy as np

from bigmodel.config import Config, nearest, require
from bigmodel.data.sources import Arrays, Source
from bigmodel.errors import UserError

DATASETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def read(data: Config) -> Arrays:
  """The inputs as float32[examples, features], and the targets."""
  name = data.name.partition("/")[2]
  known = f"known: {', '.join(DATASETS)}"
  require(name in DATASETS, f"config.data.name: no {data.name!r}{nearest(name, DATASETS)}; {known}")
  try:
    from sklearn import datasets  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise UserError("config.data.name: scikit-learn is not installed; pip install 'bigmodel[metrics]'") from error
  inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
  return Arrays(np.asarray(inputs, np.float32), np.asarray(targets))


SOURCE = Source(read)

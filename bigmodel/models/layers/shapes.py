"""Fields that the shapes of several families share."""

import dataclasses
from collections.abc import Mapping

from bigmodel.config import Config
from bigmodel.declarations import NOT_NEGATIVE, field


@dataclasses.dataclass(frozen=True)
class ExampleShape:
  """The fields of models whose inputs are examples (a row of features or an image), not text."""

  inputs: tuple[int, ...] = field((), "shape of one example; (): that of the data")
  outputs: int = field(0, "classes, or numbers to predict; 0: those of the data", NOT_NEGATIVE)


def resolve_examples(model: Config, facts: Mapping[str, object]) -> None:
  """Fills in the shape of the examples from the data, in place."""
  model.inputs, model.outputs = model.inputs or facts["inputs"], model.outputs or facts["outputs"]

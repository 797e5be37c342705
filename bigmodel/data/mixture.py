"""The parts of a mixture of texts, as `data.mixture` describes them."""

import re
from pathlib import Path

from bigmodel.config import Config, override, parse_value, require
from bigmodel.data import sources
from bigmodel.declarations import LARGEST_FLOAT

# The fields of `config.data` that a part may set.
COMPONENT = (
  *("name", "path", "distributions", "heldout", "heldout_fraction", "text_key", "train_split", "eval_split", "dir"),
)


def components(data: Config) -> list[tuple[float, Config]]:
  """`(weight, config.data)` of each part of a mixture; the first part is the config itself."""
  parts = [(float(data.weight), data)]
  for text in data.mixture:
    where = f"config.data.mixture: {text!r}"
    require(isinstance(text, str) and bool(text.strip()), f"{where} does not begin with a weight")
    weight, *changes = text.split()
    is_number = weight.isascii() and weight.replace(".", "", 1).isdigit()
    require(is_number and 0 < float(weight) < LARGEST_FLOAT, f"{where} does not begin with a weight")
    part = data.copy_and_resolve_references()
    for change in changes:
      name, equals, value = change.partition("=")
      require(bool(equals) and name in COMPONENT, f"{where}: {change!r}; a part may set {', '.join(COMPONENT)}")
      override(part, name, parse_value(value))
    parts.append((float(weight), part))
  return parts


def part_names(data: Config) -> list[str]:
  """The names of the parts of a mixture: from their paths or sources, with numbers where names would be equal."""
  names: list[str] = []
  for _, part in components(data):
    name, number = _part_name(part), 1
    while name in names:
      number += 1
      name = f"{_part_name(part)}_{number}"
    names.append(name)
  return names


def _part_name(part: Config) -> str:
  """The last part of the path that has letters or digits, or the name of the source."""
  for step in reversed(Path(part.path).parts if part.name == "text_files" else ()):
    stem = re.sub(r"\W+", "_", step.split(".")[0]).strip("_")
    if stem:
      return stem
  return re.sub(r"\W+", "_", sources.label(part).partition("@")[0])

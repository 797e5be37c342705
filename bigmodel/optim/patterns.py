"""Rules of the form PATTERN=NUMBER, which users write over the dotted names of parameters."""

import re
from collections.abc import Sequence

import jax

from bigmodel.config import require
from bigmodel.declarations import LARGEST_FLOAT
from bigmodel.models.layers.roles import Path, dotted
from bigmodel.types import Params, PyTree


def parse(field: str, rules: Sequence[str]) -> list[tuple[str, float]]:
  """`PATTERN=NUMBER` rules as pairs; refuses what is not of this form. `field` is that of `config.optim`."""
  pairs = []
  for text in rules:
    pattern, equals, number = str(text).rpartition("=")
    try:
      re.compile(pattern)
      pairs.append((pattern, float(number)))
    except (ValueError, re.error):
      equals = ""
    require(bool(equals and pattern), f"config.optim.{field}: {text!r} is not PATTERN=NUMBER")
    require(0 <= pairs[-1][1] < LARGEST_FLOAT, f"config.optim.{field}: {text!r} is not a finite number from 0 up")
  return pairs


def first_matches(params: Params, patterns: Sequence[str]) -> PyTree:
  """For each parameter the index of the first pattern that matches somewhere in its name, or -1."""

  def index(path: Path, _: object) -> int:
    name = dotted(path)
    return next((i for i, pattern in enumerate(patterns) if re.search(pattern, name)), -1)

  return jax.tree_util.tree_map_with_path(index, params)

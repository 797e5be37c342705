"""Rules that users write over the dotted names of parameters."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from bigmodel.config import require
from bigmodel.models.layers.roles import dotted


def parse(field: str, rules: Sequence[str]) -> list[tuple[str, float]]:
  """`PATTERN=NUMBER` rules as pairs."""
  found = []
  for text in rules:
    pattern, equals, number = text.rpartition("=")
    try:
      re.compile(pattern)
      found.append((pattern, float(number)))
    except (ValueError, re.error):
      equals = ""
    require(bool(equals and pattern), f"config.optim.{field}: {text!r} is not PATTERN=NUMBER")
    require(found[-1][1] >= 0, f"config.optim.{field}: {text!r} is negative")
  return found


def which(params: Any, patterns: Sequence[str]) -> Any:
  """For each parameter the place of the first pattern that is found in its name, or -1."""
  first = lambda name: next((i for i, pattern in enumerate(patterns) if re.search(pattern, name)), -1)
  return jax.tree_util.tree_map_with_path(lambda path, _: first(dotted(path)), params)

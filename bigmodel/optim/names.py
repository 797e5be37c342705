"""What a parameter is, by its dotted name: stacked over layers or experts, a hidden matrix or not; rules over names."""

import re
from collections.abc import Sequence
from typing import Any

import jax

from bigmodel.config import require

# Matrices that meet the data or the outputs, and no others: tables, heads, first layers.
OUTER = re.compile(r"^(embedding|positions|types|token|output|head|pooler|patches|stem|layer_0|conv_0|weight|bias)\b")
Path = tuple[Any, ...]


def dotted(path: Path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")


def leading(path: Path) -> int:
  """Axes in front of a parameter's own: layers of a stack, experts."""
  name = dotted(path)
  return bool(re.search(r"blocks\.", name)) + bool(re.search(r"experts\.(up|down|gate)$", name))


def is_matrix(path: Path, x: Any) -> bool:
  return x.ndim - leading(path) > 1


def is_hidden(path: Path, x: Any) -> bool:
  """A matrix or convolution between layers: what Muon, Shampoo and SOAP are for."""
  return is_matrix(path, x) and not OUTER.search(dotted(path))


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

"""Data: sources, tokenizers, and pipelines that are functions of (seed, step).

There are two kinds. `text`: a corpus is prepared once as array_record through TFDS (without TensorFlow), then tokenized
once into one array, cached by content. `examples`: images or rows of a table with a target each, as arrays. `pipeline`
makes rows for training and evaluation of both.
"""

from bigmodel.data.checks import check
from bigmodel.data.fields import FREE, GROUPS, HELD_OUT, TOKENIZERS, declared, unit
from bigmodel.data.mixture import COMPONENT, components, part_names

__all__ = [
  "COMPONENT",
  "FREE",
  "GROUPS",
  "HELD_OUT",
  "TOKENIZERS",
  "check",
  "components",
  "declared",
  "part_names",
  "unit",
]

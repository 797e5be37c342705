"""What marks the folder of a run that was made from Hugging Face files: imported.json, with the ends of its texts."""

import msgspec
from etils import epath

from bigmodel.data.tokenizer_files import TextEnds
from bigmodel.files import absolute, read_json

IMPORTED = "imported.json"


def is_imported(folder: epath.PathLike) -> bool:
  """Whether a run's folder was made from Hugging Face files."""
  return (absolute(folder) / IMPORTED).exists()


def text_ends(folder: epath.PathLike) -> TextEnds | None:
  """The tokens that begin and end a text, for imported weights; None for the folder of a trained run."""
  return msgspec.convert(read_json(absolute(folder) / IMPORTED), TextEnds) if is_imported(folder) else None

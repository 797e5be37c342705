"""Tokenizers: bytes, byte-level BPE trained on the corpus (both are lossless), and those of imported weights.

How many bytes a token stands for is counted in the text that was tokenized, never in the token's name: names have
marks of continuation, stand-ins for spaces and bytes, and lower case or other forms that the text does not have.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bigmodel.files import sha256_text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """`encode(text) -> ids` and back, the number of ids, and those that begin and end a text.

  `encode_and_count(text) -> (ids, bytes)` also says how many UTF-8 bytes of the text each token stands for.
  """

  name: str
  vocab: int
  begin: int
  separator: int  # ends a text
  encode: Callable[[str], np.ndarray]
  encode_and_count: Callable[[str], tuple[np.ndarray, np.ndarray]]
  decode: Callable[[np.ndarray], str]
  sha256: str
  text: str  # what `from_text` rebuilds it from


SEPARATOR = "<|separator|>"


def bytes_tokenizer() -> Tokenizer:
  """UTF-8 bytes are the ids; 256 separates documents."""

  def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)

  def encode_and_count(text: str) -> tuple[np.ndarray, np.ndarray]:
    ids = encode(text)
    return ids, np.ones(len(ids), np.int64)

  def decode(ids: np.ndarray) -> str:
    return bytes(int(i) for i in ids if i < 256).decode("utf-8", "replace")

  return Tokenizer("bytes", 257, 256, 256, encode, encode_and_count, decode, sha256_text("bytes"), "")


def count_bytes(text: str, ends: np.ndarray) -> np.ndarray:
  """UTF-8 bytes of `text` that each token stands for, int64[tokens]; `ends` is the character that each stops before.

  Each byte counts once. Characters that no token covers, such as spaces that a tokenizer drops, count with the token
  after them, or with the last one. A character that several tokens share counts with the first that reaches it.
  """
  if not len(ends):
    return np.zeros(0, np.int64)
  points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
  sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
  before = np.concatenate([[0], np.cumsum(sizes)])
  reached = np.maximum.accumulate(np.minimum(ends, len(points)))
  reached[-1] = len(points)
  return np.diff(before[reached], prepend=0)


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
  """Trains byte-level BPE; returns its JSON. The same texts give the same tokenizer."""
  from tokenizers import Tokenizer as Bpe
  from tokenizers import decoders, models, pre_tokenizers, trainers

  bpe = Bpe(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
  bpe.decoder = decoders.ByteLevel()  # pyright: ignore
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[SEPARATOR],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  bpe.train_from_iterator(texts, trainer)
  return bpe.to_str()


def from_text(text: str, begin: int | None = None, end: int | None = None) -> Tokenizer:
  """The BPE tokenizer of `train_bpe`'s JSON or another's, who says what begins and ends a text; or the bytes of ''."""
  if not text:
    return bytes_tokenizer()
  from tokenizers import Tokenizer as Bpe

  bpe: Any = Bpe.from_str(text)
  bpe.no_truncation()  # some files cut every text to a model's context, or fill it up to there
  bpe.no_padding()
  size = max(bpe.get_vocab().values()) + 1  # there may be gaps between ids
  separator = bpe.token_to_id(SEPARATOR) if end is None else end
  assert separator is not None

  def encode(document: str) -> np.ndarray:
    return np.asarray(bpe.encode(document, add_special_tokens=False).ids, np.int64)

  def encode_and_count(document: str) -> tuple[np.ndarray, np.ndarray]:
    found = bpe.encode(document, add_special_tokens=False)
    ends = np.asarray([stop for _, stop in found.offsets], np.int64)  # in the text as it was before any normalisation
    return np.asarray(found.ids, np.int64), count_bytes(document, ends)

  def decode(ids: np.ndarray) -> str:
    return bpe.decode([int(i) for i in ids if i != separator])

  first = separator if begin is None else begin
  return Tokenizer("bpe", size, first, separator, encode, encode_and_count, decode, sha256_text(text), text)

"""Tokenizers: bytes, and byte-level BPE trained on the corpus. Both are lossless."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bigmodel.files import sha256_text


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """`encode(text) -> ids` and back, the number of ids, those that begin and end a text, each id's length in bytes."""

  name: str
  vocab: int
  begin: int
  separator: int  # ends a text
  encode: Callable[[str], np.ndarray]
  decode: Callable[[np.ndarray], str]
  token_bytes: np.ndarray
  sha256: str
  text: str  # what `from_text` rebuilds it from


SEPARATOR = "<|separator|>"


def bytes_tokenizer() -> Tokenizer:
  """UTF-8 bytes are the ids; 256 separates documents."""
  lengths = np.ones(257, np.int32)
  lengths[256] = 0
  encode = lambda text: np.frombuffer(text.encode(), np.uint8)
  decode = lambda ids: bytes(int(i) for i in ids if i < 256).decode("utf-8", "replace")
  return Tokenizer("bytes", 257, 256, 256, encode, decode, lengths, sha256_text("bytes"), "")


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
  size = bpe.get_vocab_size()
  separator = bpe.token_to_id(SEPARATOR) if end is None else end
  # In byte-level BPE every character of a token stands for one byte.
  lengths = np.array([len(bpe.id_to_token(i) or "") for i in range(size)], np.int32)
  assert separator is not None
  first = separator if begin is None else begin
  lengths[separator] = 0
  encode = lambda document: np.asarray(bpe.encode(document, add_special_tokens=False).ids, np.int64)
  decode = lambda ids: bpe.decode([int(i) for i in ids if i != separator])
  return Tokenizer("bpe", size, first, separator, encode, decode, lengths, sha256_text(text), text)

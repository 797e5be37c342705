"""Tokenizers: bytes, byte-level BPE trained on the corpus (both lossless), token ids, and those of imported weights.

The bytes that a token stands for are counted in the text that was tokenized and never in the token's name, because
names have continuation marks, substitutes for spaces and bytes, and forms such as lower case that the text has not.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from bigmodel.config import require
from bigmodel.errors import UserError
from bigmodel.files import sha256_text

if TYPE_CHECKING:
  import tokenizers


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Functions from text to token ids and back, the number of ids, and the ids that begin and end a text.

  `encode_and_count(text) -> (ids, bytes)` also returns how many UTF-8 bytes of the text each token stands for.
  """

  name: str
  vocab: int
  begin: int
  separator: int  # ends a text
  encode: Callable[[str], np.ndarray]
  encode_and_count: Callable[[str], tuple[np.ndarray, np.ndarray]]
  decode: Callable[[np.ndarray], str]
  sha256: str
  text: str  # the JSON from which `from_text` rebuilds it; '' for bytes and ids
  of_text: bool = True  # False: tokens are given, and the text that they stand for is unknown


SEPARATOR = "<|separator|>"
WORD_BYTES = 1024  # of the longest word from which BPE learns; sentences without blanks, as in Chinese, are shorter
LONG_WORDS_BYTES = 4 << 20  # of texts with longer words that are trained on: all their words differ, which takes memory


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


def ids_tokenizer(vocab_size: int) -> Tokenizer:
  """Texts are token ids: decimal numbers below `vocab_size - 1`, separated by white space.

  The last id, `vocab_size - 1`, separates texts.
  """

  def encode(text: str) -> np.ndarray:
    try:
      ids = np.asarray(text.split(), np.int64)
    except (ValueError, OverflowError) as error:
      raise UserError(f"config.data.tokenizer: ids; the text {text[:40]!r} is not made of whole numbers") from error
    bad = (ids < 0) | (ids >= vocab_size - 1)
    require(
      not bad.any(),
      f"config.data.vocab_size: {vocab_size}; token ids must lie from 0 to vocab_size - 2, and there is"
      f" {ids[bad][0] if bad.any() else 0} (vocab_size - 1 separates documents)",
    )
    return ids

  def encode_and_count(text: str) -> tuple[np.ndarray, np.ndarray]:
    ids = encode(text)
    return ids, np.zeros(len(ids), np.int64)

  def decode(ids: np.ndarray) -> str:
    return " ".join(str(int(i)) for i in ids if i != vocab_size - 1)

  separator, sha256 = vocab_size - 1, sha256_text(f"ids {vocab_size}")
  return Tokenizer("ids", vocab_size, separator, separator, encode, encode_and_count, decode, sha256, "", False)


def count_bytes(text: str, ends: np.ndarray) -> np.ndarray:
  """UTF-8 bytes of `text` that each token stands for, int64[tokens]; `ends` are the positions where the tokens end.

  Each byte counts once. Characters that no token covers, such as spaces that a tokenizer drops, count for the token
  after them, or for the last one. A character that several tokens share counts for the first that reaches it.
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
  """Trains byte-level BPE; returns its JSON. The same texts give the same tokenizer.

  The time that a word takes grows with the square of its length, so words are cut after `WORD_BYTES` for training.
  """
  from tokenizers import Tokenizer as Bpe
  from tokenizers import decoders, models, pre_tokenizers, trainers

  texts = list(texts)
  bpe = Bpe(models.BPE())
  words = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.pre_tokenizer = words  # pyright: ignore
  if any(_may_have_long_words(text) for text in texts):
    texts = list(_first(texts, LONG_WORDS_BYTES))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(WORD_BYTES)])  # pyright: ignore
  bpe.decoder = decoders.ByteLevel()  # pyright: ignore
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[SEPARATOR],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  bpe.train_from_iterator(texts, trainer)
  bpe.pre_tokenizer = words  # pyright: ignore
  return bpe.to_str()


def _first(texts: Iterable[str], size: int) -> Iterator[str]:
  """The first texts, up to about `size` characters."""
  for text in texts:
    if size <= 0:
      return
    size -= len(text)
    yield text


def _may_have_long_words(text: str) -> bool:
  """Whether more than `WORD_BYTES` of the text follow one another without a blank, or are all blanks."""
  if len(text) * 4 <= WORD_BYTES:
    return False
  blank = np.frombuffer(text.encode(), np.uint8) <= ord(" ")
  changes = np.flatnonzero(blank[1:] != blank[:-1])
  return bool(np.diff(changes, prepend=-1, append=len(blank) - 1).max() > WORD_BYTES)


def _spelled_out(
  bpe: "tokenizers.Tokenizer", special: Mapping[int, str], document: str, encoded: "tokenizers.Encoding"
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and ends of tokens, with the tokens of characters in place of special tokens that the text spells out.

  Models other than BPE have special tokens in the vocabulary of their words. Special tokens for unknown words stay.
  """
  ids: list[int] = []
  ends: list[int] = []
  for id_, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
    if special.get(id_) != document[start:stop]:
      ids.append(id_)
      ends.append(stop)
      continue
    for place in range(start, stop):
      of_character = [token.id for token in bpe.model.tokenize(document[place])]
      ids.extend(of_character)
      ends.extend([place + 1] * len(of_character))
  return np.asarray(ids, np.int64), np.asarray(ends, np.int64)


def _with_special_ends(text: str, ends: Collection[int | None]) -> str:
  """The JSON of a tokenizer with the tokens of these ids marked as special, as not all files do."""
  document = json.loads(text)
  changed = False
  for token in document.get("added_tokens") or ():
    if token["id"] in ends and not token.get("special"):
      token["special"] = changed = True
  return json.dumps(document) if changed else text


def from_text(text: str, begin: int | None = None, end: int | None = None) -> Tokenizer:
  """The tokenizer of `train_bpe`'s JSON, or of another file whose `begin` and `end` ids are given; bytes for ''.

  Special tokens that are spelled out in a text are text: they become ordinary tokens.
  """
  if not text:
    return bytes_tokenizer()
  from tokenizers import Tokenizer as Bpe

  try:
    bpe = Bpe.from_str(_with_special_ends(text, {begin, end}))
  except Exception as error:  # `tokenizers` raises no other class
    reason = str(error).strip().partition("\n")[0][:200]
    raise UserError(f"tokenizer.json: not a tokenizer that the package tokenizers can read ({reason})") from error
  bpe.encode_special_tokens = True
  bpe.no_truncation()  # some files truncate or pad every text to a model's context
  bpe.no_padding()
  size = max(bpe.get_vocab().values()) + 1  # there may be gaps between ids
  separator = bpe.token_to_id(SEPARATOR) if end is None else end
  assert separator is not None

  special = {id_: token.content for id_, token in bpe.get_added_tokens_decoder().items() if token.special}
  special_ids = np.asarray(list(special), np.int64)

  def encode(document: str) -> np.ndarray:
    encoded = bpe.encode(document, add_special_tokens=False)
    ids = np.asarray(encoded.ids, np.int64)
    return _spelled_out(bpe, special, document, encoded)[0] if np.isin(ids, special_ids).any() else ids

  def encode_and_count(document: str) -> tuple[np.ndarray, np.ndarray]:
    encoded = bpe.encode(document, add_special_tokens=False)
    ids = np.asarray(encoded.ids, np.int64)
    ends = np.asarray([stop for _, stop in encoded.offsets], np.int64)  # in the text before any normalisation
    if np.isin(ids, special_ids).any():
      ids, ends = _spelled_out(bpe, special, document, encoded)
    return ids, count_bytes(document, ends)

  def decode(ids: np.ndarray) -> str:
    return bpe.decode([int(i) for i in ids if i != separator])

  first = separator if begin is None else begin
  return Tokenizer("bpe", size, first, separator, encode, encode_and_count, decode, sha256_text(text), text)

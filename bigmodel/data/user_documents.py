"""Documents that a function returns as Python objects: texts, or arrays of token ids.

Token ids are written as text, as decimal numbers with spaces between them, so that they go through the same preparation
as any other text; the tokenizer `ids` reads them back.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import builders, sources
from bigmodel.data.documents import NULL, cut, empty_split, heldout_share, identity, manifest_sha256
from bigmodel.data.sources import SPLITS, Documents
from bigmodel.errors import UserError
from bigmodel.readers.json_lines import without_surrogates

IDS_PER_LINE = 1024
FORM = (
  "text is a list of documents (texts, or integer arrays of token ids), or a dict of lists for train and validation"
)


def read(data: Config) -> Documents:
  """The documents of `config.data`, from any source of text."""
  source = sources.find(data)
  returned = source.read(data)
  if isinstance(returned, Documents):
    return returned
  skipped = Counter[str]()
  splits = _by_split(data, returned)
  digests = {split: _digest(_contents(data, documents, skipped)) for split, documents in splits.items()}
  settings = [data.heldout_fraction] if "" in digests else []

  def generate(split: str) -> Iterator[tuple[str, str, str]]:
    # The function is called again, because it may have returned an iterator.
    given = split if split in digests else ""
    digest, seen = hashlib.sha256(), set[str]()
    for number, content in enumerate(_contents(data, _by_split(data, source.read(data))[given])):
      _add(digest, content)
      lines = _lines(content)
      whole = identity(lines)
      if given == "" and (whole in seen or (heldout_share(whole) < data.heldout_fraction) != (split == "validation")):
        continue
      seen.add(whole)
      for piece, text in enumerate(cut(lines)):
        yield f"{number}#{piece}", text, builders.joined_identities(whole, text)
    require(
      digest.hexdigest() == digests[given],
      f"{_where(data)} returned other documents when it was called again; give its random numbers a fixed seed",
    )

  def empty(split: str) -> UserError:
    if "" not in digests:
      return UserError(f"{_where(data)} returned no text in {split!r}")
    identities = {identity(_lines(content)) for content in _contents(data, _by_split(data, source.read(data))[""])}
    shares = {heldout_share(one) for one in identities - {identity([])}}
    return empty_split(_where(data), sources.label(data), shares, data.heldout_fraction, split)

  return builders.documents(data, manifest_sha256([], "returned", digests, settings), generate, empty, skipped)


def _where(data: Config) -> str:
  return f"config.data.name: {sources.label(data)}"


def _by_split(data: Config, returned: object) -> Mapping[str, Iterable[object]]:
  """The returned documents by split, or all of them as the split '' where the function does not divide them."""
  splits = returned if isinstance(returned, Mapping) else {"": returned}
  if set(splits) not in ({""}, set(SPLITS)):
    hint = "; for examples, set config.data.kind=examples and a model of examples" if "inputs" in splits else ""
    raise UserError(f"{_where(data)} returned {sources.described(returned)}; {FORM}{hint}")
  for documents in splits.values():
    is_single = isinstance(documents, str | bytes | Mapping) or (
      isinstance(documents, np.ndarray) and documents.ndim < 2
    )
    require(
      isinstance(documents, Iterable) and not is_single,
      f"{_where(data)} returned {sources.described(documents)}; {FORM}",
    )
  return cast(Mapping[str, Iterable[object]], splits)


def _contents(
  data: Config, documents: Iterable[object], skipped: Counter[str] | None = None
) -> Iterator[str | np.ndarray]:
  """The documents, checked: texts, or token ids as int64[tokens]. `skipped` counts those that are None."""
  for number, document in enumerate(documents):
    if document is None:  # a missing text, as tables have them
      if skipped is not None:
        skipped[NULL] += 1
      continue
    if isinstance(document, str):
      yield without_surrogates(document)
      continue
    try:
      ids = np.asarray(document)
    except ValueError:
      ids = np.zeros(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
      raise UserError(
        f"{_where(data)} returned a document, number {number}, that is {sources.described(document)}; {FORM}"
      )
    require(
      data.tokenizer == "ids",
      f"config.data.tokenizer: {data.tokenizer!r}; {sources.label(data)} returns token ids, which need tokenizer=ids"
      " and a vocab_size of at least the largest id + 2",
    )
    yield ids.astype(np.int64)


def _lines(content: str | np.ndarray) -> list[str]:
  if isinstance(content, str):
    return content.splitlines(keepends=True)
  rows = (content[first : first + IDS_PER_LINE] for first in range(0, len(content), IDS_PER_LINE))
  return [f"{' '.join(map(str, row.tolist()))}\n" for row in rows]


def _digest(contents: Iterable[str | np.ndarray]) -> str:
  digest = hashlib.sha256()
  for content in contents:
    _add(digest, content)
  return digest.hexdigest()


def _add(digest: "hashlib._Hash", content: str | np.ndarray) -> None:
  kind, encoded = (b"text", content.encode()) if isinstance(content, str) else (b"ids", content.tobytes())
  digest.update(b"%s %d " % (kind, len(encoded)))
  digest.update(encoded)

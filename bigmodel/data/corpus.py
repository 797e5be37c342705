"""A corpus as arrays: documents tokenized once, joined by separators, cached by content."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import builders, components, duplicates, part_names, sources, tokenizer
from bigmodel.data.prepared import GrowingArray, new_folder, open_array
from bigmodel.files import cache_dir, only_one, read_json, sha256_text, write_json

FORMAT = 2  # of what lies in a prepared folder; folders of other formats are not looked at
BPE_TRAINING_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Both splits as token arrays; `starts` is where each text begins, in tokens: a document or a piece of a long one."""

  sha256: str
  vocab: int
  tokens: dict[str, np.ndarray]
  starts: dict[str, np.ndarray]
  bytes: dict[str, int]
  heldout_bytes: np.ndarray  # of the held-out text that each of its tokens stands for
  card: dict[str, Any]
  documents: np.ndarray  # number of the document of each held-out text
  parts: np.ndarray | None = None  # of a mixture: the part of each held-out text, in the order of card["parts"]

  @property
  def facts(self) -> dict[str, Any]:
    """What a model takes from its data."""
    return {"vocab": self.vocab}


def prepare(config: Config) -> Corpus:
  """Opens the corpus of `config.data`, preparing and tokenizing it the first time."""
  data = config.data
  manifest = _manifest(data)
  corpus = _open(data, manifest)
  if corpus is None:
    with only_one(manifest[:16]):
      corpus = _open(data, manifest) or _build(data, manifest)
  require(
    data.sha256 in ("", corpus.sha256),
    f"config.data.sha256: the corpus here is {corpus.sha256[:12]}..., not {data.sha256[:12]}..."
    " (other versions of the distributions or changed files)",
  )
  for split in ("train", "validation"):
    rows = (len(corpus.tokens[split]) - 1) // data.context
    require(
      rows > 0,
      f"config.data.context: {data.context} is longer than the {split} documents allow"
      f" ({len(corpus.tokens[split])} tokens in all)",
    )
  return corpus


def _manifest(data: Config) -> str:
  """What the corpus is made of, without opening datasets whose files say it."""
  parts = []
  for weight, part in components(data):
    sha256 = builders.manifest(part)[0] if part.name in builders.SOURCES else builders.open_splits(part)[0]
    parts.append((weight, sha256))
  how = [data.near_duplicates, data.decontaminate]
  return parts[0][1] if len(parts) == 1 and not any(how) else sha256_text(json.dumps([parts, how]))


def _folder(data: Config, manifest: str) -> Path:
  """Where the corpus is kept: a name of its own for everything that decides what lies in it."""
  kind: list[object] = [data.tokenizer]
  if data.tokenizer == "bpe":
    kind.append(data.vocab_size)
  elif data.tokenizer.endswith(".json"):
    given = _given(data)
    kind = [given.sha256, given.begin, given.separator]
  names = part_names(data) if data.mixture else []
  return cache_dir() / "tokens" / sha256_text(json.dumps([FORMAT, names, manifest, kind]))[:16]


def _open(data: Config, manifest: str) -> Corpus | None:
  folder = _folder(data, manifest)
  if not (folder / "card.json").exists():
    return None
  card = read_json(folder / "card.json")
  return Corpus(
    sha256=card["sha256"],
    vocab=card["vocab"],
    tokens={split: open_array(folder / f"{split}.tokens.npy") for split in card["splits"]},
    starts={split: open_array(folder / f"{split}.starts.npy") for split in card["splits"]},
    bytes={split: card["splits"][split]["bytes"] for split in card["splits"]},
    heldout_bytes=open_array(folder / "validation.bytes.npy"),
    card=card,
    documents=open_array(folder / "validation.documents.npy"),
    parts=open_array(folder / "validation.parts.npy") if "parts" in card else None,
  )


def tokenizer_of(config: Config) -> tokenizer.Tokenizer:
  """The tokenizer of the corpus of `config.data`."""
  if config.data.tokenizer == "bytes":
    return tokenizer.bytes_tokenizer()
  if config.data.tokenizer.endswith(".json"):
    return _given(config.data)
  prepare(config)
  return tokenizer.from_text((_folder(config.data, _manifest(config.data)) / "tokenizer.json").read_text())


def _given(data: Config) -> tokenizer.Tokenizer:
  """A tokenizer file; what begins and ends a text is said by imported.json beside it."""
  path = Path(data.tokenizer)
  require((path.parent / "imported.json").is_file(), f"config.data.tokenizer: no imported.json beside {path}")
  marks = read_json(path.parent / "imported.json")
  require(marks["end"] is not None, f"config.data.tokenizer: {path} says no token that ends a text")
  return tokenizer.from_text(path.read_text(), marks["begin"], marks["end"])


def _build(data: Config, manifest: str) -> Corpus:
  opened = [(weight, *builders.open_splits(part)[1:]) for weight, part in components(data)]
  removed: dict[str, int] = {}
  heldout = _HeldOut(opened)
  splits: dict[str, Iterable[str]] = {
    "train": _Training(opened, heldout.fingerprints(), removed),
    "validation": heldout,
  }
  if data.near_duplicates or data.decontaminate:
    splits["train"] = _Distinct(splits["train"], splits["validation"], data, removed)
  if data.tokenizer == "bytes":
    tokens = tokenizer.bytes_tokenizer()
  elif data.tokenizer.endswith(".json"):
    tokens = _given(data)
  else:
    tokens = tokenizer.from_text(tokenizer.train_bpe(_first(splits["train"]), data.vocab_size))
  folder = _folder(data, manifest)
  with new_folder(folder) as temporary:
    card: dict[str, Any] = {
      "name": data.name,
      "sha256": manifest,
      "tokenizer": tokens.name,
      "tokenizer_sha256": tokens.sha256,
      "vocab": tokens.vocab,
      "splits": {},
    }
    (temporary / "tokenizer.json").write_text(tokens.text)
    for split, texts in splits.items():
      removed.clear()
      card["splits"][split] = _write_split(temporary, split, texts, tokens)
      require(card["splits"][split]["documents"] > 0, f"config.data: no document is left in split {split!r}; {removed}")
      card["steps"] = card.get("steps", {}) | removed
    if data.mixture:
      card["parts"] = part_names(data)
      np.save(temporary / "validation.parts.npy", np.asarray(heldout.parts, np.int32))
    np.save(temporary / "validation.documents.npy", np.asarray(heldout.documents, np.int64))
    write_json(temporary / "card.json", card)
  corpus = _open(data, manifest)
  assert corpus is not None
  return corpus


Opened = list[tuple[float, str, dict[str, Sequence]]]  # weight, field of the text and splits of each part of a mixture
COPIES = "copies of held-out documents dropped"


def _documents(opened: Opened, split: str) -> list[Iterator[tuple[str, list[int]]]]:
  """For each part, its texts with fingerprints: of the whole document and then, where the text is a piece, of it."""

  def of_part(key: str, rows: Sequence) -> Iterator[tuple[str, list[int]]]:
    for row in rows:
      text = _text(row[key])
      known = _text(row[builders.IDENTITIES]) if builders.IDENTITIES in row else sources.identity([text])
      yield text, [int(one[:16], 16) for one in known.split()]

  return [of_part(key, splits[split]) for _, key, splits in opened]


@dataclasses.dataclass(frozen=True)
class _HeldOut:
  """The held-out texts of all parts, each text once, so that each part has its share of the bytes at any place.

  `parts` and `documents` are the part and the number of the document of each text, as of the last time.
  """

  opened: Opened
  parts: list[int] = dataclasses.field(default_factory=list)
  documents: list[int] = dataclasses.field(default_factory=list)

  def __iter__(self) -> Iterator[str]:
    self.parts.clear()
    self.documents.clear()
    numbers: dict[int, int] = {}
    parts = dict(enumerate(_documents(self.opened, "validation")))
    spent, seen = dict.fromkeys(parts, 0.0), set()
    while parts:
      part = min(spent, key=lambda i: spent[i])
      text, fingerprints = next(parts[part], ("", []))
      if not fingerprints:
        del parts[part], spent[part]
      elif not seen.issuperset(fingerprints):  # parts may hold out the same documents
        seen.update(fingerprints)
        spent[part] += len(text.encode()) / self.opened[part][0]
        self.parts.append(part)
        self.documents.append(numbers.setdefault(fingerprints[0], len(numbers)))
        yield text

  def fingerprints(self) -> set[int]:
    """Of all held-out texts, and of the documents that they are pieces of."""
    return {one for rows in _documents(self.opened, "validation") for _, found in rows for one in found}


@dataclasses.dataclass(frozen=True)
class _Training:
  """The training texts of all parts, so that each has its share of the bytes at any place; ends with the first part.

  What any part holds out is left out, whichever part it is in: copies of the same words, pieces of a document that is
  held out, and pieces that are equal to held-out ones. `removed` counts these.
  """

  opened: Opened
  heldout: set[int]
  removed: dict[str, int]

  def __iter__(self) -> Iterator[str]:
    self.removed[COPIES] = 0
    parts = _documents(self.opened, "train")
    spent = np.zeros(len(parts))
    while True:
      behind = int(np.argmin(spent))
      text, fingerprints = next(parts[behind], ("", []))
      if not fingerprints:
        return
      if not self.heldout.isdisjoint(fingerprints):
        self.removed[COPIES] += 1
        continue
      spent[behind] += len(text.encode()) / self.opened[behind][0]
      yield text


@dataclasses.dataclass(frozen=True)
class _Distinct:
  """Training texts but those that are like one before or share a passage with held-out ones; `removed` counts."""

  train: Iterable[str]
  heldout: Iterable[str]
  data: Config
  removed: dict[str, int]

  def __iter__(self) -> Iterator[str]:
    near, passages = duplicates.NearDuplicates(self.data.near_duplicates), duplicates.Passages()
    for text in self.heldout:
      near.remember(duplicates.signature(text))
      passages.add(text)
    found = f"contaminated {'dropped' if self.data.decontaminate == 'drop' else 'found'}"
    asked = {"near_duplicates dropped": self.data.near_duplicates, found: self.data.decontaminate}
    self.removed.update({name: 0 for name, wanted in asked.items() if wanted})
    for text in self.train:
      if self.data.near_duplicates and not near.add(text):
        self.removed["near_duplicates dropped"] += 1
        continue
      if self.data.decontaminate and passages.shared(text):
        self.removed[found] += 1
        if self.data.decontaminate == "drop":
          continue
      yield text


def _write_split(folder: Path, split: str, texts: Iterable[str], tokens: tokenizer.Tokenizer) -> dict[str, int]:
  """Streams one split to `SPLIT.tokens.npy` and `SPLIT.starts.npy`; returns its facts.

  For what is held out, `validation.bytes.npy` says how many bytes of its text each token stands for. They add up to
  the bytes of the text: a separator stands for none, but in a text of which the tokenizer makes no token at all.
  """
  kind = np.uint16 if tokens.vocab <= 1 << 16 else np.uint32
  starts, size = [], 0
  with contextlib.ExitStack() as stack:
    ids_file = stack.enter_context(GrowingArray(folder / f"{split}.tokens.npy", kind))
    bytes_file = None
    if split == "validation":
      bytes_file = stack.enter_context(GrowingArray(folder / "validation.bytes.npy", np.uint32))
    for text in texts:
      starts.append(ids_file.rows)
      length = len(text.encode())
      if bytes_file is None:
        ids = tokens.encode(text)
      else:
        ids, counts = tokens.encode_and_count(text)
        bytes_file.append(np.append(counts, length - counts.sum()))
      ids_file.append(np.append(ids, tokens.separator))
      size += length
  np.save(folder / f"{split}.starts.npy", np.asarray(starts, np.int64))
  return {"documents": len(starts), "bytes": size, "tokens": ids_file.rows}


def _text(value: Any) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _first(texts):
  """As many documents as BPE training needs: it gains nothing from more."""
  size = 0
  for text in texts:
    if size > BPE_TRAINING_BYTES:
      return
    size += len(text)
    yield text

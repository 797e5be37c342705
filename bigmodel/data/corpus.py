"""A corpus as arrays: documents tokenized once, joined by separators, cached by content."""

import contextlib
import dataclasses
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import sources, tokenizer, user_documents
from bigmodel.data.corpus_files import MissingFilesError
from bigmodel.data.mixture import components, part_names
from bigmodel.data.prepared import GrowingArray, new_folder, open_array
from bigmodel.data.sources import Documents
from bigmodel.data.texts import Distinct, HeldOut, Part, Training
from bigmodel.declarations import Value
from bigmodel.files import JsonObject, cache_dir, only_one, read_json, sha256_text, write_json
from bigmodel.readers import downloads, json_document

log = logging.getLogger("bigmodel")
FORMAT = 3  # of the files in a prepared folder; folders of other formats are ignored
BPE_TRAINING_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Both splits as arrays of tokens; `starts` are the places where texts begin: documents or pieces of long ones."""

  sha256: str
  vocab: int
  tokens: dict[str, np.ndarray]
  starts: dict[str, np.ndarray]
  bytes: dict[str, int]
  heldout_bytes: np.ndarray | None  # bytes of text that each held-out token stands for; None: tokens without text
  card: JsonObject
  documents: np.ndarray  # the number of the document of each held-out text
  parts: np.ndarray | None = None  # of a mixture: the part of each held-out text, in the order of card["parts"]

  @property
  def facts(self) -> dict[str, Value]:
    """What a model takes from its data."""
    return {"vocab": self.vocab}


@dataclasses.dataclass(frozen=True)
class _Recipe:
  """Everything that decides the content of a corpus."""

  data: Config
  parts: list[tuple[float, Documents]]  # empty if the files are not at their path any more

  @property
  def sha256(self) -> str:
    """The hash of the documents and of the steps that drop some of them."""
    if not self.parts:
      return self.data.sha256
    hashes = [(weight, documents.sha256) for weight, documents in self.parts]
    steps = [self.data.near_duplicates, self.data.decontaminate]
    return hashes[0][1] if len(hashes) == 1 and not any(steps) else sha256_text(json.dumps([hashes, steps]))

  @property
  def passed_over(self) -> dict[str, int]:
    """The number of files that are not read, by suffix."""
    return dict(sum((Counter(documents.passed_over) for _, documents in self.parts), Counter[str]()))

  @property
  def folder(self) -> Path:
    """The folder of the corpus; its name is a hash of everything that decides its content."""
    kind: list[object] = [self.data.tokenizer]
    if self.data.tokenizer in ("bpe", "ids"):
      kind.append(self.data.vocab_size)
    elif self.data.tokenizer.endswith(".json"):
      given = _tokenizer_file(self.data)
      kind = [given.sha256, given.begin, given.separator]
    names = part_names(self.data) if self.data.mixture else []
    return cache_dir() / "tokens" / sha256_text(json.dumps([FORMAT, names, self.sha256, kind]))[:16]


def recipe(data: Config) -> _Recipe:
  """The recipe of the corpus of `config.data`. Nothing is prepared for it.

  If its files are not at their path any more, a corpus in the cache that has the hash of the config is taken.
  """
  try:
    return _Recipe(data, [(weight, user_documents.read(part)) for weight, part in components(data)])
  except MissingFilesError as error:
    prepared = _Recipe(data, [])
    if not data.sha256 or not (prepared.folder / "card.json").exists():
      raise
    log.warning("%s; the prepared corpus with the same hash is used", error)
    return prepared


def prepare(config: Config) -> Corpus:
  """Opens the corpus of `config.data`, preparing and tokenizing it the first time."""
  data, of = config.data, recipe(config.data)
  corpus = _open(of)
  if corpus is None:
    with only_one(of.sha256[:16]):
      corpus = _open(of) or _build(of)
  require(
    data.sha256 in ("", corpus.sha256),
    f"config.data.sha256: the corpus here is {corpus.sha256[:12]}..., not {data.sha256[:12]}..."
    " (other versions of the distributions or changed files)",
  )
  for split in sources.SPLITS:
    rows = (len(corpus.tokens[split]) - 1) // data.context
    require(
      rows > 0,
      f"config.data.context: {data.context} is longer than the {split} documents allow"
      f" ({len(corpus.tokens[split])} tokens in all){_more_heldout(data, corpus, split)}",
    )
  return corpus


def _more_heldout(data: Config, corpus: Corpus, split: str) -> str:
  """What to do about a split that is shorter than a row."""
  tokens = {name: len(array) for name, array in corpus.tokens.items()}
  share = 1.2 * (data.context + 1) / sum(tokens.values())  # a document more or less may be held out
  fraction = math.ceil(100 * max(share, data.heldout_fraction)) / 100
  if split == "train" or data.name in ("python_source", "tfds") or fraction > 1 / 2:
    return "; give more text, or a shorter context"
  return f"; a larger heldout_fraction than {data.heldout_fraction:g}, such as {fraction:g}, holds out more"


def _open(of: _Recipe) -> Corpus | None:
  folder = of.folder
  if not (folder / "card.json").exists():
    return None
  # The cache is shared by content, and these facts may differ where the content is the same.
  card = read_json(folder / "card.json") | {"name": sources.label(of.data), "passed_over": of.passed_over}
  has_bytes = (folder / "validation.bytes.npy").exists()
  return Corpus(
    sha256=card["sha256"],
    vocab=card["vocab"],
    tokens={split: open_array(folder / f"{split}.tokens.npy") for split in card["splits"]},
    starts={split: open_array(folder / f"{split}.starts.npy") for split in card["splits"]},
    bytes={split: card["splits"][split]["bytes"] for split in card["splits"]},
    heldout_bytes=open_array(folder / "validation.bytes.npy") if has_bytes else None,
    card=card,
    documents=open_array(folder / "validation.documents.npy"),
    parts=open_array(folder / "validation.parts.npy") if "parts" in card else None,
  )


def tokenizer_of(config: Config) -> tokenizer.Tokenizer:
  """The tokenizer of the corpus of `config.data`."""
  data = config.data
  if data.tokenizer == "bpe":
    prepare(config)
    return tokenizer.from_text((recipe(data).folder / "tokenizer.json").read_text())
  return _fixed_tokenizer(data)


def _fixed_tokenizer(data: Config) -> tokenizer.Tokenizer:
  """The tokenizer of `config.data`, which is not trained on the corpus."""
  if data.tokenizer == "bytes":
    return tokenizer.bytes_tokenizer()
  return tokenizer.ids_tokenizer(data.vocab_size) if data.tokenizer == "ids" else _tokenizer_file(data)


def _tokenizer_file(data: Config) -> tokenizer.Tokenizer:
  """The tokenizer of a file; imported.json beside it has the ids that begin and end a text."""
  path = Path(data.tokenizer).expanduser()
  require((path.parent / "imported.json").is_file(), f"config.data.tokenizer: no imported.json beside {path}")
  marks = read_json(path.parent / "imported.json")
  require(marks["end"] is not None, f"config.data.tokenizer: {path} has no token that ends a text")
  content = json_document.content(path)
  problem = downloads.mistaken(content[: downloads.ENOUGH])
  require(not problem, f"config.data.tokenizer: {path}: {problem}")
  return tokenizer.from_text(json_document.decoded(content, path), marks["begin"], marks["end"])


def _build(of: _Recipe) -> Corpus:
  data, folder = of.data, of.folder
  mixture = [Part(weight, documents.open()) for weight, documents in of.parts]
  removed: dict[str, int] = {}
  heldout = HeldOut(mixture)
  train: Iterable[str] = Training(mixture, heldout.fingerprints(), removed)
  if data.near_duplicates or data.decontaminate:
    train = Distinct(train, heldout, data.near_duplicates, data.decontaminate, removed)
  if data.tokenizer == "bpe":
    tokens = tokenizer.from_text(tokenizer.train_bpe(_first(train), data.vocab_size))
  else:
    tokens = _fixed_tokenizer(data)
  counts: dict[str, dict[str, int]] = {}
  steps = dict(sum((Counter(documents.skipped) for _, documents in of.parts), Counter[str]()))
  with new_folder(folder) as temporary:
    (temporary / "tokenizer.json").write_text(tokens.text)
    for split, texts in (("train", train), ("validation", heldout)):
      removed.clear()
      counts[split] = _write_split(temporary, split, texts, tokens)
      require(counts[split]["documents"] > 0, f"config.data: no document is left in split {split!r}; {removed}")
      steps |= removed
    np.save(temporary / "validation.documents.npy", np.asarray(heldout.documents, np.int64))
    card: JsonObject = {
      "name": sources.label(data),
      "sha256": of.sha256,
      "tokenizer": tokens.name,
      "tokenizer_sha256": tokens.sha256,
      "vocab": tokens.vocab,
      "splits": counts,
      "steps": steps,
    }
    if data.mixture:
      card["parts"] = part_names(data)
      np.save(temporary / "validation.parts.npy", np.asarray(heldout.parts, np.int32))
    write_json(temporary / "card.json", card)
  corpus = _open(of)
  assert corpus is not None
  return corpus


def _write_split(folder: Path, split: str, texts: Iterable[str], tokens: tokenizer.Tokenizer) -> dict[str, int]:
  """Streams one split to `SPLIT.tokens.npy` and `SPLIT.starts.npy`; returns its counts.

  For the held-out split, `validation.bytes.npy` has the number of bytes of text that each token stands for. They add
  up to the bytes of the text: a separator stands for none, except in a text of which the tokenizer makes no token.
  """
  dtype = np.uint16 if tokens.vocab <= 1 << 16 else np.uint32
  starts, size = [], 0
  with contextlib.ExitStack() as stack:
    ids_file = stack.enter_context(GrowingArray(folder / f"{split}.tokens.npy", dtype))
    bytes_file = None
    if split == "validation" and tokens.of_text:
      bytes_file = stack.enter_context(GrowingArray(folder / "validation.bytes.npy", np.uint32))
    for text in texts:
      starts.append(ids_file.rows)
      length = len(text.encode()) if tokens.of_text else 0
      if bytes_file is None:
        ids = tokens.encode(text)
      else:
        ids, counts = tokens.encode_and_count(text)
        bytes_file.append(np.append(counts, length - counts.sum()))
      ids_file.append(np.append(ids, tokens.separator))
      size += length
  np.save(folder / f"{split}.starts.npy", np.asarray(starts, np.int64))
  return {"documents": len(starts), "bytes": size, "tokens": ids_file.rows}


def _first(texts: Iterable[str]) -> Iterator[str]:
  """As many texts as BPE training needs; more improve nothing."""
  size = 0
  for text in texts:
    if size > BPE_TRAINING_BYTES:
      return
    size += len(text)
    yield text

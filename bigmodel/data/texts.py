"""The texts of a corpus, in order: mixed by the weights of its parts, without copies of what is held out."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from bigmodel.data import duplicates
from bigmodel.data.sources import Text

COPIES = "copies of held-out documents dropped"
NEAR_DUPLICATES = "near_duplicates dropped"


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a mixture: its weight, and the texts of its splits."""

  weight: float
  splits: Mapping[str, Iterable[Text]]

  def cost(self, text: str) -> float:
    """What a text adds to the part's share, so that shares are of bytes."""
    return len(text.encode()) / self.weight


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The held-out texts of all parts, each text once; at any place, each part has its share of the bytes so far.

  After an iteration, `parts` and `documents` are the number of the part and of the document of each text.
  """

  mixture: list[Part]
  parts: list[int] = dataclasses.field(default_factory=list)
  documents: list[int] = dataclasses.field(default_factory=list)

  def __iter__(self) -> Iterator[str]:
    self.parts.clear()
    self.documents.clear()
    numbers: dict[int, int] = {}
    parts = {i: iter(part.splits["validation"]) for i, part in enumerate(self.mixture)}
    spent, seen = dict.fromkeys(parts, 0.0), set()
    while parts:
      part = min(spent, key=lambda i: spent[i])
      following = next(parts[part], None)
      if following is None:
        del parts[part], spent[part]
        continue
      text, fingerprints = following
      if not seen.issuperset(fingerprints):  # parts may hold out the same documents
        seen.update(fingerprints)
        spent[part] += self.mixture[part].cost(text)
        self.parts.append(part)
        self.documents.append(numbers.setdefault(fingerprints[0], len(numbers)))
        yield text

  def fingerprints(self) -> set[int]:
    """The fingerprints of all held-out texts and of their documents."""
    return {
      fingerprint for part in self.mixture for text in part.splits["validation"] for fingerprint in text.fingerprints
    }


@dataclasses.dataclass(frozen=True)
class Training:
  """The training texts of all parts; at any place, each part has its share of the bytes so far. Ends with any part.

  Texts that any part holds out are left out: copies with the same words, pieces of a held-out document, and pieces
  that equal held-out ones. `removed` counts them.
  """

  mixture: list[Part]
  heldout: set[int]  # fingerprints
  removed: dict[str, int]

  def __iter__(self) -> Iterator[str]:
    self.removed[COPIES] = 0
    parts = [iter(part.splits["train"]) for part in self.mixture]
    spent = np.zeros(len(parts))
    while True:
      behind = int(np.argmin(spent))
      following = next(parts[behind], None)
      if following is None:
        return
      text, fingerprints = following
      if not self.heldout.isdisjoint(fingerprints):
        self.removed[COPIES] += 1
        continue
      spent[behind] += self.mixture[behind].cost(text)
      yield text


@dataclasses.dataclass(frozen=True)
class Distinct:
  """Training texts that are not near-duplicates of earlier ones and share no passage with held-out ones.

  `near_duplicates` and `decontaminate` are the fields of `config.data`; `removed` counts the texts.
  """

  train: Iterable[str]
  heldout: Iterable[str]
  near_duplicates: float
  decontaminate: str
  removed: dict[str, int]

  def __iter__(self) -> Iterator[str]:
    near, passages = duplicates.NearDuplicates(self.near_duplicates), duplicates.Passages()
    for text in self.heldout:
      near.remember(duplicates.signature(text))
      passages.add(text)
    contaminated = f"contaminated {'dropped' if self.decontaminate == 'drop' else 'found'}"
    if self.near_duplicates:
      self.removed[NEAR_DUPLICATES] = 0
    if self.decontaminate:
      self.removed[contaminated] = 0
    for text in self.train:
      if self.near_duplicates and not near.add(text):
        self.removed[NEAR_DUPLICATES] += 1
        continue
      if self.decontaminate and passages.shared(text):
        self.removed[contaminated] += 1
        if self.decontaminate == "drop":
          continue
      yield text

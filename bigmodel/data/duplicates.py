"""Near-duplicate documents, and passages that training documents share with held-out ones.

Both compare shingles: all substrings of a fixed number of bytes, in lower case and with single spaces. NumPy computes
their rolling hashes for all places of a document at once.
"""

import numpy as np

SHINGLE = 24  # bytes per shingle of near-duplicates
PASSAGE = 100  # a document is contaminated if it shares a passage of so many bytes
BINS = 128  # per signature
BANDS = 32  # of 4 bins each; only documents that agree in all bins of a band are compared
SAMPLED = 16  # one in so many hashes of passages is kept

_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_PRIME), -1, 1 << 64))


def hashes(text: str, width: int) -> np.ndarray:
  """Hashes of all substrings of `width` bytes, uint64; a shorter text has one hash."""
  data = np.frombuffer(" ".join(text.lower().split()).encode(), np.uint8).astype(np.uint64) + np.uint64(1)
  width = max(1, min(width, len(data)))
  with np.errstate(over="ignore"):
    powers = np.cumprod(np.full(len(data), _PRIME))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(data * powers)])
    runs = (sums[width:] - sums[:-width]) * np.cumprod(np.full(len(data) - width + 1, _INVERSE))
    # The low bits of a polynomial depend on few bytes, so they are mixed by the finalizer of SplitMix64.
    runs = (runs ^ (runs >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    runs = (runs ^ (runs >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return runs ^ (runs >> np.uint64(31))


def signature(text: str) -> np.ndarray:
  """One-permutation MinHash (Li, Owen and Zhang 2012), uint64[BINS]; empty bins have their neighbour's value."""
  runs = hashes(text, SHINGLE)
  bins = (runs >> np.uint64(57)).astype(np.int64)  # 128
  least = np.full(BINS, np.iinfo(np.uint64).max)
  np.minimum.at(least, bins, runs)
  filled = np.flatnonzero(least < np.iinfo(np.uint64).max)
  if not len(filled):
    return least
  return least[filled[np.searchsorted(filled, np.arange(BINS)) % len(filled)]]


class NearDuplicates:
  """A set of documents without near-duplicates: pairs with an estimated Jaccard index of at least `least`."""

  def __init__(self, least: float):
    self.least = least
    self._signatures: list[np.ndarray] = []
    self._bands: dict[tuple[int, bytes], list[int]] = {}

  def add(self, text: str) -> bool:
    """Adds a document unless it is a near-duplicate of one in the set; returns whether it was added."""
    new = signature(text)
    for index in {index for band in _bands(new) for index in self._bands.get(band, ())}:
      if np.mean(self._signatures[index] == new) >= self.least:
        return False
    self.remember(new)
    return True

  def remember(self, signature_: np.ndarray) -> None:
    """Adds the document with this signature."""
    for band in _bands(signature_):
      self._bands.setdefault(band, []).append(len(self._signatures))
    self._signatures.append(signature_)


def _bands(signature_: np.ndarray) -> list[tuple[int, bytes]]:
  return [(i, part.tobytes()) for i, part in enumerate(signature_.reshape(BANDS, -1))]


class Passages:
  """Passages of held-out documents. A shared passage of 100 bytes more than `PASSAGE` is detected in 99.8% of cases."""

  def __init__(self):
    self._parts: list[np.ndarray] = []
    self._hashes: np.ndarray | None = None

  def add(self, text: str) -> None:
    """Adds the passages of a held-out document."""
    self._parts.append(self._sample(text))
    self._hashes = None

  def shared(self, text: str) -> bool:
    """Whether a document shares a passage with one that was added."""
    if self._hashes is None:
      self._hashes = np.unique(np.concatenate([*self._parts, np.empty(0, np.uint64)]))
      self._parts = [self._hashes]
    sample = self._sample(text)
    if not len(self._hashes) or not len(sample):
      return False
    nearest = np.minimum(np.searchsorted(self._hashes, sample), len(self._hashes) - 1)
    return bool((self._hashes[nearest] == sample).any())

  @staticmethod
  def _sample(text: str) -> np.ndarray:
    if len(text) < PASSAGE:
      return np.empty(0, np.uint64)
    runs = hashes(text, PASSAGE)
    return runs[runs % np.uint64(SAMPLED) == 0]

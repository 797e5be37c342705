"""Documents that are much alike, and passages that training shares with what is held out.

Both look at shingles: every run of some bytes, in lower case and with single spaces, by a
rolling hash that NumPy computes for all places of a document at once.
"""

import numpy as np

SHINGLE = 24  # bytes that near-duplicates are compared by
PASSAGE = 100  # bytes in common that make a document contaminated
BINS = 128  # of a signature
BANDS = 32  # of 4 bins each: documents are compared that agree on all of one
SAMPLED = 16  # of the hashes of passages one in so many is kept

_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_PRIME), -1, 1 << 64))


def hashes(text: str, width: int) -> np.ndarray:
  """Hashes of all runs of `width` bytes; of a shorter text, one."""
  data = np.frombuffer(" ".join(text.lower().split()).encode(), np.uint8).astype(np.uint64) + np.uint64(1)
  width = max(1, min(width, len(data)))
  with np.errstate(over="ignore"):
    powers = np.cumprod(np.full(len(data), _PRIME))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(data * powers)])
    runs = (sums[width:] - sums[:-width]) * np.cumprod(np.full(len(data) - width + 1, _INVERSE))
    # Mixed, since the low bits of a polynomial depend on few bytes (the finalizer of SplitMix64).
    runs = (runs ^ (runs >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    runs = (runs ^ (runs >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return runs ^ (runs >> np.uint64(31))


def signature(text: str) -> np.ndarray:
  """MinHash by one permutation (Li, Owen and Zhang 2012), uint64[BINS]; empty bins take their neighbour's."""
  runs = hashes(text, SHINGLE)
  bins = (runs >> np.uint64(57)).astype(np.int64)  # 128
  least = np.full(BINS, np.iinfo(np.uint64).max)
  np.minimum.at(least, bins, runs)
  filled = np.flatnonzero(least < np.iinfo(np.uint64).max)
  if not len(filled):
    return least
  return least[filled[np.searchsorted(filled, np.arange(BINS)) % len(filled)]]


class NearDuplicates:
  """Remembers documents; says which are alike one that it knows: an estimated Jaccard index of at least `least`."""

  def __init__(self, least: float):
    self.least = least
    self._signatures: list[np.ndarray] = []
    self._bands: dict[tuple[int, bytes], list[int]] = {}

  def add(self, text: str) -> bool:
    """Whether a document is new; it is remembered if so."""
    own = signature(text)
    for known in {place for band in _bands(own) for place in self._bands.get(band, ())}:
      if np.mean(self._signatures[known] == own) >= self.least:
        return False
    self.remember(own)
    return True

  def remember(self, own: np.ndarray) -> None:
    for band in _bands(own):
      self._bands.setdefault(band, []).append(len(self._signatures))
    self._signatures.append(own)


def _bands(own: np.ndarray) -> list[tuple[int, bytes]]:
  return [(i, part.tobytes()) for i, part in enumerate(own.reshape(BANDS, -1))]


class Passages:
  """Passages of held-out documents. One that is 100 bytes longer than `PASSAGE` is found in 99.8 of 100 cases."""

  def __init__(self):
    self._parts: list[np.ndarray] = []
    self._known: np.ndarray | None = None

  def add(self, text: str) -> None:
    self._parts.append(self._sample(text))
    self._known = None

  def shared(self, text: str) -> bool:
    """Whether a document has a passage in common with one of those that were added."""
    if self._known is None:
      self._known = np.unique(np.concatenate([*self._parts, np.empty(0, np.uint64)]))
      self._parts = [self._known]
    own = self._sample(text)
    if not len(self._known) or not len(own):
      return False
    at = np.minimum(np.searchsorted(self._known, own), len(self._known) - 1)
    return bool((self._known[at] == own).any())

  @staticmethod
  def _sample(text: str) -> np.ndarray:
    if len(text) < PASSAGE:
      return np.empty(0, np.uint64)
    runs = hashes(text, PASSAGE)
    return runs[runs % np.uint64(SAMPLED) == 0]

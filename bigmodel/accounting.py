"""Named conventions for parameters and FLOPs; no bare counts anywhere.

A model says its own `Counts` (see `models/`); this module turns them and a
number of tokens (of examples, where a model reads no tokens) into every convention, side by side:

- `flops_6nd`                 6 N D with all parameters that a token meets (Hoffmann et al. 2022, section 3)
- `flops_6nd_non_embedding`   6 N D with those but the embeddings (Kaplan et al. 2020)
- `flops_chinchilla`          Hoffmann et al. 2022, appendix F; for what is no decoder, `flops_exact`
- `flops_exact`               the matrix products that training computes, causal attention at half
- `flops_hardware`            `flops_exact` plus what recomputation and empty slots of experts add
"""

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

CONVENTIONS = (
  "flops_6nd",
  "flops_6nd_non_embedding",
  "flops_chinchilla",
  "flops_exact",
  "flops_hardware",
)


class Params(TypedDict):
  """Numbers of parameters, under every convention."""

  params_total: int
  params_non_embedding: int
  params_active: int  # those that a token meets: fewer in a mixture of experts


class Flops(TypedDict):
  """FLOPs of training, under every convention."""

  flops_6nd: float
  flops_6nd_non_embedding: float
  flops_chinchilla: float
  flops_exact: float
  flops_hardware: float


class Recomputed(NamedTuple):
  """FLOPs that the backward pass computes again, by `config.parallel.remat`; zeros for a model without blocks."""

  dots: float = 0.0
  full: float = 0.0

  def times(self, blocks: float) -> "Recomputed":
    return Recomputed(self.dots * blocks, self.full * blocks)


NOTHING_AGAIN = Recomputed()


@dataclass(frozen=True)
class Counts:
  """What a model says of itself: parameters, and FLOPs of a forward and backward pass per token or example."""

  params_total: int
  params_non_embedding: int
  params_active: int
  chinchilla_per_token: float
  exact_per_token: float
  hardware_per_token: float  # with empty slots of experts, without recomputation
  recomputed_per_token: Recomputed = NOTHING_AGAIN  # with empty slots of experts

  def params(self) -> Params:
    return {
      "params_total": self.params_total,
      "params_non_embedding": self.params_non_embedding,
      "params_active": self.params_active,
    }

  def flops(self, tokens: int, remat: str = "none") -> Flops:
    """FLOPs of training on `tokens`, under every convention; `remat` decides what is computed twice."""
    dots, full = self.recomputed_per_token
    again = {"none": 0.0, "dots": dots, "full": full, "offload": full}
    return {
      "flops_6nd": 6.0 * self.params_active * tokens,
      "flops_6nd_non_embedding": 6.0 * (self.params_active - self.embedding) * tokens,
      "flops_chinchilla": self.chinchilla_per_token * tokens,
      "flops_exact": self.exact_per_token * tokens,
      "flops_hardware": (self.hardware_per_token + again[remat]) * tokens,
    }

  def flops_in(self, convention: str, tokens: int) -> float:
    """FLOPs of training on `tokens`, under one convention."""
    return {**self.flops(tokens)}[convention]

  @property
  def embedding(self) -> int:
    return self.params_total - self.params_non_embedding


def plain_counts(params: int, forward: float, embedding: int = 0, recomputed: Recomputed = NOTHING_AGAIN) -> Counts:
  """Counts of a model without conventions of its own; `forward` are the FLOPs of a forward pass."""
  return Counts(params, params - embedding, params, 3 * forward, 3 * forward, 3 * forward, recomputed)


def params_of(convention: str) -> str:
  """The name of N, the parameters that go with a FLOP convention in a law; `params_in` counts them."""
  return "params_non_embedding" if convention == "flops_6nd_non_embedding" else "params_active"


def params_in(facts: Params, convention: str) -> int:
  """N as a FLOP convention counts it, from a record's parameter counts or those of `Counts.params()`.

  The parameters that a token meets: of a mixture of experts they alone make FLOPs, so that C = 6 N D.
  """
  active = facts["params_active"]
  embedding = facts["params_total"] - facts["params_non_embedding"]
  return active - embedding if convention == "flops_6nd_non_embedding" else active

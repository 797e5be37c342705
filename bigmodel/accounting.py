"""Counts of parameters and FLOPs, each under a named convention.

A model computes its `Counts` (see `models/`). From them and a number of tokens (or examples,
for models that read no tokens) this module computes the FLOPs under every convention:

- `flops_6nd`                 6 N D with all parameters that process a token (Hoffmann et al. 2022, section 3)
- `flops_6nd_non_embedding`   6 N D with these parameters without embeddings (Kaplan et al. 2020)
- `flops_chinchilla`          Hoffmann et al. 2022, appendix F; `flops_exact` for models other than decoders
- `flops_exact`               the matrix products of training, with causal attention counted at half
- `flops_hardware`            `flops_exact` plus recomputation and empty slots of experts
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
  params_active: int  # those that process a token: fewer in a mixture of experts


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
  """The parameters of a model, and its FLOPs of a forward and backward pass per token or example."""

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
    """FLOPs of training on `tokens`, under every convention; `remat` decides what the backward pass recomputes."""
    dots, full = self.recomputed_per_token
    recomputed = {"none": 0.0, "dots": dots, "full": full, "offload": full}
    return {
      "flops_6nd": 6.0 * self.params_active * tokens,
      "flops_6nd_non_embedding": 6.0 * (self.params_active - self.embedding) * tokens,
      "flops_chinchilla": self.chinchilla_per_token * tokens,
      "flops_exact": self.exact_per_token * tokens,
      "flops_hardware": (self.hardware_per_token + recomputed[remat]) * tokens,
    }

  def flops_in(self, convention: str, tokens: int) -> float:
    """FLOPs of training on `tokens`, under one convention."""
    return {**self.flops(tokens)}[convention]

  @property
  def embedding(self) -> int:
    return self.params_total - self.params_non_embedding


def plain_counts(params: int, forward: float, embedding: int = 0, recomputed: Recomputed = NOTHING_AGAIN) -> Counts:
  """Counts of a model for which the FLOP conventions agree; `forward` are the FLOPs of a forward pass."""
  return Counts(params, params - embedding, params, 3 * forward, 3 * forward, 3 * forward, recomputed)


def params_of(convention: str) -> str:
  """The name of N, the parameters that go with a FLOP convention in a law; `params_in` counts them."""
  return "params_non_embedding" if convention == "flops_6nd_non_embedding" else "params_active"


def params_in(facts: Params, convention: str) -> int:
  """N as a FLOP convention counts it, from a record's parameter counts or those of `Counts.params()`.

  These are the parameters that process a token. In a mixture of experts only these cost FLOPs, so that C = 6 N D.
  """
  active = facts["params_active"]
  embedding = facts["params_total"] - facts["params_non_embedding"]
  return active - embedding if convention == "flops_6nd_non_embedding" else active

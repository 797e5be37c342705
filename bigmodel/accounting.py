"""Named conventions for parameters and FLOPs; no bare counts anywhere.

A model says its own `Counts` (see `models/`); this module turns them and a
number of tokens (of examples, where a model reads no tokens) into every convention, side by side:

- `flops_6nd`                 6 N D with all parameters (Hoffmann et al. 2022, section 3)
- `flops_6nd_non_embedding`   6 N D without embeddings (Kaplan et al. 2020)
- `flops_chinchilla`          Hoffmann et al. 2022, appendix F; for what is no decoder, `flops_exact`
- `flops_exact`               the matrix products that training computes, causal attention at half
- `flops_hardware`            `flops_exact` plus what recomputation and empty slots of experts add
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONVENTIONS = (
  "flops_6nd",
  "flops_6nd_non_embedding",
  "flops_chinchilla",
  "flops_exact",
  "flops_hardware",
)


@dataclass(frozen=True)
class Counts:
  """What a model says of itself: parameters, and FLOPs of a forward and backward pass per token or example."""

  params_total: int
  params_non_embedding: int
  params_active: int
  chinchilla_per_token: float
  exact_per_token: float
  hardware_per_token: float  # with empty slots of experts; recomputation is added by whoever recomputes
  layers_per_token: float  # the part of `exact_per_token` that is in the layers
  attention_per_token: float  # the part of that which is products of activations with each other

  def params(self) -> dict[str, int]:
    return {
      "params_total": self.params_total,
      "params_non_embedding": self.params_non_embedding,
      "params_active": self.params_active,
    }

  def flops(self, tokens: int, remat: str = "none") -> dict[str, float]:
    """FLOPs of training on `tokens`, under every convention; `remat` decides what is computed twice."""
    again = {"none": 0.0, "dots": self.attention_per_token, "full": self.layers_per_token}
    again["offload"] = again["full"]
    return {
      "flops_6nd": 6.0 * self.params_active * tokens,
      "flops_6nd_non_embedding": 6.0 * (self.params_active - self.embedding) * tokens,
      "flops_chinchilla": self.chinchilla_per_token * tokens,
      "flops_exact": self.exact_per_token * tokens,
      "flops_hardware": (self.hardware_per_token + again[remat] / 3) * tokens,
    }

  @property
  def embedding(self) -> int:
    return self.params_total - self.params_non_embedding


def plain_counts(params: int, forward: float, embedding: int = 0, layers: float | None = None) -> Counts:
  """Counts of a model without conventions of its own; FLOPs are of a forward pass, `layers` of them in its layers."""
  layers = forward if layers is None else layers
  return Counts(params, params - embedding, params, 3 * forward, 3 * forward, 3 * forward, 3 * layers, 0.0)


def params_of(convention: str) -> str:
  """The name of N, the parameters that go with a FLOP convention in a law; `params_in` counts them."""
  return "params_non_embedding" if convention == "flops_6nd_non_embedding" else "params_active"


def params_in(facts: Mapping[str, Any], convention: str) -> int:
  """N as a FLOP convention counts it, from a record's parameter counts or those of `Counts.params()`.

  The parameters that a token meets: of a mixture of experts they alone make FLOPs, so that C = 6 N D.
  """
  active: int = facts["params_active"]
  embedding = facts["params_total"] - facts["params_non_embedding"]
  return active - embedding if convention == "flops_6nd_non_embedding" else active

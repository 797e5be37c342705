"""Laws of parameters N, tokens D and the bits P of numbers in training or after quantization (Kumar et al. 2024)."""

import jax.numpy as jnp

from bigmodel.laws.law import FEW, POSITIVE, decay, in_units_of, law


@law(
  "precision",
  "Kumar et al. 2024",
  linear=("A", "B", "E"),
  A=POSITIVE,
  B=POSITIVE,
  E=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  bits=POSITIVE,
  grid={"alpha": FEW, "beta": FEW, "bits": (0.05, 0.2)},
  rescale={"bits": in_units_of("bits", "P")},
)
def precision(p, N, D, P):
  """Chinchilla's law of effective parameters N (1 - exp(-P / bits)), for training with P bits."""
  return p.E + p.A * decay(N * -jnp.expm1(-P / p.bits), p.alpha) + p.B * decay(D, p.beta)


@law(
  "quantized",
  "Kumar et al. 2024",
  linear=("A", "B", "E", "T"),
  A=POSITIVE,
  B=POSITIVE,
  E=POSITIVE,
  T=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  gamma_n=(0, 3),
  gamma_d=(0, 3),
  bits=POSITIVE,
  grid={"alpha": FEW, "beta": FEW, "gamma_n": (0.4,), "gamma_d": (0.4,), "bits": (0.05, 0.2)},
  rescale={"bits": in_units_of("bits", "P")},
)
def quantized(p, N, D, P):
  """Chinchilla's law plus T D^gamma_d / N^gamma_n exp(-P / bits), for weights quantized to P bits after training."""
  damage = p.T * decay(D, -p.gamma_d) * decay(N, p.gamma_n) * jnp.exp(-P / p.bits)
  return p.E + p.A * decay(N, p.alpha) + p.B * decay(D, p.beta) + damage

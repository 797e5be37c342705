"""Laws of training: the best settings by size, steps by batch size, and accuracy by loss."""

import jax

from bigmodel.laws.law import POSITIVE, REAL, decay, law


@law(
  "learning_rate",
  "a power law in N and D, as in Porian et al. 2024 and Bjorck et al. 2024",
  linear=("k",),
  k=POSITIVE,
  n=REAL,
  d=REAL,
  grid={"n": (-0.5, -0.1, 0.3), "d": (-0.5, -0.1, 0.3)},
)
def learning_rate(p, N, D):
  """The best learning rate k N^n D^d; the best batch size has the same form."""
  return p.k * decay(N, -p.n) * decay(D, -p.d)


@law(
  "critical_batch",
  "McCandlish et al. 2018, equation 2.11",
  linear=("least", "product"),
  least=POSITIVE,
  product=POSITIVE,
  grid={},
)
def critical_batch(p, B):
  """Steps to a given loss with batch size B: least (1 + critical / B), where product = least * critical."""
  return p.least + p.product / B


@law(
  "link",
  "Bhagia et al. 2024, step 2",
  plain=True,
  low=(0, 1),
  span=(0, 1),
  middle=REAL,
  slope=POSITIVE,
  grid={"low": (0.05, 0.25, 0.5), "span": (0.3, 0.7), "middle": (0.5, 1.0, 2.0, 3.0), "slope": (1.0, 4.0)},
)
def link(p, L):
  """Accuracy as a function of the loss L: a sigmoid that falls from low + span to low, the accuracy of chance."""
  return p.low + p.span * jax.nn.sigmoid(-p.slope * (L - p.middle))

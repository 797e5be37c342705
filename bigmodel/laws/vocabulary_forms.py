"""Laws of vocabularies: parameters N outside of them, characters or tokens D, and the number `vocab` of tokens."""

from bigmodel.laws.law import FEW, POSITIVE, decay, law


@law(
  "vocabulary",
  "Tao et al. 2024",
  linear=("E", "A", "B", "V"),
  E=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  V=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  gamma=(0, 3),
  grid={"alpha": FEW, "beta": FEW, "gamma": FEW},
)
def vocabulary(p, N, D, vocab):
  """L = E + A / N^alpha + B / D^beta + V / vocab^gamma."""
  return p.E + p.A * decay(N, p.alpha) + p.B * decay(D, p.beta) + p.V * decay(vocab, p.gamma)


@law(
  "vocabulary_data",
  "here: a larger vocabulary needs more data",
  linear=("E", "A", "B", "V"),
  E=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  V=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  gamma=(0, 3),
  delta=(-1, 1),
  grid={"alpha": (0.15, 0.5), "beta": (0.15, 0.5), "gamma": (0.1, 0.5), "delta": (0.0, 0.2)},
)
def vocabulary_data(p, N, D, vocab):
  """L = E + A / N^alpha + V / vocab^gamma + B vocab^delta / D^beta.

  Its tokens are rarer, so each is learned from fewer examples: the best vocabulary grows with the data.
  """
  data = decay(D, p.beta) * decay(vocab, -p.delta)
  return p.E + p.A * decay(N, p.alpha) + p.B * data + p.V * decay(vocab, p.gamma)

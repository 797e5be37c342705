"""A first scaling study: how good do small decoders get at Python source, and how large should they be?

On 2 CPU cores, with installation, under 8 minutes: 25 isoFLOP runs on the source of
installed packages, two learning-rate scans, two repeats with other seeds, and a forecast
of a run of 8 times the largest fitted budget.

Smaller budgets than these, or settings that train more slowly, end on the plateau where the
model has learned which byte follows which byte, and not yet to attend. Losses on both sides
of it lie on no common law. Relative positions shorten that plateau.
"""

from bigmodel.study import IsoFlop, Scan, Study, Target, default_config

# Only the width varies, so that the law depends on size alone: 7k to 190k parameters.
SIZES = [
  {"model.width": width, "model.head_size": width // 2} for width in (12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80)
]
BUDGETS = (1e10, 1.6e10, 2.7e10, 4.4e10, 7.3e10, 1.2e11)


def get_config(arg=None):
  del arg
  config = default_config()
  config.data.distributions = (
    "flax", "grain", "jax", "numpy", "orbax-checkpoint", "polars", "pygments", "scipy", "tensorflow-datasets",
  )  # fmt: skip
  config.data.heldout = ("absl-py", "etils", "jinja2", "optax", "rich")
  config.data.context = 64
  config.model.layers = 2
  config.model.heads = 2
  config.model.activation = "relu2"
  config.model.positions = "relative"
  config.model.qk_norm = True  # without it the loss of these small models differs 2 to 3 times as much between seeds
  config.optim.name = "muon"
  config.optim.update_scale = "spectral"
  config.optim.final = 0.0  # a rate that ends at zero leaves less noise between seeds
  config.train.batch_size = 8  # 512 tokens, so that runs of the smallest budgets still have enough steps
  config.train.checkpoint_every = 500
  config.train.log_every = 20
  config.eval.tokens = 1 << 17
  config.eval.batch_size = 128
  return config


def settings(params, tokens):
  """The best learning rate falls with the size and the horizon; the study's scan checks whether it is near the best."""
  return {"optim.lr": float(f"{0.05 * (params / 16_000) ** -0.25 * (tokens / 200_000) ** -0.5:.3g}")}


def get_study(config):
  del config
  return Study(
    name="quickstart",
    question="How good do small decoders get at Python source, and how large should they be for their compute?",
    design=IsoFlop(budgets=BUDGETS, sizes=SIZES, ratios=(4.4, 70)),
    settings=settings,
    seeds=3,
    scan=Scan(factors=(0.5, 2), cells=((BUDGETS[0], 1), (BUDGETS[3], 3))),
    target=Target(flops=8 * BUDGETS[-1], sizes=SIZES[5:]),
  )

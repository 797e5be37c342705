"""A first scaling study: how good do small decoders get at Python source, and how large should they be?

On 2 CPU cores, with installation, under 8 minutes: 23 isoFLOP runs on the source of
installed packages, two learning-rate scans, two repeats with other seeds, and a
forecast of a run of 8 times the largest fitted budget.
"""

from bigmodel.study import IsoFlop, Scan, Study, Target, default_config

# Only the width varies, so that the law depends on size alone: 3.7k to 247k parameters.
SIZES = [
  {"model.width": width, "model.head_size": width // 2} for width in (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96)
]
BUDGETS = (1e10, 1.8e10, 3.4e10, 6.4e10, 1.2e11)


def get_config(arg=None):
  del arg
  config = default_config()
  config.data.distributions = (
    "flax", "grain", "jax", "numpy", "orbax-checkpoint", "polars", "pygments", "scipy", "tensorflow-datasets",
  )  # fmt: skip
  config.data.heldout = ("absl-py", "etils", "jinja2", "optax", "rich")
  config.data.context = 128
  config.model.layers = 2
  config.model.heads = 2
  config.model.activation = "relu2"
  config.model.qk_norm = True  # without it the loss of these small models differs 2 to 3 times as much between seeds
  config.optim.final = 0.0  # a rate that ends at zero leaves less noise between seeds
  config.train.batch_size = 4  # small, so that runs of the smallest budgets still have enough steps
  config.train.checkpoint_every = 500
  config.train.log_every = 20
  config.eval.tokens = 1 << 17
  config.eval.batch_size = 64
  return config


def settings(params, tokens):
  """The learning rate falls with size; the study's scan checks whether it is near the best."""
  del tokens
  return {"optim.lr": float(f"{0.01 * (params / 30_000) ** -0.3:.3g}")}


def get_study(config):
  del config
  return Study(
    name="quickstart",
    question="How good do small decoders get at Python source, and how large should they be for their compute?",
    design=IsoFlop(budgets=BUDGETS, sizes=SIZES, ratios=(6, 160)),
    settings=settings,
    seeds=3,
    scan=Scan(factors=(0.25, 0.5, 2, 4), cells=((BUDGETS[2], 3), (BUDGETS[2], 7))),
    target=Target(flops=8 * BUDGETS[-1], sizes=SIZES[5:]),
  )

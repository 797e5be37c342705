"""A small decoder on the Python source of installed packages: the config that experiments and benchmarks start from.

It sets no size, horizon or learning rate, which each experiment chooses.
"""

from bigmodel import default_config


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

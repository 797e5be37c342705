"""The Transformer of 2017 learns to reverse a row of bytes exactly, within minutes on 2 CPU cores."""

from bigmodel.study import default_config


def get_config(arg=None):
  del arg
  config = default_config("transformer")
  config.model.update(width=64, layers=2, head_size=16)
  config.task.target = "reversed"
  config.data.update(
    distributions=("flax", "jax", "numpy", "scipy"), heldout=("absl-py", "etils", "jinja2", "optax"), context=32
  )
  config.optim.update(lr=2e-3, final=0.0)
  config.train.update(batch_size=64, steps=3000, log_every=50)
  config.eval.update(tokens=1 << 16, batch_size=64)
  return config

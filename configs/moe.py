"""Does a larger mixture of experts, or more text, pay off on Python source? Nine runs, some minutes on 2 cores.

Each token uses two of four experts; the law counts the parameters that a token uses, and their FLOPs.
"""

from bigmodel.study import Fractions, Study, default_config

SIZES = [{"model.width": width} for width in (16, 32, 64)]
AMOUNTS = (500_000, 1_500_000, 4_500_000)


def get_config(arg=None):
  del arg
  config = default_config("decoder")
  config.model.update(layers=2, head_size=16, experts=4, experts_per_token=2, expert_group=32)
  config.task.update(balance_loss=0.01, router_z_loss=0.001)
  config.data.update(
    distributions=("flax", "jax", "numpy", "scipy"), heldout=("absl-py", "etils", "jinja2", "optax"), context=64
  )
  config.optim.update(lr=4e-3, final=0.0)
  config.train.update(batch_size=16, log_every=50)
  config.eval.update(tokens=1 << 16, batch_size=64)
  return config


def get_study(config):
  del config
  return Study(
    name="moe",
    question="Does a larger mixture of experts, or more text, pay off on Python source?",
    design=Fractions(SIZES, AMOUNTS),
    laws=("chinchilla", "overtraining", "kaplan_nd"),
  )

"""Does a larger Vision Transformer, or more data, pay off on Fashion-MNIST? Twelve runs, some minutes on 2 CPU cores.

The images are Debian's package dataset-fashion-mnist; config.data.path names another folder of IDX files.
"""

from bigmodel.study import Fractions, Study, default_config

SIZES = [{"model.width": width} for width in (16, 32, 64)]
AMOUNTS = (2000, 6000, 20_000, 60_000)


def get_config(arg=None):
  del arg
  config = default_config("vit")
  config.model.update(patch=7, layers=3, head_size=16)
  config.optim.update(lr=2e-3, weight_decay=0.05)
  config.train.update(batch_size=64, log_every=50)
  return config


def get_study(config):
  del config
  return Study(
    name="vit",
    question="Does a larger Vision Transformer, or more data, pay off on Fashion-MNIST?",
    design=Fractions(SIZES, AMOUNTS, epochs=3, axis="data.examples"),
    laws=("chinchilla", "overtraining", "kaplan_nd"),
  )

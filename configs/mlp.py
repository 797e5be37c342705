"""Does a wider MLP, or more data, pay off on Fashion-MNIST? Sixteen runs, about 2 minutes on 2 CPU cores.

The images are Debian's package dataset-fashion-mnist; config.data.path names another folder of IDX files.
"""

from bigmodel.study import Fractions, Study, default_config

SIZES = [{"model.hidden": (width, width)} for width in (8, 32, 128, 512)]
AMOUNTS = (1000, 4000, 16_000, 60_000)


def get_config(arg=None):
  del arg
  config = default_config("mlp")
  config.optim.update(lr=1e-3, weight_decay=0.01)
  config.train.update(batch_size=64, log_every=50)
  return config


def get_study(config):
  del config
  return Study(
    name="mlp",
    question="Does a wider MLP, or more data, pay off on Fashion-MNIST?",
    design=Fractions(SIZES, AMOUNTS, epochs=5, axis="data.examples"),
    laws=("chinchilla", "overtraining", "kaplan_nd"),
  )

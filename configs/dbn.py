"""Does pre-training pay off when labels are few? A deep belief net 784-500-500-2000-10 on Fashion-MNIST.

`configs/dbn.py` pre-trains its three layers by contrastive divergence on all 60,000 images, of
which `data.examples` have labels; `configs/dbn.py:plain` is the same net without pre-training.
"""

from bigmodel.errors import UserError
from bigmodel.study import default_config

EPOCHS = 5  # of pre-training each layer


def get_config(arg=None):
  if arg not in (None, "plain"):
    raise UserError(f"configs/dbn.py:{arg}: the only argument is plain")
  config = default_config("dbn")
  config.data.normalise = "unit"
  config.optim.update(lr=1e-3, weight_decay=0.0, final=0.0)
  config.train.update(batch_size=100, tokens=10 * 60_000, log_every=50)
  if arg is None:
    layer = "task.name=contrastive_divergence task.layer={} optim.lr=0.001 train.tokens={} data.examples=0"
    config.train.stages = tuple(layer.format(i, EPOCHS * 60_000) for i in range(3))
  return config

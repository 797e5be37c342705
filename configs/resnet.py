"""A small ResNet on Fashion-MNIST: 92.7% in 11.5 minutes on 2 CPU cores.

With Muon (`optim.name=muon`, `optim.lr=0.01`) and 16 epochs: 93.1% in 26.5 minutes; 93.5% on one H200.

The images are Debian's package dataset-fashion-mnist; config.data.path names another folder of IDX files.
"""

from bigmodel.study import default_config


def get_config(arg=None):
  del arg
  config = default_config("resnet")
  config.model.update(width=16, stages=(1, 1, 1), groups=8)
  config.task.label_smoothing = 0.1
  config.optim.update(lr=5e-3, final=0.0, weight_decay=0.05, warmup=0.1)
  config.train.update(tokens=12 * 60_000, batch_size=128, log_every=50)
  return config

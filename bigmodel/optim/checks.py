"""Checks of `config.optim`: values that are not allowed, and fields that would have no effect."""

from collections.abc import Set

from bigmodel import declarations, user_files
from bigmodel.config import Config, require
from bigmodel.optim import lookup, optimizers, parametrization, schedules, user_optimizers
from bigmodel.optim.fields import FIELDS, Optim
from bigmodel.optim.patterns import parse


def check(config: Config) -> None:
  """Refuses a `config.optim` with values that are not allowed, or with fields that are set but have no effect."""
  optim = config.optim
  declarations.check("optim", Optim, optim)
  declarations.check_fields("optim", optimizers.FIELDS, optim)
  if user_files.is_reference(optim.name):
    user_optimizers.check(optim)
  require(
    optim.skip_above == 0 or optim.skip_above > 1, f"config.optim.skip_above: {optim.skip_above}; 0 or more than 1"
  )
  require(
    optim.schedule != "wsd" or optim.warmup + optim.decay <= 1,
    f"config.optim: warmup {optim.warmup} and decay {optim.decay} are more than the whole run",
  )
  for field in ("rates", "decays"):
    parse(field, optim[field])
  parametrization.check(config)
  for field, reason in _without_effect(optim).items():
    default = FIELDS[field].default
    require(
      optim[field] == default,
      f"config.optim.{field}: {optim[field]!r} has no effect {reason}; leave it at its default, {default!r}",
    )
  require(
    not (lookup.by_name(optim.name).averages and (optim.average or optim.beta1 == 0)),
    f"config.optim: {optim.name} averages parameters itself, with beta1 above 0; set average=0",
  )


def reset_without_effect(optim: Config, keep: Set[str]) -> None:
  """Sets the fields that have no effect beside the others to their defaults, in place, but for those in `keep`."""
  known = optim.name in optimizers.NAMES or user_files.is_reference(optim.name)
  if known and optim.schedule in schedules.SCHEDULES:  # otherwise `check` refuses it
    optim.update({field: FIELDS[field].default for field in _without_effect(optim) if field not in keep})


def _without_effect(optim: Config) -> dict[str, str]:
  """The fields that change nothing beside the others, and why: set, they would only give equal runs different ids."""
  optimizer = lookup.by_name(optim.name)
  name = user_optimizers.title(optim.name)
  reasons = {field: f"on {name}" for field in optimizers.SPECIFIC if field not in optimizer.reads}
  for field in schedules.SPECIFIC:
    if field not in schedules.SCHEDULES[optim.schedule].reads:
      reasons[field] = f"on the {optim.schedule} schedule"
  if optim.weight_decay == 0:
    reasons |= dict.fromkeys(("decays", "independent_decay"), "with weight_decay 0")
  if optimizer.sets_rate:
    reason = f"on {name}, which sets its steps for all parameters itself"
    reasons |= dict.fromkeys(("rates", "decays", "independent_decay"), reason)
    if "weight_decay" not in optimizer.parameters:
      reasons["weight_decay"] = reason
  if optim.parametrization == "standard":
    reasons["base"] = "on the standard parametrization (mup and completep read it)"
  return reasons

"""What is doubtful about points: the same notes wherever points are fitted, forecast, compared or designed from."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bigmodel.laws import outliers
from bigmodel.laws.law import Law

Labels = Sequence[int] | Sequence[str]  # of points: rows of a file, or names of runs
EVALUATIONS = 12  # in equal steps of D for one N, from which on they look like those of one run
PERPLEXITIES = 20.0  # the median of losses of language models in nats or bits is less
SHOWN = 5  # outliers that are named


@dataclasses.dataclass(frozen=True)
class Examined:
  """Which points take part in fits, and what is doubtful about them."""

  kept: np.ndarray  # mask [points]
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class Losses:
  """Losses with the name of their column, and whether their standard errors are given."""

  values: np.ndarray
  name: str = "loss"
  weighted: bool = False


def examine(law: Law, columns: Sequence[np.ndarray], losses: Losses, labels: Labels) -> Examined:
  """Examines points whose scales are the columns of `law`.

  Outliers get no weight, unless their standard errors are given: then the weights are the user's.
  """
  loss = losses.values
  far = outliers.find(law, columns, loss)  # before the test of rising losses, which a diverged large run may cause
  rising = _rising([x[~far] for x in columns], dataclasses.replace(losses, values=loss[~far]))
  if rising:
    far = np.zeros(len(loss), bool)
  notes = [*_same_scales(columns, loss, labels), *rising, *_kind_of_loss(columns, losses)]
  notes += [*_evaluations(law, columns), *_two_values(law, columns)]
  if far.any():
    notes.append(_far(loss, labels, np.flatnonzero(far), losses.weighted))
  kept = np.ones(len(loss), bool) if losses.weighted else ~far
  return Examined(kept, notes)


def similar_names(names: Iterable[str]) -> list[str]:
  """A note for each pair of groups whose names differ in case or blanks only."""
  first: dict[str, str] = {}
  notes = []
  for name in names:
    other = first.setdefault(re.sub(r"[\s_-]+", " ", name).strip().casefold(), name)
    if other != name:
      notes.append(f"groups {other!r} and {name!r} differ in case or blanks only; they are kept apart")
  return notes


def named(labels: Labels, *places: int) -> str:
  """The points at these places, for messages: 'rows 3 and 4', or names of runs."""
  texts = [str(labels[place]) for place in places]
  kind = "row" if isinstance(labels[places[0]], int | np.integer) else "run"
  if len(texts) == 1:
    return f"{kind} {texts[0]}"
  return f"{kind}s {', '.join(texts[:-1])} and {texts[-1]}"


def _same_scales(columns: Sequence[np.ndarray], loss: np.ndarray, labels: Labels) -> list[str]:
  places: dict[tuple[float, ...], list[int]] = {}
  for place, scales in enumerate(zip(*columns, strict=True)):
    places.setdefault(tuple(map(float, scales)), []).append(place)
  repeated = [each for each in places.values() if len(each) > 1 and np.ptp(loss[each]) > 0]
  if not repeated:
    return []
  first, second, *_ = repeated[0]
  return [
    f"{named(labels, first, second)} have the same scales and losses of {loss[first]:.5g} and"
    f" {loss[second]:.5g} ({len(repeated)} such sets): the difference is treated as noise"
  ]


def _rising(columns: Sequence[np.ndarray], losses: Losses) -> list[str]:
  """A note on losses that rise with scale, or that do not change."""
  loss = losses.values
  if len(loss) < 3:
    return []
  if np.ptp(loss) == 0:
    return [f"the loss is {loss[0]:g} in all {len(loss)} points, which says nothing about how it changes with scale"]
  scale = np.sum([np.log(x) for x in columns], axis=0)
  if np.ptp(scale) < 1e-6 or np.corrcoef(scale, np.log(loss))[0, 1] <= 0:
    return []
  most = 1 if loss.max() <= 1 else 100 if loss.max() <= 100 and loss.max() > 20 else None
  accuracy = f"; if {losses.name} is an accuracy, use --loss={most}-{losses.name}" if most else ""
  return [f"the loss rises with scale, so no law that falls with scale will fit{accuracy}"]


def _kind_of_loss(columns: Sequence[np.ndarray], losses: Losses) -> list[str]:
  """A note on losses that are perplexities, by their name or by their size."""
  by_name = re.search(r"perplexit|(?:^|[\W_])ppl(?:[\W_]|$)", losses.name.lower())
  by_size = len(columns) > 1 and len(losses.values) and np.median(losses.values) > PERPLEXITIES
  if not (by_name or by_size):
    return []
  low, high = losses.values.min(), losses.values.max()
  return [
    f"losses of {low:.4g} to {high:.4g} {'are' if by_name else 'may be'} perplexities; laws describe their logarithms,"
    " so take those as the loss"
  ]


def _evaluations(law: Law, columns: Sequence[np.ndarray]) -> list[str]:
  """A note on points that look like the evaluations within single runs, at equal steps of D."""
  values = dict(zip(law.columns, columns, strict=True))
  if not {"N", "D"} <= set(values):
    return []
  for N in np.unique(values["N"]):
    D = np.unique(values["D"][values["N"] == N])
    if len(D) >= EVALUATIONS and np.ptp(np.diff(D)) <= 1e-3 * np.diff(D).mean():
      return [
        f"the {len(D)} points of N = {N:.4g} lie at equal steps of D, as evaluations within one run do; laws describe"
        " the final losses of runs"
      ]
  return []


def _two_values(law: Law, columns: Sequence[np.ndarray]) -> list[str]:
  """A note on each scale of several that has two values only."""
  if len(columns) < 2:
    return []
  values = {name: np.unique(column) for name, column in zip(law.columns, columns, strict=True)}
  return [
    f"{name} has only two values, {low:.4g} and {high:.4g}, which cannot show how its effect levels off; add runs with"
    " a third"
    for name, (low, high) in ((name, each) for name, each in values.items() if len(each) == 2)
  ]


def _far(loss: np.ndarray, labels: Labels, places: np.ndarray, weighted: bool) -> str:
  shown = places[:SHOWN]
  texts = ", ".join(f"{named(labels, place)} with a loss of {loss[place]:.5g}" for place in shown)
  more = f" and {len(places) - len(shown)} more" if len(places) > len(shown) else ""
  effect = "but weighted by their standard errors" if weighted else "so without weight in fits"
  return f"far from all other points (did the run diverge?), {effect}: {texts}{more}"

"""Verbs of the law lab: fits of anybody's points, two recipes compared, published numbers."""

from pathlib import Path
from typing import Any

from bigmodel.console import plain_console
from bigmodel.errors import UserError
from bigmodel.files import read_json
from bigmodel.verbs import Arguments, setup, show_table


def fit(arguments: Arguments) -> dict[str, Any]:
  setup()
  if Path(arguments.points).is_dir():
    from bigmodel.sweep import fits

    if not (Path(arguments.points) / "study.json").exists():
      raise UserError(f"{arguments.points} holds no study (no study.json)")
    result = fits.fit_study(arguments.points)
  else:
    result = _fit_points(arguments)
  for law in result["laws"]:
    title = f"{law['name']}, {law.get('points', len(result['laws']))} points"
    title = f"{law['group']}: {title}" if law.get("group") else title
    rows = [
      (name, None if value is None else f"{value:.6g}", law["intervals"].get(name))
      for name, value in law["params"].items()
    ]
    if "objective" in law:
      rows.append(("objective", f"{law['objective']:.6g}", None))
      rows.append(("starts at the optimum", " of ".join(map(str, law["starts_at_optimum"])), None))
    if law.get("backtest"):
      what = f"error on {law['backtest']['points']} points of the largest scales, hidden"
      rows.append((what, f"{law['backtest']['rms_log_error']:.2%}", None))
    show_table(arguments, title, ("parameter", "value", "90% interval"), rows)
    for name, params in law.get("other_conventions", {}).items():
      exponent = lambda p: p["beta"] / (p["alpha"] + p["beta"])
      say(arguments, f"with N as {name}: alpha {params['alpha']:.4g}, beta {params['beta']:.4g}, so N* ~ C^"
          f"{exponent(params):.3f} instead of C^{exponent(law['params']):.3f}")  # fmt: skip
    if law.get("caution"):
      say(arguments, f"note: {law['caution']}")
    for name in law.get("ridges", ()):
      say(arguments, f"{name} is on a ridge: three times as much or as little fits nearly as well")
  best = [(o["law"], o["C"], o["N"], o["N_interval90"], o["D"], o["D_interval90"]) for o in result["optimum"]]
  if best:
    show_table(arguments, "compute-optimal", ("law", "C", "N", "90%", "D", "90%"), best)
  for warning in result.get("warnings", ()):
    say(arguments, f"note: {warning}")
  return result


def say(arguments: Arguments, text: str) -> None:
  if not arguments.json:
    plain_console().print(text, highlight=False)


def named_columns(arguments: Arguments) -> dict[str, str]:
  """The columns that were named, by what laws call them."""
  named = {name: getattr(arguments, name.lower()) for name in ("N", "D", "C", "x") if getattr(arguments, name.lower())}
  for text in arguments.column:
    name, equals, own = text.partition("=")
    if not equals:
      raise UserError(f"--column: {text!r} is not NAME=COLUMN")
    named[name] = own
  return named


def _fit_points(arguments: Arguments) -> dict[str, Any]:
  from bigmodel.laws import choice, forms, summary, table

  columns = choice.Columns(
    arguments.points, named_columns(arguments), arguments.loss, arguments.stderr or "", arguments.group
  )
  names = arguments.law.split(",") if arguments.law else ["power_offset" if "x" in columns.named else "chinchilla"]
  if not arguments.group and names in (["chinchilla"], ["isoflop"]):
    counts = arguments.n.split(",") if arguments.n else [None]  # the first is fitted, the others are beside it
    given, *rest = (points_of(arguments, arguments.points, count) for count in counts)
    others = {str(count): own for count, own in zip(counts[1:], rest, strict=True)}
    facts = summary.fit_points(given, arguments.at, others) if names == ["chinchilla"] else summary.fit_profiles(given)
    return facts | {"warnings": table.warnings((given.N, given.D), given.loss, given.rows)}
  if "isoflop" in names:
    raise UserError("--law: isoflop is fitted alone and without --group")
  if arguments.at or arguments.drop_largest:
    raise UserError("--at, --drop-largest: are for --law=chinchilla or isoflop alone")
  if names == ["auto"]:
    return choice.fit(columns, choice.usual_laws(columns), skip_unfit=True)
  return choice.fit(columns, [forms.find(name) for name in names])


def compare(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import compare as comparison

  a, b = (_recipe(arguments, path) for path in (arguments.a, arguments.b))
  result = comparison.compare(a, b)
  rows = [
    (row["C"], row["loss_a"], row["loss_b"], row["multiplier"], row["interval90"], "yes" if row["beyond"] else "")
    for row in result["rows"]
  ]
  title = f"A {arguments.a}, B {arguments.b}: loss at the best size, and B's compute in A's terms"
  show_table(arguments, title, ("C", "A", "B", "multiplier", "90% interval", "beyond the runs"), rows)
  crossing = result["crossing"]
  if crossing["interval90"]:
    at = "they cross nowhere near" if crossing["C"] is None else f"they cross at {crossing['C']:.3g} FLOPs"
    low, high = crossing["interval90"]
    share = crossing["share_of_draws"]
    say(arguments, f"{at} ({low:.3g} to {high:.3g} in the {share:.0%} of the resamples that cross)")
  say(arguments, result["verdict"])
  if arguments.report:
    from bigmodel.report import recipes

    recipes.write(arguments.report, arguments.a, arguments.b, result)
    say(arguments, f"page: {arguments.report}")
  return result


def _recipe(arguments: Arguments, path: str) -> Any:
  """The points of a CSV, or of the fitted runs of a study's folder."""
  from bigmodel.laws import points
  from bigmodel.sweep import folder

  if not Path(path).is_dir():
    return points_of(arguments, path, arguments.n)
  if not (Path(path) / "study.json").exists():
    raise UserError(f"{path} holds no study (no study.json)")
  return points.from_records(folder.of_role(path, "fit"), read_json(Path(path) / "study.json")["convention"])


def points_of(arguments: Arguments, path: str, n: str | None) -> Any:
  """The points of a CSV by the columns that the arguments name."""
  from bigmodel.laws import points

  return points.from_csv(
    path, n, arguments.d, arguments.c, arguments.loss, arguments.drop_largest, arguments.stderr
  )  # fmt: skip


def reproduce(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel import experiments

  claim, results = experiments.run(arguments.name, arguments.data, arguments.workdir, arguments.json)
  say(arguments, claim.rsplit("\n\n", 1)[0])
  show = lambda value: None if value is None else f"{value:.6g}"
  rows = [(r.what, show(r.published), show(r.ours), r.verdict) for r in results]
  show_table(arguments, arguments.name, ("what", "published", "ours", "verdict"), rows)
  facts = [{"what": r.what, "published": r.published, "ours": r.ours, "verdict": r.verdict} for r in results]
  return {"name": arguments.name, "claim": claim, "results": facts}

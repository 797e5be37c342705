"""Collects sealed forecasts and their truths from folders of studies, and from files that were kept of them."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from etils import epath

from bigmodel import record
from bigmodel.config import require
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, absolute, read_json, read_json_object, write_json
from bigmodel.laws import facts, ledger, seals
from bigmodel.laws.facts import Forecast
from bigmodel.laws.ledger import Entry, Ledger, Question, Without
from bigmodel.laws.seals import Provenance
from bigmodel.study import folder, target
from bigmodel.train.results import as_measured


class Kept(msgspec.Struct, frozen=True, kw_only=True):
  """What a study leaves of its forecast: a file that can be scored and verified without the study's folder."""

  about: Question
  measure: str  # what was forecast: the held-out loss, or the name of a metric
  forecast: JsonObject  # as it was sealed
  record: JsonObject | None = None  # of the target
  provenance: Provenance | None = None  # of the target


def collect(paths: Sequence[str | Path]) -> Ledger:
  """The ledger of studies, of folders with kept files, and of such files.

  A forecast that is found again, such as in a copy, counts once. Raises `UserError`, with every reason, if a path does
  not exist, or a seal is broken or younger than its target's run.
  """
  entries, without, notes, problems = dict[str, Entry](), list[Without](), list[str](), list[str]()
  for path in _sources(paths):
    try:
      kept = read(path)
      scored = kept if isinstance(kept, str) else _score(path, kept)
      if isinstance(scored, str):
        without.append(Without(str(path), scored))
      elif (first := entries.setdefault(scored.sha256, scored)) is not scored:
        notes.append(f"{path}: {_repeated(scored, first)}")
    except UserError as error:
      message = str(error)
      problems.append(message if message.startswith(str(path)) else f"{path}: {message}")
  if problems:
    raise UserError("; ".join(problems))
  if unsealed := [one.study for one in entries.values() if not one.distance_is_sealed]:
    notes.append(f"the distance of forecasts by early versions is not sealed: {', '.join(unsealed)}")
  return ledger.make(list(entries.values()), without, notes)


def _repeated(again: Entry, first: Entry) -> str:
  """A note on a forecast that was found before; raises `UserError` if it has another truth here."""
  if again.actual != first.actual:
    raise UserError(f"the truth of this forecast is {again.actual:.6g} here, and {first.actual:.6g} in another file")
  return f"has the same forecast as study {first.study}, which is counted once"


def keep(paths: Sequence[str | Path], out: str | Path) -> list[Path]:
  """Writes a file of each study's forecast to the folder `out`, NAME.json; returns the files.

  Raises `UserError`, before anything is written, if two studies have the same name. A file of an earlier call is
  replaced.
  """
  found = dict[Path, Kept]()
  for path in _sources(paths):
    kept = read(path)
    if not isinstance(kept, str):
      file = Path(out) / f"{kept.about.study}.json"
      require(file not in found, f"--keep: {path}: another of these studies is named {kept.about.study}, too")
      found[file] = kept
  for file, kept in found.items():
    write_json(file, msgspec.to_builtins(kept))
  return list(found)


def read(path: epath.Path) -> Kept | str:
  """What a study's folder or a kept file has of a forecast, or why it has none."""
  if path.is_dir():
    return _of_study(path)
  document = read_json_object(path)
  if "about" not in document:
    if "rows" in document:
      seals.unseal(document, facts.TableForecast, str(path))
      return f"sealed, without its truth; bigmodel forecast TRUTH.csv --score {path.name} scores it"
    seals.unseal(document, Forecast, str(path))
    return "sealed, without its truth; bigmodel ledger STUDY scores it"
  return facts.from_json(document, Kept, str(path))


def _sources(paths: Sequence[str | Path]) -> list[epath.Path]:
  """The studies and files of all paths, each once."""
  return list(dict.fromkeys(source for path in paths for source in _sources_in(absolute(path))))


def _sources_in(path: epath.Path) -> list[epath.Path]:
  """The study in a folder, the files in a folder without a study, or the file itself."""
  if not path.exists():
    raise UserError(f"{path}: does not exist; name folders of studies or of kept forecasts")
  if not path.is_dir() or (path / "study.json").exists():
    return [path]
  return sorted(path.glob("*.json")) or [path]


def _of_study(path: epath.Path) -> Kept | str:
  if not (path / "study.json").exists():
    return "holds neither a study nor kept forecasts"
  sealed = target.read_forecast(path)
  if sealed is None:
    return "no sealed forecast"
  about = folder.read_about(path)
  forecast = sealed.forecast
  fitted = [run for run in folder.of_role(path, "fit") if run.finished]
  family = str(about.config["model.family"])
  question = Question(
    study=about.name,
    question=about.question,
    family=f"{family} with experts" if about.config.get("model.experts") else family,
    fitted=len(fitted),
    distance=forecast.target.C / max(run.flops(forecast.convention) for run in fitted),
  )
  kept = Kept(about=question, measure=about.measure, forecast=sealed.to_json())
  run = path / "runs" / forecast.target.run_id
  ended = record.read(run)
  if ended is None:
    return kept
  provenance = facts.from_json(read_json(run / "provenance.json"), Provenance, str(run))
  return msgspec.structs.replace(kept, record=record.to_json(ended), provenance=provenance)


def _score(path: epath.Path, kept: Kept) -> Entry | str:
  """The score of a forecast, or why it has none."""
  sealed = seals.unseal(kept.forecast, Forecast, str(path))
  if (kept.record is None) != (kept.provenance is None):
    missing = "record" if kept.record is None else "provenance"
    raise UserError(f"the target has run, but its {missing} is missing")
  if kept.record is None or kept.provenance is None:
    return "the target has not run" + ("" if path.is_dir() else "; at least, the file has no record of it")
  ended = record.from_json(kept.record, str(path))
  if ended.run_id != sealed.forecast.target.run_id:
    raise UserError(f"run {ended.run_id} is not the target of this forecast, {sealed.forecast.target.run_id}")
  score = seals.score(sealed, as_measured(ended, kept.measure), kept.provenance)
  if score.actual is None:
    return f"the target has {ended.status}"
  return ledger.entry(kept.about, sealed, score.actual)

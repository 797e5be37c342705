"""The tables of `bigmodel plan`."""

from collections.abc import Mapping, Sequence

from bigmodel.cli.console import Facts, Output

SMALLEST = 1e5  # bytes of a collective that is worth a row


def show_study_here(facts: Facts, name: str, output: Output) -> None:
  """A study on this machine: its runs and its target."""
  from bigmodel.train.display import duration

  fields = ("params_total", "tokens", "flops_6nd", "expected_seconds")
  rows = [(one["run_id"], ", ".join(one["roles"]), *(one[field] for field in fields)) for one in facts["runs"]]
  if facts["target"]:
    rows.append(("target", "at most", *(facts["target"][field] for field in fields)))
  total = facts["total"]
  flops, seconds = total["flops_6nd"], total["expected_seconds"]
  title = f"{name}: {total['runs']} runs, {flops:.3g} FLOPs (6ND), {duration(seconds)} here"
  output.table(title, ("run", "role", "N", "D", "6ND", "seconds"), rows)


def show_study(facts: Facts, name: str, output: Output) -> None:
  """A study on a topology."""
  fields = ("role", "name", "params_total", "tokens", "step_seconds", "hours", "chip_hours", "fits")
  rows = [[one[field] for field in fields] for one in facts["runs"]]
  total = facts["total"]
  cost = "" if total["cost"] is None else f", {total['cost']:,.0f} dollars"
  title = f"{name}: {total['chip_hours']:.4g} chip-hours{cost};"
  title += f" critical path {total['critical_path_hours']:.4g} h"
  output.table(title, ("role", "run", "N", "tokens", "step s", "hours", "chip-hours", "fits"), rows)
  output.notes(note for one in facts["runs"] for note in one["notes"])


def show_layouts(layouts: Sequence[Facts], topology: str, output: Output) -> None:
  """Layouts, and the best one as words for the command line."""
  rows = [
    (
      _layout(one["overrides"]),
      one["fits"],
      one["peak_bytes"] / 1e9,
      one["step_seconds"],
      one["mfu"],
      one["hours"],
      bool(one["compiled"]),
    )
    for one in layouts
  ]
  columns = ("overrides", "fits", "peak GB", "step s", "MFU", "hours", "compiled")
  output.table(f"layouts on {topology}, best first", columns, rows)
  output.write(" ".join(f"--config.{name}={value}" for name, value in layouts[0]["overrides"].items()) + "\n")


def show_run(facts: Facts, output: Output) -> None:
  """One run on a topology: memory, time and cost, and what its devices send to each other."""
  source = facts["compiled"] or facts["analytic"]
  rows = [*_memory_rows(facts), *_time_rows(facts, source["cycle_seconds"])]
  output.table(f"one run on {facts['topology']}", ("what", "value"), rows)
  output.notes(facts["notes"])
  collectives = [
    (
      one["kind"],
      one["group"],
      one["overlaps"],
      one["count"],
      f"{one['bytes'] / 1e9:.3f} GB",
      f"{one['seconds']:.3g} s",
    )
    for one in source["collectives"]
    if one["bytes"] > SMALLEST
  ]
  columns = ("collective", "devices", "overlaps", "times", "sent a step", "on the wire")
  output.table("a device's collectives", columns, collectives)


def _memory_rows(facts: Facts) -> list[tuple[str, object]]:
  parts = facts["analytic"]["parts"]
  activations = sum(value for name, value in parts.items() if name not in ("parameters", "optimizer"))
  compiled = _gigabytes(facts["compiled"]["peak_bytes"]) if facts["compiled"] else facts["why_not_compiled"]
  return [
    ("mesh", ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items()) or "one device"),
    ("parameters", facts["params_total"]),
    ("a device holds: parameters", _gigabytes(parts["parameters"])),
    ("optimizer state", _gigabytes(parts["optimizer"])),
    ("activations (arithmetic)", _gigabytes(activations)),
    ("peak, by arithmetic", _gigabytes(facts["analytic"]["peak_bytes"])),
    ("peak, by the compiler", compiled),
    ("memory", _gigabytes(facts["memory_bytes"])),
    ("fits", facts["fits"]),
  ]


def _time_rows(facts: Facts, cycle_seconds: float | None) -> list[tuple[str, object]]:
  return [
    *((f"{name} a step", value) for name, value in facts["flops_per_step"].items()),
    ("compiler's cycles", None if cycle_seconds is None else f"{cycle_seconds:.3g} s"),
    ("computation", f"{facts['compute_seconds']:.3g} s"),
    ("step", f"{facts['step_seconds']:.3g} s"),
    ("MFU (flops_exact)", f"{facts['mfu']:.1%}"),
    ("tokens/s", facts["tokens_per_second"]),
    ("steps", facts["steps"]),
    ("hours", facts["hours"]),
    ("chip-hours", facts["chip_hours"]),
    ("cost", None if facts["cost"] is None else f"{facts['cost']:,.0f} dollars"),
  ]


def _gigabytes(value: float | None) -> str | None:
  return None if value is None else f"{value / 1e9:.2f} GB"


def _layout(overrides: Mapping[str, int | str]) -> str:
  """What differs from one device, as 'fsdp 64, remat full'."""
  short = {name.split(".")[1]: value for name, value in overrides.items()}
  return ", ".join(f"{name} {value}" for name, value in short.items() if value not in (0, 1))

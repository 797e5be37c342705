"""Reads a compiled program's text: its collectives, how often they run, and the compiler's estimate of cycles."""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
         "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e\dm\d[a-z]*)?)\[([\d,]*)\]")
_OPCODE = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONSTANT = re.compile(r" [su]32\[\]\S* constant\((\d+)\)")
_END = re.compile(r"^\}(?! *\}|, metadata)")  # of a computation; a long constant ends in braces and metadata
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a step. `sent` are the bytes that each device sends each time it runs."""

  kind: str
  sent: float
  group: tuple[int, ...]  # one of its groups of devices, by their index in the mesh
  times: int  # per step
  overlaps: bool  # with computation


@dataclasses.dataclass(frozen=True)
class Program:
  collectives: tuple[Collective, ...]
  cycles: float  # per step, by the compiler's cost model; 0 if it has none


def read(text: str) -> Program:
  """Reads the text of an optimized HLO module."""
  bodies, entry = _computations(text)
  times: dict[str, int] = defaultdict(int)
  inside: dict[str, str] = {}  # fused computation -> the computation that it runs in
  _count(bodies, entry, 1, times, inside)
  collectives: dict[tuple, Collective] = {}
  least: dict[tuple, int] = {}  # (kind, channel) -> how often the least frequent part runs
  cycles = 0.0
  for name, lines in bodies.items():
    if not times[name]:
      continue
    for line in lines:
      match = _OPCODE.match(line)
      if not match:
        continue
      if name not in inside and (estimate := _CYCLES.search(line)):
        cycles += times[name] * int(estimate.group(1))
      kind = match.group(2).removesuffix("-start")
      if kind in KINDS:
        channel = re.search(r"channel_id=(\d+)", line)
        # The parts of an asynchronous collective are separate fusions that share a channel.
        key = (inside.get(name, name), kind, channel.group(1) if channel else line)
        overlaps = match.group(2).endswith("-start") or "async" in name or name in inside
        collectives[key] = _collective(
          kind, match.group(1), line, times[name], overlaps, match.group(2).endswith("-start")
        )
        if name in inside:
          least[key[1:]] = min(times[name], least.get(key[1:], times[name]))
  # An asynchronous collective that overlaps with a loop begins and ends outside of the loop; those parts count.
  distinct = (part for key, part in collectives.items() if part.times == least.get(key[1:], part.times))
  return Program(tuple(distinct), cycles)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  entry, lines = "", None
  for line in text.splitlines():
    if lines is None:
      head = _HEAD.match(line)
      if head and "=" not in line.split("(")[0]:
        lines = bodies[head.group(2)] = []
        entry = head.group(2) if head.group(1) else entry
    elif _END.match(line):
      lines = None
    else:
      lines.append(line)
  return bodies, entry


def _count(bodies: dict, name: str, times: int, total: dict[str, int], inside: dict[str, str]) -> None:
  """Adds up in `total` how often each computation runs, from the entry down."""
  total[name] += times
  for line in bodies.get(name, ()):
    match = _OPCODE.match(line)
    if not match or "=" not in line:
      continue
    opcode = match.group(2)
    trips = 1
    if opcode == "while":
      trips = _trips(bodies, line)
    for several, single in _CALLED.findall(line):
      for called in [c.strip().lstrip("%") for c in several.split(",")] if several else [single]:
        if called in bodies and opcode not in ("reduce", "all-reduce", "reduce-scatter", "scatter", "sort"):
          if opcode == "fusion":
            inside[called] = inside.get(name, name)
          _count(bodies, called, times * trips, total, inside)


def _trips(bodies: dict, line: str) -> int:
  """How often a loop runs: the compiler's annotation, or else the number that its condition compares with."""
  if annotated := _TRIPS.search(line):
    return int(annotated.group(1))
  condition = re.search(r"condition=%?([\w.\-]+)", line)
  numbers = [
    int(n) for text in bodies.get(condition.group(1) if condition else "", ()) for n in _CONSTANT.findall(text)
  ]
  return max(numbers, default=1)


def _bytes(shapes: str) -> float:
  total = 0.0
  for kind, sizes in _SHAPE.findall(shapes):
    bits = _BITS.get(kind, 8 if kind.startswith("f8") else 32)
    total += bits / 8 * math.prod(int(n) for n in sizes.split(",") if n)
  return total


def _collective(kind: str, result: str, line: str, times: int, overlaps: bool, starts: bool) -> Collective:
  group = _group(line)
  n = len(group)
  size = _bytes(result)
  if starts and kind == "all-gather":
    size *= n / (n + 1)  # the result lists the operand and the result
  if starts and kind == "collective-permute":
    size = _bytes(result.split("]")[0] + "]")  # the result lists operand, result and two counters
  share = (n - 1) / n if n else 0.0
  sent = {
    "all-gather": size * share,
    "all-reduce": 2 * size * share,
    "reduce-scatter": size * (n - 1),  # the result is one n-th of the operand
    "all-to-all": size * share,
    "collective-permute": size,
  }[kind]
  return Collective(kind, sent, group, times, overlaps)


def _group(line: str) -> tuple[int, ...]:
  """The members of the first group, in any of HLO's notations."""
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
    return tuple(int(x) for x in pairs.groups())
  if plain := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return tuple(int(x) for x in plain.group(1).split(","))
  if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    groups, size = int(iota.group(1)), int(iota.group(2))
    dims = [int(x) for x in iota.group(3).split(",")]
    order = [int(x) for x in iota.group(4).split(",")] if iota.group(4) else list(range(len(dims)))
    return _iota(dims, order)[:size] if groups else ()
  if mesh := _MESH.search(line):
    axes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
    named = re.findall(r"'(\w+)'", mesh.group(4))
    names = list(axes)
    order = [i for i, a in enumerate(names) if a not in named] + [i for i, a in enumerate(names) if a in named]
    places = _iota(list(axes.values()), order)[: math.prod(axes[a] for a in named)]
    if mesh.group(2):  # the mesh's devices are permuted
      dims = [int(x) for x in mesh.group(2).split(",")]
      devices = _iota(dims, [int(x) for x in mesh.group(3).split(",")] if mesh.group(3) else list(range(len(dims))))
      places = tuple(devices[place] for place in places)
    return places
  return ()


def _iota(dims: list[int], order: list[int]) -> tuple[int, ...]:
  """0, 1, 2, ... in an array of these dimensions, transposed and flattened."""
  strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
  places = [0]
  for axis in order:
    places = [place + strides[axis] * i for place in places for i in range(dims[axis])]
  return tuple(places)

"""Programs only make steps between events; metrics are read one call late, and none after all members diverged."""

import dataclasses

import pytest

from bigmodel.train.schedule import Dispatched, Pending, Schedule

SCHEDULE = Schedule(
  end=30,
  stages=frozenset({7, 30}),
  branches=frozenset({12}),
  horizons=frozenset({20}),
  checkpoint_every=10,
  evaluate_every=0,
  longest=30,
)


def schedule(**changes):
  return dataclasses.replace(SCHEDULE, **changes)


@pytest.mark.parametrize("most", [1, 3, 8, 100])
@pytest.mark.parametrize("start", [0, 7, 9])
def test_every_event_is_at_the_end_of_a_call_of_any_length(most, start):
  one, seen, done = schedule(), [start], start
  while done < one.end:
    done += min(one.next(done) - done, most)
    seen.append(done)
  assert seen == sorted(set(seen))
  assert {step for step in (7, 10, 12, 20, 30) if step > start} <= set(seen)
  assert most < 100 or seen[1:] == [step for step in (7, 10, 12, 20, 30) if step > start]


def test_a_checkpoint_is_due_at_multiples_but_not_at_the_end():
  assert [step for step in range(1, 31) if schedule().saves(step)] == [10, 20]
  assert [step for step in range(1, 26) if schedule(end=25).saves(step)] == [10, 20]


def test_evaluations_are_events_except_at_the_end():
  one = schedule(evaluate_every=4)
  assert [step for step in range(1, 31) if one.evaluates(step)] == [4, 8, 12, 16, 20, 24, 28]
  assert [one.next(step) for step in (0, 4, 7, 8, 16)] == [4, 7, 8, 10, 20]
  assert not any(schedule().evaluates(step) for step in range(31))


def test_metrics_are_read_one_call_late_and_once():
  read = []
  pending = Pending(lambda last: read.append(last.first) or last.first == 4)
  steps = [Dispatched(i, 1, dict, None) for i in range(7)]
  assert not pending.drain()
  for one in steps[:4]:
    pending.put(one)
    assert read == list(range(one.first))
  assert not pending.drain()
  assert not pending.drain()
  assert read == [0, 1, 2, 3]
  pending.put(steps[4])
  pending.put(steps[5])  # the steps before these tell that all have diverged
  assert pending.all_diverged
  assert pending.drain()
  assert read == [0, 1, 2, 3, 4]

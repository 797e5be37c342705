"""Checkpoints: damage is found and the step before is used; a full disk is named; killed writers leave nothing."""

import errno
import json
import os
import random
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel.train import checkpoint
from bigmodel.train.checkpoint import CheckpointError, Checkpoints


def state(step):
  rng = np.random.default_rng(step)
  arrays = {f"w{i}": rng.normal(size=(20, 30)).astype(np.float32) for i in range(4)}
  return {"params": arrays, "step": np.int32(step), "nested": (np.zeros(3), {"b": np.arange(5)})}


@pytest.fixture
def store(tmp_path):
  store = Checkpoints(tmp_path / "checkpoints")
  for step in (10, 20, 30):
    store.save(step, state(step))
  store.wait()
  yield store
  store.close()


def same(one, other):
  return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_what_is_restored_is_what_was_saved_and_old_steps_go(store):
  assert store.verified_steps() == [30, 20]
  assert same(store.restore(30, state(0)), state(30))
  assert same(store.restore(20, state(0)), state(20))


def test_small_arrays_are_written_as_one_and_restored_anywhere(store):
  """Of every type and shape, beside one that is written alone: on the host, on devices, and by its name."""
  rng = np.random.default_rng(0)
  saved = {
    "large": rng.normal(size=(700, 512)).astype(np.float32),
    "a": {"b": rng.normal(size=(3, 5)).astype(np.float32), "empty": np.zeros((0, 4), np.float32)},
    "half": [jnp.asarray(rng.normal(size=(2, 2, 2)), jnp.bfloat16), jnp.bfloat16(0.5)],
    "flags": np.array([True, False]),
    "step": np.int32(7),
  }
  store.save(40, saved)
  store.wait()
  written = json.loads((store.folder / "40" / "arrays" / "_METADATA").read_text())["tree_metadata"]
  assert sorted(written) == ["('joined.bfloat16',)", "('joined.bool',)", "('joined.float32',)", "('joined.int32',)",
                             "('large',)"]  # fmt: skip
  by_device = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("x",)), PartitionSpec())
  placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_device), saved)
  for like in (saved, placed):
    back = store.restore(40, like)
    assert same(back, saved)
    assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(lambda x: x.dtype, saved)
  assert all(x.sharding == by_device for x in jax.tree.leaves(store.restore(40, placed)))
  named = store.arrays(40, "a.")
  assert same(named, {"a.b": saved["a"]["b"], "a.empty": saved["a"]["empty"]})


def test_a_checkpoint_of_another_shape_is_refused(store):
  other = state(0)
  other["params"]["w1"] = other["params"]["w1"].reshape(30, 20)
  with pytest.raises(ValueError, match=r"array params\.w1 is \(20, 30\) float32, and \(30, 20\) float32 in this"):
    store.restore(30, other)
  del other["params"]["w1"]
  with pytest.raises(ValueError, match=r"array params\.w1 is \(20, 30\) float32, and missing in this program"):
    store.restore(30, other)


def test_saving_a_step_again_replaces_it(store):
  store.save(30, state(99))
  store.wait()
  assert same(store.restore(30, state(0)), state(99))


def test_one_flipped_bit_in_any_file_is_found(store, tmp_path):
  """100 of 100, in every kind of file, the seal included."""
  rng = random.Random(0)
  pristine = tmp_path / "pristine"
  shutil.copytree(store.folder / "30", pristine)
  files = sorted(p for p in pristine.rglob("*") if p.is_file() and p.stat().st_size)
  found = set()
  for trial in range(100):
    target = Path(store.folder) / "30"
    shutil.rmtree(target)
    shutil.copytree(pristine, target)
    victim = target / files[trial % len(files)].relative_to(pristine)
    content = bytearray(victim.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    victim.write_bytes(content)
    assert store.verified_steps() == [20], victim
    found.add(victim.name)
  assert checkpoint.SEAL in found
  assert len(found) >= 5
  assert same(store.restore(20, state(0)), state(20))


@pytest.mark.parametrize("damage", ["truncate", "remove", "unsealed"])
def test_truncated_missing_and_unsealed_checkpoints_are_not_used(store, damage):
  target = Path(store.folder) / "30"
  largest = max((p for p in target.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  if damage == "truncate":
    os.truncate(largest, largest.stat().st_size - 1)
  elif damage == "remove":
    largest.unlink()
  else:
    (target / checkpoint.SEAL).unlink()
  assert store.verified_steps() == [20]


def test_arrays_are_checked_after_they_are_read(store, monkeypatch):
  monkeypatch.setattr(checkpoint.hosts, "fingerprints", lambda tree: dict.fromkeys(tree, "0"))
  with pytest.raises(CheckpointError, match="is not what was saved"):
    store.restore(30, state(0))


def test_leftovers_of_a_killed_writer_are_removed(store):
  left = Path(store.folder) / ".40"
  (left / "arrays").mkdir(parents=True)
  again = Checkpoints(store.folder)
  assert again.steps() == [20, 30]
  assert left.exists()  # a reader leaves a save in flight alone
  again.drop_after(20)
  assert again.steps() == [20]
  assert not left.exists()
  again.close()


def test_a_full_disk_is_named_with_the_last_good_step(store, monkeypatch):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(checkpoint, "seal", full)
  store.save(40, state(40))
  with pytest.raises(
    CheckpointError, match=r"step 40 was not saved: the disk is full; the last good checkpoint is step 30"
  ):
    store.wait()
  assert store.verified_steps() == [30, 20]
  assert not list(Path(store.folder).glob(".*"))


def test_a_disk_that_will_be_full_is_named_before_anything_is_written(store, monkeypatch):
  usage = shutil._ntuple_diskusage(1000, 900, 100)
  monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda folder: usage)
  store.save(40, state(40))
  with pytest.raises(CheckpointError, match="the disk is full; the last good checkpoint is step 30"):
    store.wait()


def test_a_save_whose_wait_was_interrupted_is_waited_for_at_the_end(store, monkeypatch):
  """A second Ctrl-C comes while the last checkpoint is being written: no other command may meet it half done."""
  real, going_on, writes = checkpoint.seal, threading.Event(), []

  def slow(*given):
    going_on.wait(60)
    real(*given)
    writes.append(given)

  monkeypatch.setattr(checkpoint, "seal", slow)
  store.save(40, state(40))
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.concurrent.futures, "wait", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      store.wait()
  threading.Timer(0.5, going_on.set).start()
  store.close()
  assert len(writes) == 1
  assert store.verified_steps()[0] == 40


def test_what_is_written_is_what_was_there_when_the_save_began(store, monkeypatch):
  """Training goes on in the same memory meanwhile: of arrays that are joined, alone of their type, or large."""
  saved = {"large": np.ones((700, 512), np.float32), "one": np.ones(3, np.float16), "a": np.ones(3), "b": np.ones(2)}
  real, going_on = checkpoint.check_space, threading.Event()
  monkeypatch.setattr(checkpoint, "check_space", lambda *given: (going_on.wait(60), real(*given)))
  store.save(40, saved)
  for array in saved.values():
    array[...] = 2
  going_on.set()
  store.wait()
  assert same(store.restore(40, saved), jax.tree.map(np.ones_like, saved))


def test_a_failed_save_is_noticed_without_waiting(store, monkeypatch):
  monkeypatch.setattr(checkpoint, "seal", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
  store.save(40, state(40))
  store._pending.exception()  # it has ended, and nobody has asked how
  with pytest.raises(CheckpointError, match="broken"):
    store.check()
  store.check()

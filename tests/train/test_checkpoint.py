"""Checkpoints: damage is detected and an older step used; full disks are reported; killed writers leave nothing."""

import concurrent.futures
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel import processes
from bigmodel.errors import CheckpointError, Interrupted
from bigmodel.train import checkpoint
from bigmodel.train.checkpoint import Checkpoints, arrays, folders, integrity


def sound_steps(store):
  """The sound steps, newest first."""
  return [step for step in reversed(store.steps()) if store.is_sound(step)]


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


def test_restored_arrays_equal_saved_ones_and_old_steps_are_removed(store):
  assert sound_steps(store) == [30, 20]
  assert same(store.restore(30, state(0)), state(30))
  assert same(store.restore(20, state(0)), state(20))


def test_small_arrays_are_joined_and_restored_on_host_and_devices(store):
  """Arrays of every dtype and shape, and a large one, are restored on the host, on devices, and by name."""
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


def test_one_flipped_bit_in_any_file_is_detected(store, tmp_path):
  """All of 100 flipped bits are detected, in every kind of file including the seal."""
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
    assert sound_steps(store) == [20], victim
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
  assert sound_steps(store) == [20]


def test_arrays_are_checked_after_they_are_read(store, monkeypatch):
  monkeypatch.setattr(arrays.hosts, "fingerprints", lambda tree: dict.fromkeys(tree, "0"))
  with pytest.raises(CheckpointError, match="is not what was saved"):
    store.restore(30, state(0))


def left_over(store, writer):
  folder = Path(store.folder) / f".40.{writer}.0"
  (folder / "arrays").mkdir(parents=True)
  (folder / "arrays" / "data").touch()
  return folder


def test_leftovers_of_writers_that_have_certainly_ended_are_removed(store):
  """Those of this machine at once, and those of other machines after a day without changes."""
  code = "from bigmodel import processes; print(processes.this_process())"
  dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
  killed, elsewhere = left_over(store, dead), left_over(store, f"{'0' * 16}-1-2")
  in_flight = left_over(store, processes.this_process())
  again = Checkpoints(store.folder)
  assert again.steps() == [20, 30]
  assert killed.exists()  # a reader removes nothing
  again.drop_after(20)
  assert again.steps() == [20]
  assert not killed.exists()
  assert elsewhere.exists()
  assert in_flight.exists()
  for folder in (elsewhere, in_flight):
    for path in (folder, folder / "arrays", folder / "arrays" / "data"):
      os.utime(path, (0, time.time() - folders.ABANDONED_SECONDS - 60))
  again.drop_after(20)
  assert not elsewhere.exists()
  assert in_flight.exists()
  again.close()


def test_two_writers_of_one_run_leave_only_sound_checkpoints(tmp_path, monkeypatch):
  """A replaced writer that has not noticed it continues to save, while its successor resumes and saves, too.

  12 trials have pauses wherever a writer could be overtaken. Nothing fails, and nothing is left half written.
  """
  rng = random.Random(0)
  for module, name in (
    (folders, "check_space"),
    (integrity, "write_seal"),
    (folders, "discard"),
    (integrity, "same_content"),
  ):
    real = getattr(module, name)

    def late(*given, real=real):
      time.sleep(rng.uniform(0, 0.004))
      return real(*given)

    monkeypatch.setattr(module, name, late)

  def write(folder, steps, begins):
    store = Checkpoints(folder)
    if begins:
      store.drop_after(store.newest_sound() or 0)
    for step in steps:
      time.sleep(rng.uniform(0, 0.004))
      store.save(step, {"w": np.full(40, step), "step": np.int32(step)})
    store.close()

  for trial in range(12):
    folder = tmp_path / str(trial)
    last = 20 + 10 * rng.randrange(4)  # of the writer that was replaced
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      writers = [pool.submit(write, folder, range(10, 1 + end, 10), begins)
                 for end, begins in ((last, False), (40, True))]  # fmt: skip
      for writer in writers:
        writer.result()
    store = Checkpoints(folder)
    assert store.steps()
    assert sound_steps(store) == list(reversed(store.steps())), trial
    for step in store.steps():
      assert same(
        store.restore(step, {"w": np.zeros(40, int), "step": np.int32(0)}), {"w": np.full(40, step), "step": step}
      )
    assert not list(folder.glob(".*")), trial


@pytest.mark.parametrize("removed", ["seal", "all"])
def test_a_save_succeeds_when_another_writer_removes_the_same_step_during_the_comparison(store, monkeypatch, removed):
  real, target = integrity.is_complete, store.folder / "30"

  def remove_after(folder):
    complete = real(folder)
    if folder == target:
      (target / checkpoint.SEAL).unlink() if removed == "seal" else shutil.rmtree(target)
    return complete

  monkeypatch.setattr(integrity, "is_complete", remove_after)
  store.save(30, state(31))
  store.wait()
  assert same(store.restore(30, state(0)), state(31))


def test_a_writer_that_was_replaced_commits_nothing(store):
  """It learns this while it writes: no checkpoint is added or removed, and the error is one line."""
  store.lost = lambda: True
  before = {step: (store.folder / str(step) / checkpoint.SEAL).read_text() for step in store.steps()}
  store.save(40, state(40))
  with pytest.raises(Interrupted, match=r"^another worker has taken over$"):
    store.wait()
  assert {step: (store.folder / str(step) / checkpoint.SEAL).read_text() for step in store.steps()} == before
  assert not list(Path(store.folder).glob(".*"))


def test_only_the_newest_checkpoint_is_hashed(store, monkeypatch):
  """The previous checkpoint is hashed only if the newest is damaged."""
  real, hashed = integrity._sha256, []
  monkeypatch.setattr(integrity, "_sha256", lambda folder, block: hashed.append(folder.name) or real(folder, block))
  assert store.newest_sound() == 30
  assert {*hashed} == {"30"}
  victim = max((p for p in Path(store.folder, "30").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(victim.read_bytes())
  content[-1] ^= 1
  victim.write_bytes(content)
  assert store.newest_sound() == 20
  assert {*hashed} == {"20", "30"}


def test_a_seal_with_one_sum_of_each_file_is_still_read(store):
  """Earlier versions did not hash files in blocks."""
  folder = store.folder / "30"
  sealed = json.loads((folder / checkpoint.SEAL).read_text().partition("\n")[2])
  sealed["files"] = {name: facts["sha256"][0] for name, facts in sealed["files"].items()}
  body = json.dumps(sealed)
  (folder / checkpoint.SEAL).write_text(hashlib.sha256(body.encode()).hexdigest() + "\n" + body)
  assert store.newest_sound() == 30
  assert same(store.restore(30, state(0)), state(30))


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_processes_together_hash_every_block_of_a_checkpoint_once(store, monkeypatch, parts):
  """With blocks that are smaller than files, one of the processes detects a flipped bit anywhere."""
  monkeypatch.setattr(integrity, "BLOCK", 500)
  store.save(40, {"large": np.random.default_rng(0).normal(size=(64, 32)), **state(40)})
  store.wait()
  folder, real, hashed = Path(store.folder, "40"), integrity._sha256, []
  monkeypatch.setattr(
    integrity,
    "_sha256",
    lambda folder, block: hashed.append((block.file, block.start, block.size)) or real(folder, block),
  )
  total, shares = 0, []
  for part in range(parts):
    hashed.clear()
    assert integrity.damage(folder, part, parts) is None
    shares.append(sum(size for *_, size in hashed))
    total += len({*hashed})
  files = [p for p in folder.rglob("*") if p.is_file() and p.name != checkpoint.SEAL]
  assert sum(shares) == sum(p.stat().st_size for p in files)
  assert max(shares) <= sum(shares) / parts + 500
  for victim in files:
    pristine = victim.read_bytes()
    victim.write_bytes(pristine[:-1] + bytes([pristine[-1] ^ 4]))
    assert sum(integrity.damage(folder, part, parts) is not None for part in range(parts)) == 1, victim
    victim.write_bytes(pristine)


def test_a_full_disk_is_reported_with_the_last_complete_step(store, monkeypatch):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(integrity, "write_seal", full)
  store.save(40, state(40))
  with pytest.raises(
    CheckpointError, match=r"step 40 was not saved: the disk is full; the last complete checkpoint is step 30"
  ):
    store.wait()
  assert sound_steps(store) == [30, 20]
  assert not list(Path(store.folder).glob(".*"))


def test_too_little_disk_space_is_reported_before_anything_is_written(store, monkeypatch):
  usage = shutil._ntuple_diskusage(1000, 900, 100)
  monkeypatch.setattr(folders.shutil, "disk_usage", lambda folder: usage)
  store.save(40, state(40))
  with pytest.raises(CheckpointError, match="the disk is full; the last complete checkpoint is step 30"):
    store.wait()


def test_a_save_whose_wait_was_interrupted_is_awaited_on_close(store, monkeypatch):
  """After a second Ctrl-C while the last checkpoint is being written, no other command may see it half written."""
  real, going_on, writes = integrity.write_seal, threading.Event(), []

  def slow(*given):
    going_on.wait(60)
    real(*given)
    writes.append(given)

  monkeypatch.setattr(integrity, "write_seal", slow)
  store.save(40, state(40))
  with monkeypatch.context() as patch:
    patch.setattr(concurrent.futures, "wait", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      store.wait()
  threading.Timer(0.5, going_on.set).start()
  store.close()
  assert len(writes) == 1
  assert store.newest_sound() == 40


def test_a_checkpoint_holds_the_state_at_the_start_of_the_save(store, monkeypatch):
  """Training changes the same memory meanwhile: of arrays that are joined, the only ones of their dtype, or large."""
  saved = {"large": np.ones((700, 512), np.float32), "one": np.ones(3, np.float16), "a": np.ones(3), "b": np.ones(2)}
  real, going_on = folders.check_space, threading.Event()
  monkeypatch.setattr(folders, "check_space", lambda *given: (going_on.wait(60), real(*given)))
  store.save(40, saved)
  for array in saved.values():
    array[...] = 2
  going_on.set()
  store.wait()
  assert same(store.restore(40, saved), jax.tree.map(np.ones_like, saved))


def test_a_failed_save_is_reported_without_waiting(store, monkeypatch):
  monkeypatch.setattr(integrity, "write_seal", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
  store.save(40, state(40))
  store._pending.exception()  # it has ended, and nobody has asked how
  with pytest.raises(CheckpointError, match="broken"):
    store.check()
  store.check()


@pytest.mark.parametrize("shape", [(65537, 40), (40, 65537), (30522, 90), (30592, 90), (2 * 3 * 65537,), (8, 512, 512)])
def test_arrays_of_any_length_are_stored_in_few_pieces(tmp_path, shape):
  """Orbax cuts at divisors, so it would store an axis with a large prime factor row by row or number by number."""
  store = Checkpoints(tmp_path)
  store.save(1, {"large": np.zeros(shape, np.float32), **{f"s{i}": np.zeros(100_003, np.float32) for i in range(13)}})
  store.close()
  for name in ("large", "joined.float32"):
    where = {"driver": "ocdbt", "base": f"file://{tmp_path}/1/arrays", "path": name}
    array = tensorstore.open({"driver": "zarr", "kvstore": where}).result()
    chunk = array.chunk_layout.write_chunk.shape
    assert chunk is not None
    pieces = np.prod(array.shape) / np.prod(np.asarray(chunk, int))
    assert pieces <= 1 + 256 * array.size * 4 / arrays.CHUNK
    assert pieces < 300

"""The devices of this machine: setup, identity, memory and peak FLOP/s; and published facts about chips."""

import contextlib
import ctypes
import dataclasses
import functools
import glob
import hashlib
import importlib.util
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bigmodel.files import cache_dir
from bigmodel.types import Device


def setup() -> None:
  """Prepares JAX for this process; call it before the first JAX computation.

  On a CPU every core becomes a device: data-parallel programs over one-core devices compute small matrix products
  faster than one device with as many threads (`benchmarks/train_step.py` prints by how much).
  """
  if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and "host_platform_device_count" not in os.environ.get(
    "XLA_FLAGS", ""
  ):
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    _keep_memory()
  flags = flags_of_xla(os.environ.get("JAX_PLATFORMS", ""), glob.glob("/dev/*"), os.environ.get("XLA_FLAGS", ""))
  if flags:
    os.environ["XLA_FLAGS"] = flags
  if _has_libtpu_without_tpu():
    # For this process only: environment variables would also reach workers on machines with accelerators.
    jax.config.update("jax_platforms", "cpu")
  # A program compiled for one CPU can crash on another: the cache is keyed by both.
  cache = cache_dir() / "xla" / f"{jax.__version__}-{cpu_identity()}"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


# Without this flag, sums by atomic additions (gradients of embeddings, some reductions) and the choice of kernels by
# measured time differ from run to run. Every build of XLA accepts it (jaxlib 0.10 to 0.12), also those without a GPU.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# If either flag is in a user's XLA_FLAGS, with any value, it is left as it is.
_DETERMINISM_FLAGS = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
_GPU_DEVICES = ("/dev/nvidia", "/dev/dxg", "/dev/kfd")
_GPU_PLATFORMS = {"cuda", "gpu", "rocm"}


def flags_of_xla(platforms: str, devices: Sequence[str], flags: str) -> str:
  """XLA_FLAGS for this process: `flags`, and on GPUs the flag that makes equal runs bit-identical.

  `platforms` is the value of JAX_PLATFORMS ('' lets JAX choose), `devices` the paths of this machine's device files.
  """
  uses_gpu = not platforms or bool(_GPU_PLATFORMS & set(platforms.split(",")))
  if not uses_gpu or not any(path.startswith(_GPU_DEVICES) for path in devices):
    return flags
  if any(name in flags for name in _DETERMINISM_FLAGS):
    return flags
  return f"{flags} {DETERMINISTIC}".strip()


def _has_libtpu_without_tpu() -> bool:
  """Whether libtpu is installed, there is no accelerator, and no platform was chosen.

  JAX would then try the TPU first, and libtpu would print five lines about not finding one.
  """
  chosen = os.environ.get("JAX_PLATFORMS") or getattr(jax.config, "jax_platforms", None)
  if chosen or importlib.util.find_spec("libtpu") is None:
    return False
  return not _signs_of_accelerators(glob.glob("/dev/*") + glob.glob("/dev/vfio/*"), _pci_vendors(), os.environ)


# Paths of devices, PCI vendors and environment variables that only a machine with an accelerator has.
_ACCELERATOR_DEVICES = ("/dev/accel", "/dev/vfio", "/dev/nvidia", "/dev/dxg", "/dev/kfd")
_ACCELERATOR_VENDORS = ("0x1ae0", "0x10de")  # Google, NVIDIA
_TPU_VARIABLES = ("TPU_", "CLOUD_TPU_", "MEGASCALE_", "JAX_FORCE_TPU_INIT")
# These may be set on machines without a TPU, too: by JAX, by libtpu, or by users to silence libtpu.
_SET_ANYWHERE = ("TPU_LIBRARY_PATH", "TPU_SKIP_MDS_QUERY", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL")


def _signs_of_accelerators(devices: Sequence[str], vendors: Sequence[str], environment: Mapping[str, str]) -> list[str]:
  """The device files, PCI vendors and environment variables that only a machine with a TPU or a GPU has."""
  signs = [path for path in devices if path.startswith(_ACCELERATOR_DEVICES)]
  signs += [vendor for vendor in vendors if vendor in _ACCELERATOR_VENDORS]
  return signs + [name for name in environment if name.startswith(_TPU_VARIABLES) and name not in _SET_ANYWHERE]


def _pci_vendors() -> list[str]:
  vendors = []
  for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
      vendors.append(file.read().strip())
  return vendors


def _keep_memory() -> None:
  """Tells glibc to keep freed memory; otherwise buffers of over 32 MB are mapped and cleared again in every step.

  Measured on 2 cores: 16,000 page faults a step became none, and steps of models 64 to 256 wide took 14% to 36% less.
  """
  if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-8, 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX
      library.mallopt(parameter, value)


@functools.cache
def cpu_identity() -> str:
  """A short hash of the CPU's model and instruction sets."""
  flags = platform.processor() + platform.machine()
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      for line in file:
        if line.startswith(("flags", "model name")):
          flags += line
        if not line.strip():
          break
  except OSError:
    pass
  return hashlib.sha256(flags.encode()).hexdigest()[:12]


def compiler_options(platform: str | None = None) -> dict[str, str | int]:
  """Options for `jax.jit` that make a training step faster on a platform, by default the one in use."""
  if (platform or jax.default_backend()) != "cpu":
    return {}
  return {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_prefer_vector_width": 512 if "avx512f" in cpu_flags() else 256,
  }


@functools.cache
def cpu_flags() -> frozenset[str]:
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      return frozenset(next((line for line in file if line.startswith("flags")), "").split())
  except OSError:
    return frozenset()


def peak_flops(devices: Sequence[Device], dtype: str) -> float:
  """The peak FLOP/s of these devices, of all hosts together, in matrix products of this dtype.

  It is the published peak if the chip is in the table. Otherwise the devices of this process are measured, all at
  once, and devices of other hosts are assumed to be as fast.
  """
  chip = chip_of(devices[0].device_kind)
  if chip is not None:
    return len(devices) * chip.peak(dtype) / chip.devices
  here = tuple(device for device in devices if device.process_index == jax.process_index())
  # Only large products keep an accelerator busy. A CPU may compute bfloat16 products in float32.
  size = 1024 if devices[0].platform == "cpu" else 8192
  types = {dtype, "float32"} if devices[0].platform == "cpu" else {dtype}
  return len(devices) / len(here) * max(measured_flops(here, name, size) for name in sorted(types))


@functools.cache
def measured_flops(devices: tuple[Device, ...], dtype: str, size: int = 1024, repeats: int = 5) -> float:
  """FLOP/s of devices of this process, measured in products of `size` x `size` matrices on all at once."""
  a = jnp.ones((size, size), dtype)
  multiply = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"), compiler_options=compiler_options())
  inputs = [jax.device_put(a, device) for device in devices]
  jax.block_until_ready([multiply(x) for x in inputs])
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready([multiply(x) for x in inputs])
    best = min(best, time.perf_counter() - start)
  return len(inputs) * 2 * size**3 / best


def memory() -> float:
  """Bytes that one device can hold; for a CPU device its share of the machine's memory."""
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    return (device.memory_stats() or {}).get("bytes_limit", math.inf)
  allowed = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
  for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
      allowed.append(float(file.read()))
  return min(allowed) / jax.local_device_count()


def describe() -> dict[str, object]:
  """The devices of this process, for the field `devices` of a record."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "kind": device.device_kind,
    "count": jax.device_count(),
    "processes": jax.process_count(),
    "cpu": cpu_identity(),
  }


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published facts about a chip. One device of JAX is one chip unless `devices` is more than 1."""

  flops: float  # bfloat16 FLOP/s, a multiply-add as 2, without sparsity
  memory: float  # bytes
  bandwidth: float  # of the memory, bytes per second
  link: float  # one link of the interconnect, one way, bytes per second
  dimensions: int  # of the torus; 0: a switch connects all devices of a host at `link`
  clock: float = 0.0  # of the cores, Hz; converts the compiler's estimated cycles to seconds
  devices: int = 1  # devices of JAX per chip
  host: int = 4  # chips per host
  flops32: float = 0.0  # float32 FLOP/s; 0: six bfloat16 passes, which is how a TPU computes it
  kinds: tuple[str, ...] = ()  # JAX's names of its devices
  network: float = 0.0  # the network card of one chip, one way, bytes per second; 0: the torus connects the hosts

  def peak(self, dtype: str) -> float:
    """FLOP/s of one chip in products of this type."""
    return self.flops if dtype == "bfloat16" else self.flops32 or self.flops / 6


def chip_of(device_kind: str) -> Chip | None:
  """The chip whose devices JAX gives this name, or None if the table does not have it."""
  return next((chip for chip in CHIPS.values() if device_kind in chip.kinds), None)


# Latency of a message in seconds, between GPUs of a host and between hosts, as NCCL assumes for rings
# (src/graph/tuning.cc, hwLat of NVLINK and NET, Ring, protocol Simple).
SWITCH_LATENCY, NETWORK_LATENCY = 3.4e-6, 14e-6

# Google Cloud's TPU pages and NVIDIA's data sheets; clocks from peak / (matrix units x their size). NVIDIA counts both
# directions of NVLink together: 600 GB/s (A100 SXM), 900 GB/s (H100 and H200 SXM). DGX hosts have 8 GPUs and a network
# card for each: 200 Gb/s (DGX A100 data sheet), 400 Gb/s (DGX H100 and H200 data sheets).
CHIPS = {
  "v4": Chip(275e12, 32 * 2**30, 1228e9, 45e9, 3, 1.05e9, kinds=("TPU v4",)),
  "v5e": Chip(197e12, 16 * 2**30, 819e9, 45e9, 2, 1.5e9, host=8, kinds=("TPU v5 lite", "TPU v5e")),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 90e9, 3, 1.75e9, kinds=("TPU v5", "TPU v5p")),
  "v6e": Chip(918e12, 32 * 2**30, 1640e9, 90e9, 2, 1.75e9, host=8, kinds=("TPU v6 lite", "TPU v6e")),
  "tpu7x": Chip(2307e12, 192 * 2**30, 7380e9, 100e9, 3, 2.2e9, devices=2, kinds=("TPU7x",)),
  "a100": Chip(
    312e12,
    80e9,
    2039e9,
    300e9,
    0,
    host=8,
    flops32=19.5e12,
    network=25e9,
    kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"),
  ),
  "h100": Chip(989e12, 80e9, 3350e9, 450e9, 0, host=8, flops32=67e12, network=50e9, kinds=("NVIDIA H100 80GB HBM3",)),
  "h200": Chip(989e12, 141e9, 4800e9, 450e9, 0, host=8, flops32=67e12, network=50e9, kinds=("NVIDIA H200",)),
}

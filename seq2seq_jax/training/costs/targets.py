"""Accelerators that a run is planned for and that this machine need not have: `plan --target`."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.stages import Wrapped as JitWrapped

from seq2seq_jax.data.batching import BatchShape
from seq2seq_jax.errors import UserError, did_you_mean
from seq2seq_jax.training.costs.collectives import Collective
from seq2seq_jax.training.costs.counts import Products
from seq2seq_jax.training.seeds import SeedsState
from seq2seq_jax.training.setup import CompiledStep, compile_step
from seq2seq_jax.training.step import TrainState


class Chip(NamedTuple):
    """What its maker says of an accelerator, in bytes, and in numbers a second."""

    platform: str
    memory: int
    """Bytes of one device."""
    bandwidth: float
    """Bytes a second from and to them."""
    flops: dict[str, float]
    """Operations a second of dense matrix products, as JAX takes them by default, by model.compute_dtype."""
    links: float
    """Bytes a second that one device can send to others nearby."""


def _tpu(gigabytes: float, bandwidth: float, flops: float, links: float) -> Chip:
    # JAX takes products of float32 in one pass of bfloat16 there.
    return Chip("tpu", int(gigabytes * 2**30), bandwidth, {"bfloat16": flops, "float32": flops}, links)


CHIPS = {  # makers' pages: docs.cloud.google.com/tpu/docs/v5e and v6e, NVIDIA's data sheets; v5p is recalled
    "v5e": _tpu(16, 0.819e12, 197e12, 200e9),
    "v5p": _tpu(95, 2.765e12, 459e12, 600e9),
    "v6e": _tpu(32, 1.64e12, 918e12, 400e9),
    # Products of float32 by TF32; links are half of what NVLink has in both directions.
    "h100": Chip("cuda", 84_929_347_584, 3.352e12, {"bfloat16": 989e12, "float32": 494e12}, 450e9),
    "h200": Chip("cuda", 150_754_820_096, 4.8e12, {"bfloat16": 989e12, "float32": 494e12}, 450e9),
}
"""By the names of targets."""

HOST_OF_GPUS = 8
BETWEEN_HOSTS = 400e9
"""Bytes a second that a host of GPUs can send to others: eight adapters of 400 Gbit/s, as NVIDIA's DGX H100 has them. A
ring through all GPUs is eight rings in truth, each of which leaves the host by an adapter of its own."""

_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory}
  shared_memory_per_block_optin: 232448 cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""  # of XLA's GpuTargetConfigProto
_NAMES = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}


def links(chip: Chip, number: int) -> float:
    """Bytes a second that a ring through so many devices passes on."""
    several_hosts = chip.platform == "cuda" and number > HOST_OF_GPUS
    return min(chip.links, BETWEEN_HOSTS) if several_hosts else chip.links


class Target(NamedTuple):
    """Devices to compile for."""

    name: str
    chip: Chip
    devices: list[Any]
    """Compile-only devices: they have a kind and a place, and run nothing."""

    @property
    def compiler_options(self) -> dict[str, int] | None:
        """Of `lower().compile()`: kernels cannot be tried out where there is no GPU."""
        return {"xla_gpu_autotune_level": 0} if self.chip.platform == "cuda" else None

    @property
    def links(self) -> float:
        """Bytes a second that a ring through all devices passes on."""
        return links(self.chip, len(self.devices))


def _prepare_environment() -> None:
    """Lets JAX start on the CPU, and XLA's TPU compiler without a TPU."""
    jax.config.update("jax_platforms", "cpu")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",  # the machine's own service, which only a TPU machine has
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # libtpu wants one before it is told the topology
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def find_target(name: str) -> Target:
    """Returns the devices that a name stands for: `v5e:4x4` are 16 TPU chips, `h100x8` eight GPUs.

    Call it before JAX has looked for devices: of those that are here it will see
    the CPU alone.

    Raises:
      UserError: there is no such accelerator or topology, or the compiler for it is not installed.
    """
    found = re.fullmatch(r"(v\d+[a-z]*):(\d+(?:x\d+)*)|([a-z]+\d+)x(\d+)", name.lower())
    kind = found and (found[1] or found[3])
    if kind not in CHIPS or (CHIPS[kind].platform == "tpu") != bool(found and found[1]):
        tpus = ", ".join(kind for kind, chip in CHIPS.items() if chip.platform == "tpu")
        gpus = ", ".join(kind for kind, chip in CHIPS.items() if chip.platform == "cuda")
        raise UserError(
            f"--target {name}: give a TPU and its topology, such as v5e:4x4 ({tpus}), or GPUs and their number, such as"
            f" h100x8 ({gpus}).{did_you_mean(kind, CHIPS) if kind else ''}"
        )
    assert found and kind
    chip = CHIPS[kind]
    extra, module = {"tpu": ("tpu", "libtpu"), "cuda": ("cuda", "jax_plugins.xla_cuda13")}[chip.platform]
    if not _is_installed(module):
        raise UserError(
            f"--target {name} needs the compiler for it, which is not installed: pip install 'seq2seq-jax[{extra}]'."
        )
    _prepare_environment()
    try:
        if chip.platform == "tpu":
            topology = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{found[2]}")
        else:
            topology = topologies.get_topology_desc(
                platform="cuda", target_config=_gpu_config(kind, chip), topology=_hosts_of_gpus(name, int(found[4]))
            )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--target {name}: {str(error).partition(chr(10))[0][:300]}") from error
    return Target(name, chip, list(topology.devices))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def _gpu_config(kind: str, chip: Chip) -> str:
    return _HOPPER.format(bandwidth=chip.bandwidth, memory=chip.memory, name=_NAMES[kind])


def _hosts_of_gpus(name: str, number: int) -> str:
    """XLA's topology: partitions, hosts of each, devices of each."""
    hosts, rest = divmod(number, HOST_OF_GPUS)
    if number < 1 or (hosts and rest):
        raise UserError(
            f"--target {name}: give up to {HOST_OF_GPUS} GPUs, which are one host, or a multiple of {HOST_OF_GPUS}."
        )
    return f"1x{hosts}x{HOST_OF_GPUS}" if hosts else f"1x1x{number}"


def compile_for(
    target: Target, step: JitWrapped, abstract: TrainState | SeedsState, shape: BatchShape, mesh: Mesh
) -> CompiledStep:
    """Compiles the train step for the batches of one shape, and for `target`, whose devices `mesh` has.

    Raises:
      UserError: it does not fit, which a compiler for TPUs finds out itself.
    """
    try:
        return compile_step(step, abstract, shape, mesh, target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
        numbers = f" {used[1]} bytes are needed of {used[2]}." if used else ""
        raise UserError(
            f"A training step of {shape.batch} sentences, {shape.source} source and {shape.target} target positions"
            f" does not fit on {target.name}.{numbers} Choose a smaller batch or model, more devices, a larger"
            " train.accumulate_steps, which cuts a batch into parts, or train.rematerialize_every, which keeps less of"
            " long sequences."
        ) from error


def estimated_seconds(taken: Products, meetings: Sequence[Collective], target: Target, dtype: str) -> float:
    """How long a step takes if its products run at full speed, of operations or of memory, and so do its collectives.

    What else a step does, the latency of its loops and launches above all, is not
    in it. A ring passes the bytes of an all-reduce round twice, those of others once.
    """
    chip, number = target.chip, len(target.devices)
    passed = sum((2 if each.kind == "all-reduce" else 1) * each.bytes for each in meetings) * (number - 1) / number
    return max(taken.flops / chip.flops[dtype], taken.bytes / chip.bandwidth) + passed / target.links

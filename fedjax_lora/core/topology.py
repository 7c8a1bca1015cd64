"""Targets that are not at hand: the devices of TPU slices and GPUs, for their compilers alone."""

import os

from fedjax_lora.core.chips import CHIPS, Chip, TargetSpec
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.optional_packages import is_installed
from fedjax_lora.core.untrusted_files import first_line

TPU_MODULE, GPU_MODULES = "libtpu", ("jax_plugins.xla_cuda13", "jax_cuda13_plugin")


def check_installed(spec: TargetSpec) -> None:
    """Refuse a target whose compiler is not installed; loads nothing.

    Raises:
      InputError: it is not; says what to install.
    """
    if CHIPS[spec.chip].platform == "tpu":
        if not is_installed(TPU_MODULE):
            raise InputError(
                f"Compiling for {spec} needs the TPU compiler, which runs without a TPU; install "
                "it with: pip install 'fedjax-lora[aot]'"
            )
    elif not all(map(is_installed, GPU_MODULES)):
        raise InputError(
            f"Compiling for {spec} needs JAX's plugin for GPUs, which compiles without a GPU and "
            "without CUDA; install it in jax's own version with: pip install --no-deps "
            "jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION"
        )


def prepare_environment() -> None:
    """Let this process compile for targets and run on its processors; call before JAX is loaded."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # The TPU compiler should neither look for a TPU's host nor be the only one on this machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    for name in ("TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL", "TF_CPP_MIN_LOG_LEVEL"):
        os.environ.setdefault(name, "3")


def topology_devices(spec: TargetSpec) -> tuple:
    """Return the devices of a target, in whose names programs can be compiled.

    Raises:
      InputError: the compiler is not installed, or does not know the target.
    """
    check_installed(spec)
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    chip = CHIPS[spec.chip]
    try:
        if chip.platform == "tpu":
            topology = topologies.get_topology_desc(platform="tpu", topology_name=str(spec))
        else:
            topology = topologies.get_topology_desc(
                spec.topology,
                platform="cuda",
                topology=spec.topology,
                target_config=gpu_description(chip),
            )
    except (JaxRuntimeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"The installed compiler does not take the target {spec} ({first_line(error)}); "
            "install the version that goes with this jax."
        ) from error
    return tuple(topology.devices)


def gpu_description(chip: Chip) -> str:
    """Describe a GPU of NVIDIA's Hopper generation (compute capability 9.0) to XLA.

    The text is a message ``GpuTargetConfigProto`` of XLA; the limits are those of the CUDA
    programming guide for this compute capability.
    """
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  core_count: {chip.cores} fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {chip.cached}
  device_memory_size: {chip.device_memory}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.kind}"
"""

"""Strict JAX settings, eight CPU devices, and the fixture of real data."""

import gc
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator

# Before jax is imported: eight devices to shard over.
flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Of this session and all its processes, unless it is given: the user's own cache is not touched.
if "FEDJAX_LORA_CACHE" not in os.environ:
    session = tempfile.TemporaryDirectory(prefix="fedjax-lora-tests-")
    os.environ["FEDJAX_LORA_CACHE"] = session.name

import jax
import pytest
from jaxtyping import install_import_hook

from tests._helpers import alike

# Every annotation of these modules, shapes included, is checked while the tests run.
install_import_hook(
    [
        f"fedjax_lora.{name}"
        for name in (
            "core",
            "evaluation",
            "federated.diagnostics",
            "federated.ranks",
            "federated.transforms",
            "lora",
            "methods",
            "models",
        )
    ],
    "beartype.beartype",
)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Programs without the lines of Python that made them are smaller, and written and compiled sooner.
jax.config.update("jax_traceback_in_locations_limit", 0)
# A program that several tests or processes need is compiled once.
jax.config.update("jax_compilation_cache_dir", os.environ["FEDJAX_LORA_CACHE"] + "/xla")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

MOST_MAPPINGS = 40_000  # of the 65,530 that Linux allows
SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the slow run what `alike` says, and skip what the machine has not."""
    for item in items:
        if alike.belongs_to_the_slow_run(item):
            item.add_marker(pytest.mark.slow)
    _skip_without_data_or_compiler(items)


def _skip_without_data_or_compiler(items: list[pytest.Item]) -> None:
    """Skip tests that need the real data folder or the TPU compiler, visibly, without them."""
    if not SHARED.is_dir():
        for item in items:
            if item.get_closest_marker("shared"):
                item.add_marker(pytest.mark.skip(reason="needs the real data in ../shared"))
    if importlib.util.find_spec("libtpu") is None:
        for item in items:
            if item.get_closest_marker("tpu"):
                item.add_marker(pytest.mark.skip(reason="needs libtpu: pip install .[aot]"))


def pytest_collection_finish() -> None:
    """Nothing imported so far is garbage: the collector need not look through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most of the time would go to optimising what runs for milliseconds.

    A module with ``pytestmark = pytest.mark.optimized`` compiles as users do: a whole run, models
    against PyTorch, and what is about compiled programs.
    """
    quick = request.node.get_closest_marker("optimized") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Compiled programs are mapped into memory, and a process may have only so many mappings."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def shared() -> pathlib.Path:
    """The folder of real data and models beside the checkout."""
    return SHARED


@pytest.fixture
def key() -> jax.Array:
    """A random key."""
    return jax.random.key(0)

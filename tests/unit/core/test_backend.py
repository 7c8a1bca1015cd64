"""Settings of JAX with which nothing can run are named before anything is loaded."""

import jax
import pytest

from fedjax_lora import interop, models
from fedjax_lora.core.backend import check_backend, multiplies_bfloat16
from fedjax_lora.core.errors import InputError
from fedjax_lora.runs import loading


def test_x64_mode_is_refused_and_its_option_named(tmp_path, key):
    check_backend()
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(InputError, match="JAX_ENABLE_X64 is on"):
            interop.load_model(tmp_path)
        with pytest.raises(InputError, match="JAX_ENABLE_X64 is on"):
            models.load("minilm", num_labels=2, key=key)
    finally:
        jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unknown backend cuda\nmore")])
def test_unavailable_platform_is_named(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match=r"cannot use JAX_PLATFORMS=cuda \(.*unset it") as raised:
        check_backend()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("told", "multiplies"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("model name\t: bf16 9000\nflags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd\n", False),
        ("processor\t: 0\n", None),
    ],
)
def test_processor_that_multiplies_bfloat16_is_known_by_its_features(tmp_path, told, multiplies):
    file = tmp_path / "cpuinfo"
    assert multiplies_bfloat16(file) is None
    file.write_text(told)
    assert multiplies_bfloat16(file) is multiplies


@pytest.mark.parametrize(
    ("dtype", "multiplies", "warns"),
    [("bfloat16", False, True), ("bfloat16", True, False), ("bfloat16", None, False),
     ("float32", False, False)],
)  # fmt: skip
def test_bfloat16_that_the_processor_lacks_is_said(dtype, multiplies, warns, monkeypatch, caplog):
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: multiplies)
    loading.warn_of_slow_dtype(dtype)
    assert ("slower than float32" in caplog.text) == warns

"""Settings of JAX with which nothing can run are named before anything is loaded."""

import jax
import pytest

from fedjax_lora import interop, models
from fedjax_lora.core.backend import check_backend
from fedjax_lora.core.errors import InputError


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

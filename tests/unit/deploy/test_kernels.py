"""Base kernels that a method changes: a site that was away gets what it has missed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora.core.types import LoRA
from fedjax_lora.deploy.exchange import header
from fedjax_lora.deploy.kernels import KernelHistory, SiteKernels, digest
from fedjax_lora.deploy.message import Message, Refused, from_bytes, to_bytes
from fedjax_lora.deploy.wire.kernels import kernel_forms, pack_kernels, unpack_kernels
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods.base import with_added
from tests._helpers.problems import assert_same_bits

SPEC = LoraSpec(
    targets=(
        LoraTarget("layers/query", 12, 10, (True, False, True)),
        LoraTarget("out", 9, 11, None),
    ),
    rank=3,
    alpha=3.0,
)
LARGE = 4 * (2 * 12 * 10 + 9 * 11)
"""Bytes of the kernels."""


def draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def begun(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {t.path: draw(rng, *t.stack, t.inputs, t.outputs) for t in SPEC.targets}


def product(seed: int, width: int = 4, used: int = 1) -> dict[str, LoRA]:
    """Factors of which the first components are not zero; none in a layer that is left out."""
    rng, made = np.random.default_rng(seed), {}
    for target in SPEC.targets:
        mask = np.broadcast_to(np.arange(width) < used, (*target.stack, width)).copy()
        if target.layers is not None:
            mask &= np.array(target.layers)[:, None]
        a = np.where(mask[..., None, :], draw(rng, *target.stack, target.inputs, width), 0)
        b = np.where(mask[..., None], draw(rng, *target.stack, width, target.outputs), 0)
        made[target.path] = LoRA(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    return made


def sent(change) -> tuple:
    """A change after its way through a message, and the bytes of its arrays."""
    arrays, value = pack_kernels(SPEC, change)
    message = from_bytes(to_bytes(Message(arrays, {"kernels": value})), most=1 << 20)
    forms = kernel_forms(SPEC, message)
    assert {n: (x.shape, x.dtype) for n, x in message.arrays.items()} == {
        n: (form.shape, form.dtype) for n, form in forms.items()
    }
    return unpack_kernels(SPEC, message), message.array_bytes


def server(steps: int, *, used: int = 1) -> tuple[KernelHistory, list[dict]]:
    """A server's history, and its kernels before each step and after the last."""
    history, kernels = KernelHistory(SPEC), [begun()]
    history.begin(kernels[0])
    for n in range(steps):
        history.add(product(n, used=used))
        kernels.append(jax.jit(with_added)(kernels[-1], product(n, used=used)))
    return history, kernels


@pytest.mark.parametrize("away", [1, 2, 3])
def test_a_site_that_was_away_gets_all_products_since_and_the_servers_bits(away):
    site, history, size = SiteKernels(SPEC, begun()), KernelHistory(SPEC), 0
    history.begin(begun())
    kernels, held = begun(), history.version
    for n in range(4):
        history.add(product(n))
        kernels = jax.jit(with_added)(kernels, product(n))
        if (n + 1) % away == 0:
            change, size = sent(history.change(held, kernels))
            assert_same_bits(site.apply(change), kernels)
            held = site.version
            # One of four components each; three layers of four components are two bytes of bits.
            assert size == away * (4 * (2 * 22 + 20) + 2 + 1)
    assert size


def test_kernels_are_sent_whole_where_they_are_smaller_than_what_was_added():
    history, kernels = server(9)
    site = SiteKernels(SPEC, begun())
    change, size = sent(history.change(site.version, kernels[-1]))
    assert size == LARGE
    got = site.apply(change)
    assert_same_bits(got, {p: x.at[1].set(got[p][1]) if x.ndim == 3 else x
                           for p, x in kernels[-1].items()})  # fmt: skip
    assert site.version == history.version


def test_each_layer_is_sent_in_the_smaller_way():
    targets = (LoraTarget("wide", 40, 40, None), LoraTarget("small", 3, 3, None))
    spec = LoraSpec(targets=targets, rank=2, alpha=2.0)
    zeros = {"wide": jnp.zeros((40, 40)), "small": jnp.zeros((3, 3))}
    history = KernelHistory(spec)
    history.begin(zeros)
    pair = lambda i: LoRA(jnp.ones((i, 2)), jnp.ones((2, i)))  # noqa: E731
    history.add({"wide": pair(40), "small": pair(3)})
    change = history.change(digest(spec, zeros), zeros)
    assert set(change.whole) == {"small"}


def test_a_site_whose_kernels_are_not_known_gets_them_whole():
    history, kernels = server(1)
    site = SiteKernels(SPEC, begun(seed=3))
    assert site.version != digest(SPEC, begun())
    with pytest.raises(Refused, match="does not have"):
        site.apply(history.change(digest(SPEC, begun()), kernels[-1]))
    site.apply(history.change(None, kernels[-1]))
    assert site.version == history.version


def test_a_message_that_comes_again_changes_nothing():
    history, kernels = server(2)
    site = SiteKernels(SPEC, begun())
    change = history.change(site.version, kernels[-1])
    assert_same_bits(site.apply(change), site.apply(change))


def test_a_round_without_anybody_adds_nothing():
    history, _ = server(1)
    version = history.version
    history.add(jax.tree.map(jnp.zeros_like, product(5)))
    assert history.version == version


def test_a_server_remembers_no_more_than_the_kernels_have():
    history, _ = server(40)
    kept = history.change(history._before[0], begun())
    assert len(kept.steps) < 8


@pytest.mark.parametrize(
    "value",
    [
        5,
        {"versions": ["x"], "components": [], "whole": ["texts"]},
        {"versions": ["x"], "components": [[1, 1]], "whole": []},
        {"versions": ["x", "y"], "components": [[1]], "whole": []},
        {"versions": ["x", "y"], "components": [[1, -1]], "whole": []},
        {"versions": ["x", "y"], "components": [[1, 1.0]], "whole": []},
        {"versions": ["x", "y"], "components": [[True, 1]], "whole": []},
        {"versions": ["x", 3], "components": [[1, 1]], "whole": []},
        {"versions": "xy", "components": [[1, 1]], "whole": []},
        {"versions": ["x"], "components": [], "whole": [], "more": 1},
    ],
)
def test_a_change_that_is_none_is_refused(value):
    with pytest.raises(Refused, match="unknown"):
        kernel_forms(SPEC, Message({}, {**header("d", 0, 0), "kernels": value}))


def test_products_without_their_masks_are_refused():
    value = {"versions": ["x", "y"], "components": [[1, 1]], "whole": []}
    with pytest.raises(Refused, match="no bit mask"):
        kernel_forms(SPEC, Message({}, {"kernels": value}))

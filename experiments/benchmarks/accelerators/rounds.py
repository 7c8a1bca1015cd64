"""Rounds of this library on the devices that are here."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.accelerators.timing import peak_bytes
from experiments.benchmarks.backbones import RATE, Work, assets, run_config
from fedjax_lora.core.target import current_target
from fedjax_lora.runs import build, cost

Record = dict[str, Any]
Case = tuple[str, Callable[[], Record]]


def encoder_work(*, tiny: bool, **options: Any) -> Work:
    """RoBERTa-large on 128 tokens; also what the PEFT loop does."""
    if tiny:
        return Work(backbone="tiny", clients=4, batch=2, length=8, steps=2, **options)
    return Work(backbone="roberta-large", clients=16, batch=16, length=128, **options)


def decoder_work(*, tiny: bool, **options: Any) -> Work:
    """A Llama of 1.2 billion parameters on 512 tokens, all linear layers adapted."""
    if tiny:
        return Work(backbone="tiny-llama", clients=4, batch=2, length=8, steps=2, **options)
    return Work(backbone="llama-1b", clients=16, batch=4, length=512, **options)


def encoder(*, tiny: bool) -> Iterator[Case]:
    """Rounds of the encoder: as the library chooses, fewer clients at once, layers unrolled."""
    options = ({}, {"clients_per_step": 4}, {"clients_per_step": 1}, {"scan_unroll": 99})
    yield from _cases(encoder_work, options, tiny=tiny)


def decoder(*, tiny: bool) -> Iterator[Case]:
    """Rounds of the decoder."""
    options = ({}, {"clients_per_step": 1}, {"scan_unroll": 99})
    yield from _cases(decoder_work, options, tiny=tiny)


def _cases(make: Callable[..., Work], options: Any, *, tiny: bool) -> Iterator[Case]:
    for given in options:
        words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())
        yield words or "default", functools.partial(_measure, make(tiny=tiny, **given))


def _measure(work: Work, rounds: int = 3) -> Record:
    """Time the rounds of a work, and hold its memory against the estimate."""
    config, data = run_config(work), assets(work, weights=True)
    needs, target = cost.needs(config, data), current_target()
    made, state, times = build.build(config, data), None, []
    state = made.begin().state
    plan = made.federation.plan(0, made.ranks.initial, RATE)
    for _ in range(1 + rounds):
        began = time.perf_counter()
        state, seen = made.train(state, plan)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - began)
    each = statistics.median(times[1:])
    return {
        "clients": work.clients,
        "clients_at_once": needs.memory.clients_per_step,
        "first_seconds": times[0],
        "seconds": each,
        "tokens_per_second": work.tokens / each,
        "flops": needs.round_flops / each,
        "peak_flops": target.flops,
        "estimated_bytes": needs.memory.total,
        # Loading draws all weights in float32, so the peak of the process may be that.
        "peak_bytes": peak_bytes(),
        "parts_of_estimate": needs.memory._asdict(),
        "loss": float(jnp.mean(jnp.asarray(seen.loss))),
    }


def sharded(*, tiny: bool) -> Iterator[Case]:
    """The same round by `vmap` and over a mesh of all devices."""
    backbone, length = ("tiny", 8) if tiny else ("bert-base", 64)
    work = Work(backbone=backbone, clients=8, batch=4, length=length, steps=2, clients_per_step=1)
    yield "state", functools.partial(_compare, work)


def _compare(work: Work) -> Record:
    states = []
    for mode in ("vmap", "sharded"):
        one = dataclasses.replace(work, mode=mode)
        made = build.build(run_config(one), assets(one, weights=True))
        plan = made.federation.plan(0, made.ranks.initial, RATE)
        state, _ = made.train(made.begin().state, plan)
        states.append(jax.device_get(state.server))
    pairs = zip(*map(jax.tree.leaves, states), strict=True)
    apart = max(float(abs(x - y).max()) for x, y in pairs if x.size)
    moved = max(float(abs(x).max()) for x in jax.tree.leaves(states[0]) if x.size)
    return {"devices": jax.device_count(), "difference": apart, "largest": moved}

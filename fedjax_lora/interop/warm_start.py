"""A PEFT adapter as what a run begins with."""

import collections
import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np

from fedjax_lora import models
from fedjax_lora.core.errors import raise_all
from fedjax_lora.core.types import Adapter, LoRA
from fedjax_lora.interop import metadata
from fedjax_lora.interop.matrices import LoadedAdapter
from fedjax_lora.interop.peft import load_adapter
from fedjax_lora.lora import SCALES, LoraSpec, LoraTarget

_SAME = 1e-6  # scales that differ by less are one float32


def with_parts(model: models.Pretrained, folder: str | pathlib.Path) -> models.Pretrained:
    """The base with the head and the pooler that an adapter folder brings along.

    A head with another number of outputs belongs to another task and is not used, like that of a
    checkpoint.

    Args:
      model: the base.
      folder: the adapter's.

    Raises:
      InputError: as `load_adapter`; an adapter that was trained on another base or pooling.
    """
    stored = load_adapter(folder, model)
    same_task = stored.labels == model.config.num_labels
    values = {p: x for p, x in stored.values.items() if same_task or not p.startswith("head/")}
    model = models.replace_params(model, values) if values else model
    _check_base(model, pathlib.Path(folder))
    return model


def _check_base(model: models.Pretrained, folder: pathlib.Path) -> None:
    told = metadata.read(folder)
    if told is None:  # PEFT's own: it does not say what it was trained on, but by name
        return
    problems = []
    if told.pooling != model.config.pooling:
        problems.append(f"pooling is {model.config.pooling!r}, not {told.pooling!r}")
    elif told.base_sha256 != model.fingerprint:
        problems.append(
            f"its base is {told.base!r} with {told.layers or 'all'} layers, and this one has other "
            "parameters"
        )
    raise_all(f"The adapter in {folder} was trained on another model", problems)


def read_start(folder: str | pathlib.Path, model: models.Pretrained) -> LoadedAdapter:
    """The adapter in a folder, at its own rank and scale.

    Raises:
      InputError: as `load_adapter`.
    """
    return load_adapter(folder, model).placed


def fitting_spec(spec: LoraSpec, first: LoadedAdapter, *, keep_scale: bool) -> LoraSpec:
    """The template of a run that begins with an adapter.

    Args:
      spec: the run's own.
      first: the adapter.
      keep_scale: choose alpha such that the server's scale is the adapter's, so that its factors
        stay as they are.

    Raises:
      InputError: the adapter has a layer that the run does not adapt, or a higher rank.
    """
    _check_fit(spec, first)
    if not keep_scale:
        return spec
    used = np.concatenate([np.asarray(gain)[np.asarray(gain) != 0] for gain in first.gain.values()])
    scale = float(collections.Counter(used.tolist()).most_common(1)[0][0])
    if abs(scale - spec.server_scale) <= _SAME * scale:
        return spec
    one = SCALES[spec.scale_rule](1.0, spec.rank, spec.rank)
    return dataclasses.replace(spec, alpha=scale / one)


def _check_fit(spec: LoraSpec, first: LoadedAdapter) -> None:
    targets = {target.path: target for target in spec.targets}
    rank = next(iter(first.adapter.values())).a.shape[-1]
    problems = []
    for target in first.targets:
        if target.path not in targets:
            problems.append(f"{target.path} is not adapted (targets)")
        elif extra := _beyond(target, targets[target.path]):
            problems.append(f"layers {extra} of {target.path} are not adapted (lora_layers)")
    if rank > spec.rank:
        problems.append(f"it has rank {rank}, and the largest rank is {spec.rank} (ranks)")
    raise_all("The adapter to begin with does not fit this run", problems)


def _beyond(target: LoraTarget, run: LoraTarget) -> list[int]:
    here, there = target.layers or (), run.layers or ()
    return [n for n, adapted in enumerate(here) if adapted and not there[n]]


def begin_with(spec: LoraSpec, fresh: Adapter, first: LoadedAdapter) -> Adapter:
    """The global adapter of a run that begins with an adapter: the same function.

    Components and layers that the adapter does not have are those of a fresh one, which add
    nothing yet and can learn.

    Args:
      spec: the run's, see `fitting_spec`.
      fresh: a fresh adapter of this template.
      first: the adapter to begin with.
    """
    started = dict(fresh)
    for path, pair in first.adapter.items():
        a, b = fresh[path]
        rank = pair.a.shape[-1]
        own = first.gain[path]
        ratio = own / np.float32(spec.server_scale)
        ratio = jnp.where(jnp.abs(ratio - 1) <= _SAME, 1.0, ratio)
        has = own != 0
        started[path] = LoRA(
            a.at[..., :rank].set(jnp.where(has[..., None, :], pair.a, a[..., :rank])),
            b.at[..., :rank, :].set(jnp.where(has[..., None], pair.b * ratio[..., None], 0.0)),
        )
    return started

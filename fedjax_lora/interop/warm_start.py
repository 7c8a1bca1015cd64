"""Starting a run from a PEFT adapter instead of a fresh one."""

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

__all__ = ["warm_start", "warm_start_spec", "with_saved_modules"]

_SCALE_TOLERANCE = 1e-6  # scales that differ by less are the same float32


def with_saved_modules(
    pretrained: models.Pretrained, folder: str | pathlib.Path
) -> models.Pretrained:
    """Replace the head and the pooler of a base by those of an adapter folder.

    A head with another number of outputs belongs to another task and is not used.

    Args:
      pretrained: the base model.
      folder: the adapter folder.

    Returns:
      The base model with the parameters of the folder; `pretrained` if the folder has none.

    Raises:
      InputError: as `load_adapter`; or the adapter was trained on another base or pooling.
    """
    loaded = load_adapter(folder, pretrained)
    same_task = loaded.num_labels == pretrained.config.num_labels
    params = {p: x for p, x in loaded.params.items() if same_task or not p.startswith("head/")}
    pretrained = models.replace_params(pretrained, params) if params else pretrained
    _check_base(pretrained, pathlib.Path(folder))
    return pretrained


def _check_base(pretrained: models.Pretrained, folder: pathlib.Path) -> None:
    stored = metadata.read(folder)
    if stored is None:  # PEFT stores the base's name only
        return
    problems = []
    if stored.pooling != pretrained.config.pooling:
        problems.append(f"pooling is {pretrained.config.pooling!r}, not {stored.pooling!r}")
    elif stored.base_sha256 != pretrained.fingerprint:
        problems.append(
            f"its base is {stored.base!r} with {stored.layers or 'all'} layers, and this one has "
            "other parameters"
        )
    raise_all(f"The adapter in {folder} was trained on another model", problems)


def warm_start_spec(spec: LoraSpec, loaded: LoadedAdapter, *, keep_scale: bool) -> LoraSpec:
    """Return the LoRA spec of a run that starts from an adapter.

    Args:
      spec: the spec of the run's config.
      loaded: the adapter.
      keep_scale: choose alpha such that the server's scale is that of the adapter, so that the
        factors need no rescaling.

    Raises:
      InputError: the adapter has a layer that the run does not adapt, or a higher rank.
    """
    _check_fit(spec, loaded)
    if not keep_scale:
        return spec
    gains = [np.asarray(gain) for gain in loaded.gain.values()]
    active = np.concatenate([gain[gain != 0] for gain in gains])
    scale = float(collections.Counter(active.tolist()).most_common(1)[0][0])
    if abs(scale - spec.server_scale) <= _SCALE_TOLERANCE * scale:
        return spec
    scale_of_alpha_one = SCALES[spec.scale_rule](1.0, spec.rank, spec.rank)
    return dataclasses.replace(spec, alpha=scale / scale_of_alpha_one)


def _check_fit(spec: LoraSpec, loaded: LoadedAdapter) -> None:
    targets = {target.path: target for target in spec.targets}
    rank = next(iter(loaded.adapter.values())).a.shape[-1]
    problems = []
    for target in loaded.targets:
        if target.path not in targets:
            problems.append(f"{target.path} is not adapted (targets)")
        elif extra := _layers_beyond(target, targets[target.path]):
            problems.append(f"layers {extra} of {target.path} are not adapted (lora_layers)")
    if rank > spec.rank:
        problems.append(f"it has rank {rank}, and the largest rank is {spec.rank} (ranks)")
    raise_all("The initial adapter does not fit this run", problems)


def _layers_beyond(loaded: LoraTarget, run: LoraTarget) -> list[int]:
    """Layers of a stack that the loaded adapter adapts and the run does not."""
    run_layers = run.layers or ()
    return [n for n, adapted in enumerate(loaded.layers or ()) if adapted and not run_layers[n]]


def warm_start(spec: LoraSpec, fresh: Adapter, loaded: LoadedAdapter) -> Adapter:
    """Return the global adapter of a run that starts from an adapter.

    It computes the same function as the loaded adapter. Components and layers that the loaded
    adapter lacks are taken from the fresh one: their ``b`` is zero, and they can be trained.

    Args:
      spec: the run's spec, see `warm_start_spec`.
      fresh: a fresh adapter of `spec`, ``a: [(L,) i, R]``, ``b: [(L,) R, o]``.
      loaded: the adapter to start from, of at most rank `R`.
    """
    adapter = dict(fresh)
    for path, pair in loaded.adapter.items():
        a, b = fresh[path]
        rank = pair.a.shape[-1]
        gain = loaded.gain[path]
        ratio = gain / np.float32(spec.server_scale)
        ratio = jnp.where(jnp.abs(ratio - 1) <= _SCALE_TOLERANCE, 1.0, ratio)
        active = gain != 0
        adapter[path] = LoRA(
            a.at[..., :rank].set(jnp.where(active[..., None, :], pair.a, a[..., :rank])),
            b.at[..., :rank, :].set(jnp.where(active[..., None], pair.b * ratio[..., None], 0.0)),
        )
    return adapter

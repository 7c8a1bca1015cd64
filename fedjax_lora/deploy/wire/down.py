"""The server's message to a client: its start of a round at its true rank."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lora.core.trees import flat, nested
from fedjax_lora.core.types import ClientParams, LoRA
from fedjax_lora.deploy.message import Form, Message, Refused, check_arrays, check_meta, number
from fedjax_lora.deploy.wire.coefficients import trained_rows, width_of, with_a_factor
from fedjax_lora.deploy.wire.contents import Header, Rules, Start, trains_head
from fedjax_lora.deploy.wire.kernels import kernel_forms, pack_kernels, unpack_kernels
from fedjax_lora.deploy.wire.masks import (
    as_trainable,
    bits_form,
    first_components,
    from_bits,
    in_rows,
    name_of,
    to_bits,
    trained_masks,
)
from fedjax_lora.lora import LoraSpec, LoraTarget

FLOAT = np.dtype(np.float32)


def pack_down(rules: Rules, start: Start, header: Header, **values: object) -> Message:
    """The server's message to a client.

    Args:
      rules: what is sent.
      start: of the client.
      header: values that the client must find.
      values: further values, such as the learning rate.
    """
    spec, arrays = rules.spec, {"key": start.key}
    active = {path: np.asarray(gain) != 0 for path, gain in start.gain.items()}
    trained = trained_masks(start.trainable, spec)
    which = name_of(active, _active_choices(spec, start.rank))
    for path, pair in start.params.adapter.items():
        arrays[f"{path}.a"] = in_rows(np.asarray(pair.a), "a")[active[path]]
        arrays[f"{path}.b"] = np.asarray(pair.b)[active[path]]
    meta: dict[str, object] = {"rank": start.rank, "active": which} | values
    if which == "listed":
        arrays |= {f"{path}.active": to_bits(mask) for path, mask in active.items()}
    for factor in ("a", "b"):
        name = f"trains_{factor}"
        masks = {path: getattr(pair, factor) for path, pair in trained.items()}
        none = {path: np.zeros_like(mask) for path, mask in masks.items()}
        meta[name] = name_of(masks, {"all": active, "none": none})
        if meta[name] == "listed":
            arrays |= {f"{path}.{name}": to_bits(mask) for path, mask in masks.items()}
    more, values_of = _pack_sizes(spec, start, active, trained)
    products, meta["kernels"] = pack_kernels(spec, start.kernels)
    message = Message(arrays | more | products, {**meta, **values_of, **header})
    return _with_head(rules, start, message)


def _pack_sizes(
    spec: LoraSpec, start: Start, active: Mapping[str, np.ndarray], trained: Mapping[str, LoRA]
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The gains of acting components, one number if they are equal, and their coefficients."""
    arrays, meta = {}, {}
    gains = np.concatenate([np.asarray(x)[active[p]] for p, x in start.gain.items()])
    meta["scale"] = float(gains[0]) if len(gains) and np.all(gains == gains[0]) else None
    if meta["scale"] is None:
        arrays |= {f"{p}.gain": np.asarray(x)[active[p]] for p, x in start.gain.items()}
    meta["coefficients"] = width_of(start, spec)
    for path, x in dict(start.params.coefficients or {}).items():
        arrays[f"{path}.s"] = np.asarray(x)[active[path]]
    rows = trained_rows(start, trained)
    meta["trains_s"] = name_of(rows, {"factors": with_a_factor(trained), "all": active})
    if meta["trains_s"] == "listed":
        arrays |= {f"{path}.trains_s": to_bits(mask) for path, mask in rows.items()}
    return arrays, meta


def _with_head(rules: Rules, start: Start, message: Message) -> Message:
    """The message with the head, if it is sent, and whether the client trains it."""
    head = flat(start.params.head) if rules.head else {}
    sent = {f"head.{name}": np.asarray(x) for name, x in head.items()}
    return Message(message.arrays | sent, message.meta | {"head": trains_head(start)})


def _active_choices(spec: LoraSpec, rank: int) -> dict[str, dict[str, np.ndarray]]:
    return {
        "own": {t.path: first_components(t, spec, rank) for t in spec.targets},
        "all": {t.path: first_components(t, spec, spec.rank) for t in spec.targets},
    }


DOWN_VALUES = {
    "rank", "active", "trains_a", "trains_b", "trains_s", "scale", "coefficients", "head",
    "kernels",
}  # fmt: skip


def unpack_down(
    rules: Rules,
    message: Message,
    header: Header,
    values: set[str],
    *,
    head: Mapping[str, Any],
    key: Form,
) -> Start:
    """Read the server's message.

    Args:
      rules: what is sent.
      message: from `pack_down`.
      header: values that it must have.
      values: names of its further values.
      head: the head of the client, used where heads are not sent.
      key: the form of a random key.

    Raises:
      Refused: it is not what the client expects.
    """
    check_meta(message, header, DOWN_VALUES | values)
    if not isinstance(message.meta["head"], bool):
        raise Refused(f"A message says head = {message.meta['head']!r}, must be true or false.")
    spec, meta = rules.spec, message.meta
    rank = int(number(message, "rank", 1, spec.rank, whole=True))
    width = int(number(message, "coefficients", 0, spec.rank, whole=True))
    active = _read_active(rules, message, rank)
    trained = _read_trained(rules, message, active)
    check_arrays(message, _down_forms(rules, message, active, key, width))
    scale = None if meta["scale"] is None else number(message, "scale", -1e30, 1e30)
    adapter, gain, coefficients = {}, {}, {}
    for target in spec.targets:
        path, mask = target.path, active[target.path]
        adapter[path] = _filled(target, spec, message.arrays, mask)
        gain[path] = np.zeros(mask.shape, np.float32)
        gain[path][mask] = message.arrays[f"{path}.gain"] if scale is None else np.float32(scale)
        if width:
            coefficients[path] = np.zeros(mask.shape + (width,) * (width > 1), np.float32)
            coefficients[path][mask] = message.arrays[f"{path}.s"]
    own_head, trains = _read_down_head(rules, message, head)
    learns: Any = _read_rows(rules, message, active, trained, width) if width else ()
    sizes: Any = coefficients or ()
    return Start(
        ClientParams(adapter, own_head, sizes),
        gain,
        ClientParams(as_trainable(trained), trains, learns),
        rank,
        message.arrays["key"],
        unpack_kernels(spec, message),
    )


def _read_down_head(
    rules: Rules, message: Message, own: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The head that a client begins with, and whether it trains it, in the form of masks."""
    sent = {n: message.arrays[f"head.{n}"] for n in flat(rules.head)}
    head = nested(sent) if rules.head else own
    trains = bool(message.meta["head"])
    return head, nested({n: np.full((1,) * np.ndim(x), trains) for n, x in flat(head).items()})


def _read_active(rules: Rules, message: Message, rank: int) -> dict[str, np.ndarray]:
    """Which components act.

    Raises:
      Refused: the message does not say so as it must.
    """
    choices, code = _active_choices(rules.spec, rank), message.meta["active"]
    if code in ("own", "all"):
        return choices[code]
    return _listed(rules, message, "active", code)


def _listed(rules: Rules, message: Message, name: str, code: object) -> dict[str, np.ndarray]:
    """Bit masks of a message, within the adapted layers."""
    if code != "listed":
        raise Refused(f"A message says {name} = {code!r}, which is unknown.")
    made = {}
    for target in rules.spec.targets:
        array, form = f"{target.path}.{name}", bits_form(target, rules.spec)
        bits = message.arrays.get(array)
        if bits is None or (bits.shape, bits.dtype) != (form.shape, form.dtype):
            raise Refused(f"Array {array!r} of a message is missing or no bit mask.")
        whole = first_components(target, rules.spec, rules.spec.rank)
        made[target.path] = from_bits(bits, whole.shape) & whole
    return made


def _read_trained(
    rules: Rules, message: Message, active: Mapping[str, np.ndarray]
) -> dict[str, LoRA]:
    """Which components of either factor are trained."""
    factors = {}
    for factor in ("a", "b"):
        code = message.meta[f"trains_{factor}"]
        if code == "all":
            factors[factor] = dict(active)
        elif code == "none":
            factors[factor] = {path: np.zeros_like(mask) for path, mask in active.items()}
        else:
            factors[factor] = _listed(rules, message, f"trains_{factor}", code)
    return {path: LoRA(factors["a"][path], factors["b"][path]) for path in active}


def _read_rows(
    rules: Rules,
    message: Message,
    active: Mapping[str, np.ndarray],
    trained: Mapping[str, LoRA],
    width: int,
) -> dict[str, np.ndarray]:
    """Which coefficients are trained, in the form of a mask."""
    choices = {"factors": with_a_factor(trained), "all": dict(active)}
    code = message.meta["trains_s"]
    known = isinstance(code, str) and code in choices
    rows = choices[code] if known else _listed(rules, message, "trains_s", code)
    return {path: mask[..., None] for path, mask in rows.items()} if width > 1 else rows


def _down_forms(
    rules: Rules, message: Message, active: Mapping[str, np.ndarray], key: Form, width: int
) -> dict[str, Form]:
    """The arrays that a message with these values has."""
    meta, made = message.meta, {"key": key} | kernel_forms(rules.spec, message)
    names = ("active", "trains_a", "trains_b", "trains_s")
    masks = [n for n in names if meta[n] == "listed"]
    for target in rules.spec.targets:
        path, count = target.path, int(active[target.path].sum())
        made[f"{path}.a"] = Form((count, target.inputs), FLOAT)
        made[f"{path}.b"] = Form((count, target.outputs), FLOAT)
        made |= {f"{path}.{name}": bits_form(target, rules.spec) for name in masks}
        if meta["scale"] is None:
            made[f"{path}.gain"] = Form((count,), FLOAT)
        if width:
            made[f"{path}.s"] = Form((count,) + (width,) * (width > 1), FLOAT)
    return made | {f"head.{n}": Form(tuple(x.shape), FLOAT) for n, x in flat(rules.head).items()}


def _filled(
    target: LoraTarget, spec: LoraSpec, arrays: Mapping[str, np.ndarray], mask: np.ndarray
) -> LoRA:
    """Both factors at the stored rank, zeros where there is nothing."""
    a = np.zeros((*target.stack, spec.rank, target.inputs), np.float32)
    b = np.zeros((*target.stack, spec.rank, target.outputs), np.float32)
    a[mask], b[mask] = arrays[f"{target.path}.a"], arrays[f"{target.path}.b"]
    return LoRA(np.ascontiguousarray(np.moveaxis(a, -1, -2)), b)

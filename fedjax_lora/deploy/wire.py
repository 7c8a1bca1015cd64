"""What server and site send each other in a round, at each client's true rank.

Down go the components that act at the client, both factors, and which of them it trains; up go the
entries that it has trained and that the method sends. Both sides store adapters at the rank `R` of
the federation and fill up with zeros, so that a site computes what a simulated client does. Arrays
are NumPy's; nothing is computed with here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_lora.core.trees import flat, nested
from fedjax_lora.core.types import ClientParams, Gain, LoRA
from fedjax_lora.deploy.encodings import Encoding, decode, encode, forms
from fedjax_lora.deploy.message import (
    Form,
    Message,
    Refused,
    check_arrays,
    check_meta,
    number,
)
from fedjax_lora.lora import LoraSpec, LoraTarget

FLOAT = np.dtype(np.float32)

Which = Literal["own", "all", "listed"]
"""Which components act: the first `r`, all `R`, or those of a bit mask."""


class Start(NamedTuple):
    """One client's start of a round: its part of `fedjax_lora.federated.Clients`, in NumPy."""

    params: ClientParams
    gain: Gain
    trainable: ClientParams
    rank: int
    key: np.ndarray  # uint32, data of the client's random key


class Update(NamedTuple):
    """What a client sends."""

    params: ClientParams  # of entries that are not sent: as at the start
    trainable: ClientParams  # what it has trained
    rank: int  # components beyond it were trimmed
    loss: float  # mean training loss
    examples: float  # examples processed


class Rules(NamedTuple):
    """What of the method and the federation decides what is sent.

    Attributes:
      spec: the adapted layers.
      head: shapes of the head that is sent each way, or ``{}``.
      sends: which factors a client sends.
      selects: whether a client chooses what it trains.
      trims: whether it may send fewer components than it has.
      encoding: how a client writes its numbers.
    """

    spec: LoraSpec
    head: Mapping[str, Any]
    sends: LoRA = LoRA(True, True)
    selects: bool = False
    trims: bool = False
    encoding: Encoding = "float32"


Header = Mapping[str, object]
"""JSON values that both sides know: version, digest of the federation, round and client."""


# ------------------------------------------------------------------------------------------- masks


def _own(target: LoraTarget, spec: LoraSpec, count: int) -> np.ndarray:
    """The first components of a target's adapted layers, ``bool[(L,) R]``."""
    mask = np.arange(spec.rank) < count
    if not target.stack:
        return mask
    layers = np.ones(target.stack, bool) if target.layers is None else np.array(target.layers)
    return layers[:, None] & mask


def _components(x: np.ndarray, factor: str) -> np.ndarray:
    """A factor with its components in rows, ``[(L,) R, i or o]``."""
    return np.moveaxis(x, -1, -2) if factor == "a" else x


def _masks(start: ClientParams, spec: LoraSpec) -> dict[str, LoRA]:
    """Which components of either factor are trained, ``bool[(L,) R]`` per path.

    Raises:
      Refused: entries of one component are trained and others not.
    """
    made = {}
    for target in spec.targets:
        a, b = (np.asarray(x) for x in start.adapter[target.path])
        if a.shape[-2] != 1 or b.shape[-1] != 1:
            raise Refused(f"Components of {target.path} are trained in part; messages cannot.")
        shape = (*target.stack, spec.rank)
        made[target.path] = LoRA(
            np.broadcast_to(a[..., 0, :], shape), np.broadcast_to(b[..., 0], shape)
        )
    return made


def _as_mask(masks: Mapping[str, LoRA]) -> dict[str, LoRA]:
    return {path: LoRA(m.a[..., None, :], m.b[..., :, None]) for path, m in masks.items()}


def _bits(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask.reshape(-1))


def _from_bits(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def _mask_form(target: LoraTarget, spec: LoraSpec) -> Form:
    count = int(np.prod((*target.stack, spec.rank)))
    return Form((-(-count // 8),), np.dtype(np.uint8))


def _code(masks: Mapping[str, np.ndarray], choices: Mapping[str, Any]) -> str:
    """The name of the choice that equals these masks, or ``listed``."""
    for name, choice in choices.items():
        if all(np.array_equal(masks[path], choice[path]) for path in masks):
            return name
    return "listed"


# -------------------------------------------------------------------------------------------- down


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
    trained = _masks(start.trainable, spec)
    which = _code(active, _active_choices(spec, start.rank))
    for path, pair in start.params.adapter.items():
        arrays[f"{path}.a"] = _components(np.asarray(pair.a), "a")[active[path]]
        arrays[f"{path}.b"] = np.asarray(pair.b)[active[path]]
    meta: dict[str, object] = {"rank": start.rank, "active": which} | values
    if which == "listed":
        arrays |= {f"{path}.active": _bits(mask) for path, mask in active.items()}
    for factor in ("a", "b"):
        name = f"trains_{factor}"
        masks = {path: getattr(pair, factor) for path, pair in trained.items()}
        none = {path: np.zeros_like(mask) for path, mask in masks.items()}
        meta[name] = _code(masks, {"all": active, "none": none})
        if meta[name] == "listed":
            arrays |= {f"{path}.{name}": _bits(mask) for path, mask in masks.items()}
    more, values_of = _pack_sizes(start, active)
    return _with_head(rules, start, Message(arrays | more, {**meta, **values_of, **header}))


def _pack_sizes(
    start: Start, active: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """The gains of acting components, one number if they are equal, and their coefficients."""
    arrays, meta = {}, {}
    gains = np.concatenate([np.asarray(x)[active[p]] for p, x in start.gain.items()])
    meta["scale"] = float(gains[0]) if len(gains) and np.all(gains == gains[0]) else None
    if meta["scale"] is None:
        arrays |= {f"{p}.gain": np.asarray(x)[active[p]] for p, x in start.gain.items()}
    meta["coefficients"] = bool(start.params.coefficients)
    for path, x in dict(start.params.coefficients or {}).items():
        arrays[f"{path}.s"] = np.asarray(x)[active[path]]
    return arrays, meta


def _with_head(rules: Rules, start: Start, message: Message) -> Message:
    """The message with the head, if it is sent, and whether the client trains it."""
    head = flat(start.params.head) if rules.head else {}
    sent = {f"head.{name}": np.asarray(x) for name, x in head.items()}
    return Message(message.arrays | sent, message.meta | {"head": _trains_head(start)})


def _trains_head(start: Start) -> bool:
    leaves = flat(start.trainable.head).values()
    return bool(leaves) and all(np.all(np.asarray(x)) for x in leaves)


def _active_choices(spec: LoraSpec, rank: int) -> dict[str, dict[str, np.ndarray]]:
    return {
        "own": {t.path: _own(t, spec, rank) for t in spec.targets},
        "all": {t.path: _own(t, spec, spec.rank) for t in spec.targets},
    }


DOWN_VALUES = {"rank", "active", "trains_a", "trains_b", "scale", "coefficients", "head"}


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
    spec, meta = rules.spec, message.meta
    rank = int(number(message, "rank", 1, spec.rank, whole=True))
    active = _read_active(rules, message, rank)
    trained = _read_trained(rules, message, active)
    check_arrays(message, _down_forms(rules, message, active, key))
    adapter, gain, coefficients = {}, {}, {}
    for target in spec.targets:
        path, mask = target.path, active[target.path]
        adapter[path] = _filled(target, spec, message.arrays, mask)
        gain[path] = np.zeros(mask.shape, np.float32)
        scale = meta["scale"]
        gain[path][mask] = message.arrays[f"{path}.gain"] if scale is None else np.float32(scale)
        if meta["coefficients"]:
            coefficients[path] = np.zeros(mask.shape, np.float32)
            coefficients[path][mask] = message.arrays[f"{path}.s"]
    own_head, trains = _read_down_head(rules, message, head)
    learns: Any = {path: m.a | m.b for path, m in trained.items()} if coefficients else ()
    sizes: Any = coefficients or ()
    return Start(
        ClientParams(adapter, own_head, sizes),
        gain,
        ClientParams(_as_mask(trained), trains, learns),
        rank,
        message.arrays["key"],
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
        array, form = f"{target.path}.{name}", _mask_form(target, rules.spec)
        bits = message.arrays.get(array)
        if bits is None or (bits.shape, bits.dtype) != (form.shape, form.dtype):
            raise Refused(f"Array {array!r} of a message is missing or no bit mask.")
        whole = _own(target, rules.spec, rules.spec.rank)
        made[target.path] = _from_bits(bits, whole.shape) & whole
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


def _down_forms(
    rules: Rules, message: Message, active: Mapping[str, np.ndarray], key: Form
) -> dict[str, Form]:
    """The arrays that a message with these values has."""
    meta, made = message.meta, {"key": key}
    masks = [n for n in ("active", "trains_a", "trains_b") if meta[n] == "listed"]
    for target in rules.spec.targets:
        path, count = target.path, int(active[target.path].sum())
        made[f"{path}.a"] = Form((count, target.inputs), FLOAT)
        made[f"{path}.b"] = Form((count, target.outputs), FLOAT)
        made |= {f"{path}.{name}": _mask_form(target, rules.spec) for name in masks}
        if meta["scale"] is None:
            made[f"{path}.gain"] = Form((count,), FLOAT)
        if meta["coefficients"]:
            made[f"{path}.s"] = Form((count,), FLOAT)
    return made | {f"head.{n}": Form(tuple(x.shape), FLOAT) for n, x in flat(rules.head).items()}


def _filled(
    target: LoraTarget, spec: LoraSpec, arrays: Mapping[str, np.ndarray], mask: np.ndarray
) -> LoRA:
    """Both factors at the stored rank, zeros where there is nothing."""
    a = np.zeros((*target.stack, spec.rank, target.inputs), np.float32)
    b = np.zeros((*target.stack, spec.rank, target.outputs), np.float32)
    a[mask], b[mask] = arrays[f"{target.path}.a"], arrays[f"{target.path}.b"]
    return LoRA(np.ascontiguousarray(np.moveaxis(a, -1, -2)), b)


# ---------------------------------------------------------------------------------------------- up


class _Part(NamedTuple):
    """Rows of one array that travel up."""

    name: str
    mask: np.ndarray  # of rows
    rows: np.ndarray  # int[n], the matrix that each of them belongs to
    width: int
    read: Callable[[ClientParams], np.ndarray]  # rows of the whole array


def _parts(
    rules: Rules, trained: Mapping[str, LoRA], rank: int | None, coefficients: bool
) -> list[_Part]:
    """What a client sends of its adapter.

    Args:
      rules: what is sent.
      trained: which components it has trained.
      rank: send no component from this one on; None to send all.
      coefficients: whether it has coefficients.
    """
    made = []
    for target in rules.spec.targets:
        path = target.path
        kept = _own(target, rules.spec, rules.spec.rank if rank is None else rank)
        sizes = {"a": target.inputs, "b": target.outputs}
        for factor, width in sizes.items():
            if getattr(rules.sends, factor):
                mask = getattr(trained[path], factor) & kept

                def read(params: ClientParams, path: str = path, f: str = factor) -> np.ndarray:
                    return _components(np.asarray(getattr(params.adapter[path], f)), f)

                made.append(_part(f"{path}.{factor}", mask, width, read))
        if coefficients:
            mask = (trained[path].a | trained[path].b) & kept

            def read_s(params: ClientParams, path: str = path) -> np.ndarray:
                assert isinstance(params.coefficients, Mapping)
                return np.asarray(params.coefficients[path])[..., None]

            made.append(_part(f"{path}.s", mask, 1, read_s))
    return made


def _part(
    name: str, mask: np.ndarray, width: int, read: Callable[[ClientParams], np.ndarray]
) -> _Part:
    rows = np.nonzero(mask)[0] if mask.ndim == 2 else np.zeros(int(mask.sum()), int)
    return _Part(name, mask, rows, width, read)


def pack_up(
    rules: Rules, start: Start, update: Update, header: Header, rng: np.random.Generator
) -> Message:
    """A client's message to the server: what it has trained, its loss and how much it has seen.

    Args:
      rules: what is sent.
      start: what the client began with.
      update: what it has now.
      header: values that the server must find.
      rng: rounds int8 codes.
    """
    arrays: dict[str, np.ndarray] = {}
    trained = _masks(update.trainable, rules.spec)
    if rules.selects:
        for path, pair in trained.items():
            chosen = np.flatnonzero(np.asarray(pair.a | pair.b))
            arrays[f"{path}.chosen"] = chosen.astype(np.int32)
    rank = update.rank if rules.trims else None
    for part in _parts(rules, trained, rank, bool(start.params.coefficients)):
        new, old = (part.read(x)[part.mask] for x in (update.params, start.params))
        arrays |= encode(part.name, new, old, part.rows, rules.encoding, rng)
    if _sends_head(rules, start):
        old_head = flat(start.params.head)
        for name, x in flat(update.params.head).items():
            flat_new, flat_old = (np.asarray(y).reshape(1, -1) for y in (x, old_head[name]))
            arrays |= encode(
                f"head.{name}", flat_new, flat_old, np.zeros(1, int), rules.encoding, rng
            )
    loss = float(update.loss)
    meta = {
        "rank": update.rank,
        "loss": loss if np.isfinite(loss) else None,
        "examples": float(update.examples),
        "encoding": rules.encoding,
    }
    return Message(arrays, {**meta, **header})


UP_VALUES = {"rank", "loss", "examples"}


def unpack_up(
    rules: Rules, start: Start, message: Message, header: Header, *, most_examples: float
) -> Update:
    """Read a client's message, which is not trusted.

    Values that are not finite are returned: a round rejects them as it does in a simulation.

    Args:
      rules: what is sent.
      start: what was sent to the client.
      message: from it.
      header: values that it must have.
      most_examples: how many examples it can have processed.

    Raises:
      Refused: it is not what was asked for.
    """
    check_meta(message, {**header, "encoding": rules.encoding}, UP_VALUES)
    rank = int(number(message, "rank", 1 if rules.trims else start.rank, start.rank, whole=True))
    examples = number(message, "examples", 0, most_examples)
    loss = message.meta["loss"]
    loss = float("nan") if loss is None else number(message, "loss", -1e30, 1e30)
    trained = _masks(start.trainable, rules.spec)
    has_s = bool(start.params.coefficients)
    if rules.selects:
        trained = _chosen(rules, start, trained, message)
    parts = _parts(rules, trained, rank if rules.trims else None, has_s)
    check_arrays(message, _up_forms(rules, start, parts, trained))
    params = _copied(start.params)
    for part in parts:
        whole = part.read(params)
        old = part.read(start.params)[part.mask]
        whole[part.mask] = decode(part.name, message.arrays, old, part.rows, rules.encoding)
        if rules.trims and rank < start.rank:
            _trim(whole, rank)
    return Update(
        params._replace(head=_read_head(rules, start, message)),
        start.trainable._replace(adapter=_as_mask(trained)) if rules.selects else start.trainable,
        rank,
        loss,
        examples,
    )


def _trim(rows: np.ndarray, rank: int) -> None:
    """Zero the components that a client has given up, ``[(L,) R, ...]``, in place."""
    rows[..., rank:, :] = 0


def _copied(params: ClientParams) -> ClientParams:
    """A copy of adapter and coefficients to write into."""
    adapter = {p: LoRA(np.array(x.a), np.array(x.b)) for p, x in params.adapter.items()}
    coefficients: Any = {p: np.array(x) for p, x in dict(params.coefficients or {}).items()}
    return ClientParams(adapter, params.head, coefficients or ())


def _sends_head(rules: Rules, start: Start) -> bool:
    return bool(rules.head) and _trains_head(start)


def _chosen(
    rules: Rules, start: Start, assigned: Mapping[str, LoRA], message: Message
) -> dict[str, LoRA]:
    """What a client has chosen of what it was assigned.

    Raises:
      Refused: components that it was not assigned, or more than it may choose.
    """
    made, count = {}, 0
    for path, pair in assigned.items():
        chosen = message.arrays.get(f"{path}.chosen")
        size = pair.a.size
        if chosen is None or chosen.dtype != np.int32 or chosen.ndim != 1 or len(chosen) > size:
            raise Refused(f"A message has no list of the chosen components of {path}.")
        if not _ascends(chosen, size):
            raise Refused(f"The chosen components of {path} are not ascending numbers of them.")
        mask = np.zeros(size, bool)
        mask[chosen] = True
        mask = mask.reshape(pair.a.shape)
        if (mask & ~(pair.a | pair.b)).any():
            raise Refused(f"A client has trained components of {path} that are not its.")
        made[path], count = LoRA(pair.a & mask, pair.b & mask), count + len(chosen)
    if count > start.rank * rules.spec.matrices:
        raise Refused(
            f"A client of rank {start.rank} sends {count} components, must be at most "
            f"{start.rank * rules.spec.matrices}."
        )
    return made


def _ascends(chosen: np.ndarray, size: int) -> bool:
    """Whether these are distinct numbers from 0 to ``size - 1`` in ascending order."""
    inside = not len(chosen) or (chosen[0] >= 0 and chosen[-1] < size)
    return bool(inside and (np.diff(chosen) > 0).all())


def _up_forms(
    rules: Rules, start: Start, parts: list[_Part], trained: Mapping[str, LoRA]
) -> dict[str, Form]:
    """The arrays that a client's message has."""
    made: dict[str, Form] = {}
    if rules.selects:
        for path, pair in trained.items():
            count = int(np.count_nonzero(pair.a | pair.b))
            made[f"{path}.chosen"] = Form((count,), np.dtype(np.int32))
    for part in parts:
        made |= forms(part.name, part.rows, part.width, rules.encoding)
    if _sends_head(rules, start):
        for name, x in flat(rules.head).items():
            size = int(np.prod(x.shape))
            made |= forms(f"head.{name}", np.zeros(1, int), size, rules.encoding)
    return made


def _read_head(rules: Rules, start: Start, message: Message) -> Any:
    """The head that a client has sent, or else that of the start."""
    if not _sends_head(rules, start):
        return start.params.head
    made = {}
    for name, x in flat(start.params.head).items():
        old = np.asarray(x)
        got = decode(
            f"head.{name}", message.arrays, old.reshape(1, -1), np.zeros(1, int), rules.encoding
        )
        made[name] = got.reshape(old.shape)
    return nested(made)


def most_bytes(rules: Rules) -> int:
    """Bytes that the arrays of any message of a round may take."""
    numbers = sum(
        int(np.prod(target.stack)) * rules.spec.rank * (target.inputs + target.outputs + 16)
        for target in rules.spec.targets
    )
    numbers += sum(int(np.prod(x.shape)) for x in flat(rules.head).values())
    return 4 * numbers + (1 << 16)

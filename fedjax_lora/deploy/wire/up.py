"""A client's message to the server: what it has trained, its loss and how much it has seen."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora.core.trees import flat, nested
from fedjax_lora.core.types import ClientParams, LoRA
from fedjax_lora.deploy.encodings import decode, encode, forms
from fedjax_lora.deploy.message import Form, Message, Refused, check_arrays, check_meta, number
from fedjax_lora.deploy.wire.coefficients import trained_rows, width_of, with_a_factor
from fedjax_lora.deploy.wire.contents import Header, Rules, Start, Update, sends_head
from fedjax_lora.deploy.wire.masks import as_trainable, first_components, in_rows, trained_masks


class _Part(NamedTuple):
    """Rows of one array that travel up."""

    name: str
    mask: np.ndarray  # of rows
    rows: np.ndarray  # int[n], the matrix that each of them belongs to
    width: int
    read: Callable[[ClientParams], np.ndarray]  # rows of the whole array


def _parts(
    rules: Rules, start: Start, trained: Mapping[str, LoRA], rank: int | None
) -> list[_Part]:
    """What a client sends of its adapter.

    Args:
      rules: what is sent.
      start: what it began with.
      trained: which components it has trained.
      rank: send no component from this one on; None to send all.
    """
    made, each = [], width_of(start, rules.spec)
    rows = with_a_factor(trained)
    if not rules.selects:  # else those that it has chosen
        rows |= trained_rows(start, trained)
    for target in rules.spec.targets:
        path = target.path
        kept = first_components(target, rules.spec, rules.spec.rank if rank is None else rank)
        sizes = {"a": target.inputs, "b": target.outputs}
        for factor, width in sizes.items():
            if getattr(rules.sends, factor):
                mask = getattr(trained[path], factor) & kept

                def read(params: ClientParams, path: str = path, f: str = factor) -> np.ndarray:
                    return in_rows(np.asarray(getattr(params.adapter[path], f)), f)

                made.append(_part(f"{path}.{factor}", mask, width, read))
        if each:

            def read_s(params: ClientParams, path: str = path) -> np.ndarray:
                assert isinstance(params.coefficients, Mapping)
                sizes = np.asarray(params.coefficients[path])
                return sizes if each > 1 else sizes[..., None]

            made.append(_part(f"{path}.s", rows[path] & kept, each, read_s))
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
    trained = trained_masks(update.trainable, rules.spec)
    if rules.selects:
        for path, pair in trained.items():
            chosen = np.flatnonzero(np.asarray(pair.a | pair.b))
            arrays[f"{path}.chosen"] = chosen.astype(np.int32)
    rank = update.rank if rules.trims else None
    for part in _parts(rules, start, trained, rank):
        new, old = (part.read(x)[part.mask] for x in (update.params, start.params))
        arrays |= encode(part.name, new, old, part.rows, rules.encoding, rng)
    if sends_head(rules, start):
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
        "kernels": _held(start),
    }
    return Message(arrays, {**meta, **header})


def _held(start: Start) -> str | None:
    """The name of the kernels that a client has trained on, where the method changes them."""
    return None if start.kernels is None else start.kernels.version


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
    known = {**header, "encoding": rules.encoding, "kernels": _held(start)}
    check_meta(message, known, UP_VALUES)
    rank = int(number(message, "rank", 1 if rules.trims else start.rank, start.rank, whole=True))
    examples = number(message, "examples", 0, most_examples)
    loss = message.meta["loss"]
    loss = float("nan") if loss is None else number(message, "loss", -1e30, 1e30)
    trained = trained_masks(start.trainable, rules.spec)
    if rules.selects:
        trained = _chosen(rules, start, trained, message)
    parts = _parts(rules, start, trained, rank if rules.trims else None)
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
        start.trainable._replace(adapter=as_trainable(trained))
        if rules.selects
        else start.trainable,
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
    if sends_head(rules, start):
        for name, x in flat(rules.head).items():
            size = int(np.prod(x.shape))
            made |= forms(f"head.{name}", np.zeros(1, int), size, rules.encoding)
    return made


def _read_head(rules: Rules, start: Start, message: Message) -> Any:
    """The head that a client has sent, or else that of the start."""
    if not sends_head(rules, start):
        return start.params.head
    made = {}
    for name, x in flat(start.params.head).items():
        old = np.asarray(x)
        got = decode(
            f"head.{name}", message.arrays, old.reshape(1, -1), np.zeros(1, int), rules.encoding
        )
        made[name] = got.reshape(old.shape)
    return nested(made)

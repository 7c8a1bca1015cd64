"""Messages: what goes in comes out, and nothing else is taken."""

import copy

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core.types import ClientParams, LoRA
from fedjax_lora.deploy import wire
from fedjax_lora.deploy.exchange import header
from fedjax_lora.deploy.message import Form, Message, Refused, from_bytes, to_bytes
from fedjax_lora.deploy.wire import Rules, Start, Update
from fedjax_lora.deploy.wire.kernels import KernelChange
from fedjax_lora.lora import LoraSpec, LoraTarget
from tests._helpers.problems import assert_same_bits

SPEC = LoraSpec(
    targets=(
        LoraTarget("block/layers/query", 6, 5, (True, False, True)),
        LoraTarget("out", 4, 3, None),
    ),
    rank=3,
    alpha=3.0,
)
HEAD = {"kernel": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)}
KNOWN = header("d", 4, 2)
KEY = Form((2,), np.dtype(np.uint32))
MOST = 1 << 16


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def masks(choose) -> dict[str, np.ndarray]:
    """A mask of components per path, none in layers that are left out."""
    made = {}
    for target in SPEC.targets:
        mask = choose((*target.stack, SPEC.rank))
        if target.layers is not None:
            mask = mask & np.array(target.layers)[:, None]
        made[target.path] = mask
    return made


def start_of(
    active, a, b, *, rank: int = 2, gain: float | None = 0.3, s: bool = False, seed: int = 0
) -> Start:
    """A client's start with these masks of components; inactive ones are zero."""
    rng, adapter, gains, sizes = np.random.default_rng(seed), {}, {}, {}
    for target in SPEC.targets:
        mask = active[target.path]
        left = draw(rng, *target.stack, target.inputs, SPEC.rank)
        right = draw(rng, *target.stack, SPEC.rank, target.outputs)
        adapter[target.path] = LoRA(
            np.where(mask[..., None, :], left, np.float32(0)),
            np.where(mask[..., :, None], right, np.float32(0)),
        )
        one = np.abs(draw(rng, *mask.shape)) + 1 if gain is None else np.float32(gain)
        gains[target.path] = np.where(mask, one, 0).astype(np.float32)
        sizes[target.path] = np.where(mask, draw(rng, *mask.shape), np.float32(0))
    head = jax.tree.map(lambda x: draw(rng, *x.shape), HEAD)
    trains = {p: LoRA(a[p][..., None, :], b[p][..., :, None]) for p in active}
    learns = {p: a[p] | b[p] for p in active} if s else ()
    ones = jax.tree.map(lambda x: np.ones((1,) * x.ndim, bool), HEAD)
    return Start(
        ClientParams(adapter, head, sizes if s else ()),
        gains,
        ClientParams(trains, ones, learns),
        rank,
        np.array([7, 9], np.uint32),
    )


def first(count: int):
    return masks(lambda shape: np.broadcast_to(np.arange(SPEC.rank) < count, shape).copy())


def plain(rank: int = 2, **options) -> Start:
    return start_of(first(rank), first(rank), first(rank), rank=rank, **options)


def trained(start: Start, seed: int = 1, **other) -> Update:
    """The start with all trainable entries moved."""
    rng = np.random.default_rng(seed)
    move = lambda x, m: np.where(m, x + draw(rng, *x.shape), x).astype(np.float32)  # noqa: E731
    params = jax.tree.map(move, start.params, start.trainable)
    given = {"rank": start.rank, "loss": 0.5, "examples": 8.0}
    return Update(params, start.trainable, **(given | other))


def down(rules: Rules, start: Start) -> Start:
    data = to_bytes(wire.pack_down(rules, start, KNOWN, rate=0.1))
    return wire.unpack_down(rules, from_bytes(data, most=MOST), KNOWN, {"rate"}, head=HEAD, key=KEY)


def up(rules: Rules, start: Start, update: Update) -> Message:
    packed = wire.pack_up(rules, start, update, KNOWN, np.random.default_rng(0))
    return from_bytes(to_bytes(packed), most=MOST)


def read(rules: Rules, start: Start, message: Message) -> Update:
    return wire.unpack_up(rules, start, message, KNOWN, most_examples=8)


RULES = Rules(SPEC, HEAD)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_start_arrives_bit_for_bit(data):
    """Any components, any of them trained, one gain or many, coefficients or none."""

    def bits(shape):
        size = int(np.prod(shape))
        drawn = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        return np.array(drawn, bool).reshape(shape)

    active = masks(bits) if data.draw(st.booleans()) else first(data.draw(st.sampled_from([1, 3])))
    within = lambda: {p: m & active[p] for p, m in masks(bits).items()}  # noqa: E731
    a, b = (active if data.draw(st.booleans()) else within() for _ in range(2))
    gain = data.draw(st.sampled_from([None, 0.3, 1.0]))
    start = start_of(active, a, b, gain=gain, s=data.draw(st.booleans()))
    assert_same_bits(down(RULES, start), start)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("coefficients", [False, True])
def test_an_update_arrives_bit_for_bit_at_its_true_rank(rank, coefficients):
    start = plain(rank, s=coefficients)
    update = trained(start)
    message = up(RULES, start, update)
    assert_same_bits(read(RULES, start, message), update)
    numbers = rank * (SPEC.component_size + coefficients * SPEC.matrices) + 10
    assert message.array_bytes == 4 * numbers


def test_what_a_method_does_not_send_stays():
    rules, start = RULES._replace(sends=LoRA(True, False)), plain()
    message = up(rules, start, trained(start))
    assert not [name for name in message.arrays if name.endswith(".b")]
    got = read(rules, start, message)
    assert_same_bits([x.b for x in got.params.adapter.values()],
                     [x.b for x in start.params.adapter.values()])  # fmt: skip


def test_trimmed_components_are_not_sent_and_are_zero():
    rules, start = RULES._replace(trims=True), plain(3)
    message = up(rules, start, trained(start, rank=1))
    assert message.array_bytes == 4 * (SPEC.component_size + 10)
    for pair in read(rules, start, message).params.adapter.values():
        assert (
            np.any(pair.a[..., 0])
            and not np.any(pair.a[..., 1:])
            and not np.any(pair.b[..., 1:, :])
        )


def test_chosen_components_are_sent_with_their_numbers():
    rules, every = RULES._replace(selects=True), first(3)
    start = start_of(every, every, every, rank=1)
    chosen = masks(lambda shape: np.zeros(shape, bool))
    chosen["out"][1] = chosen["block/layers/query"][2, 0] = True
    masked = {p: LoRA(m[..., None, :], m[..., :, None]) for p, m in chosen.items()}
    update = trained(start._replace(trainable=start.trainable._replace(adapter=masked)))
    assert_same_bits(read(rules, start, up(rules, start, update)), update)


@pytest.mark.parametrize(("encoding", "size"), [("bfloat16", 2), ("int8", 1)])
def test_compressed_updates_are_small_and_near(encoding, size):
    rules, start = RULES._replace(encoding=encoding), plain()
    update = trained(start)
    message = up(rules, start, update)
    numbers, matrices = 2 * SPEC.component_size + 10, 2 * SPEC.matrices + 2
    assert message.array_bytes == size * numbers + 4 * matrices * (encoding == "int8")
    got = read(rules, start, message)
    for one, other, old in zip(*map(jax.tree.leaves, (got, update, start)), strict=False):
        change = np.asarray(other, float) - np.asarray(old, float)
        assert np.allclose(one, other, atol=np.max(np.abs(change), initial=0) / 100)


def test_int8_codes_are_the_change_on_average():
    rules, start = RULES._replace(encoding="int8"), plain()
    update, rng = trained(start), np.random.default_rng(3)
    sent = [wire.pack_up(rules, start, update, KNOWN, rng) for _ in range(200)]
    mean = np.mean([read(rules, start, x).params.adapter["out"].a for x in sent], axis=0)
    scale = sent[0].arrays["out.a.scale"].max()
    assert np.max(np.abs(mean - update.params.adapter["out"].a)) < 0.17 * scale  # 5 deviations


def test_values_that_are_not_finite_reach_the_round_which_rejects_them():
    start = plain()
    update = trained(start, loss=float("nan"))
    update.params.head["bias"][0] = np.inf
    got = read(RULES, start, up(RULES, start, update))
    assert np.isinf(got.params.head["bias"][0]) and np.isnan(got.loss)


def drop(message):
    message.arrays.pop("out.a")


def add(message):
    message.arrays["texts"] = np.zeros(3, np.float32)


def widen(message):
    message.arrays["out.a"] = message.arrays["out.a"].repeat(2, axis=0)


def double(message):
    message.arrays["out.a"] = message.arrays["out.a"].astype(np.float64)


def say(**values):
    def change(message):
        message.meta.update(values)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, "lacks 1 arrays"),
        (add, "1 arrays too many"),
        (widen, "must be float32"),
        (double, "float64"),
        (say(round=3), "round = 3 where 4"),
        (say(round=True), "round = True"),
        (say(client=1), "client = 1"),
        (say(digest="e"), "digest"),
        (say(version=2), "version"),
        (say(rank=3), "rank = 3"),
        (say(rank=0), "rank = 0"),
        (say(rank="2"), "rank = '2'"),
        (say(examples=9), "examples = 9"),
        (say(examples=-1), "examples = -1"),
        (say(loss="low"), "loss = 'low'"),
        (say(loss=1e300), "loss = 1e+300"),
        (say(encoding="int8"), "encoding"),
        (say(weight=5), "other values"),
    ],
)
def test_a_message_that_is_not_as_asked_for_is_refused(change, words):
    start = plain()
    message = up(RULES, start, trained(start))
    changed = Message(dict(message.arrays), copy.deepcopy(message.meta))
    change(changed)
    with pytest.raises(Refused) as told:
        read(RULES, start, from_bytes(to_bytes(changed), most=MOST))
    assert words in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (np.array([0, 0], np.int32), "ascending"),
        (np.array([-1], np.int32), "ascending"),
        (np.array([3], np.int32), "ascending"),
        (np.array([0, 1, 2], np.int32), "sends 5 components, must be at most 3"),
        (np.array([0.0], np.float32), "no list"),
    ],
)
def test_a_client_cannot_choose_what_is_not_its(chosen, words):
    rules, every = RULES._replace(selects=True), first(3)
    start = start_of(every, every, every, rank=1)
    message = up(rules, start, trained(start._replace(trainable=plain(1).trainable)))
    message.arrays["out.chosen"] = chosen
    with pytest.raises(Refused, match=words):
        read(rules, start, message)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_in_a_sentence(data):
    """Cut, overwritten or made-up bytes are refused, or are a message of the same arrays."""
    start = plain()
    whole = to_bytes(up(RULES, start, trained(start)))
    kind = data.draw(st.sampled_from(["cut", "overwritten", "made up"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif kind == "overwritten":
        at = data.draw(st.integers(0, 600))
        damaged = whole[:at] + data.draw(st.binary(min_size=1, max_size=9)) + whole[at + 1 :]
    else:
        damaged = data.draw(st.binary(max_size=300))
    try:
        got = read(RULES, start, from_bytes(damaged, most=MOST))
    except Refused as told:
        assert len(str(told).splitlines()) == 1
    else:
        shapes = lambda tree: jax.tree.map(np.shape, tree.params)  # noqa: E731
        assert shapes(got) == shapes(trained(start))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["own", "all", "none", "listed", "x", "int8", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip
DTYPES = ("float32", "float64", "float16", "int32", "uint8", "bool")


def changed(data, message: Message) -> Message:
    """The message with one array or JSON value in place of another."""
    arrays, meta = dict(message.arrays), copy.deepcopy(message.meta)
    if data.draw(st.booleans()):
        meta[data.draw(st.sampled_from(sorted(meta)))] = data.draw(JSON)
    else:
        name = data.draw(st.sampled_from(sorted(arrays)))
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        arrays[name] = np.zeros(shape, data.draw(st.sampled_from(DTYPES)))
    return Message(arrays, meta)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_array_or_value_in_place_of_another_is_refused_in_a_sentence_or_read(data):
    """Messages both ways, with products for the base, several gains, coefficients and bit masks."""
    some = masks(lambda shape: np.arange(int(np.prod(shape))).reshape(shape) % 2 == 0)
    gain = data.draw(st.sampled_from([None, 0.3]))
    start = start_of(some, some, some, gain=gain, s=True)
    pair = {t.path: LoRA(draw(np.random.default_rng(0), *t.stack, t.inputs, 2),
                         draw(np.random.default_rng(1), *t.stack, 2, t.outputs))
            for t in SPEC.targets}  # fmt: skip
    start = start._replace(kernels=KernelChange(("v", "w"), (pair,), {}))
    shapes = lambda tree: jax.tree.map(np.shape, tree)  # noqa: E731
    try:
        if data.draw(st.booleans()):
            message = changed(data, wire.pack_down(RULES, start, KNOWN, rate=0.1))
            message = from_bytes(to_bytes(message), most=MOST)
            got = wire.unpack_down(RULES, message, KNOWN, {"rate"}, head=HEAD, key=KEY)
            assert shapes(got.params) == shapes(start.params) or not got.params.coefficients
        else:
            message = changed(data, up(RULES, start, trained(start)))
            got = read(RULES, start, from_bytes(to_bytes(message), most=MOST))
            assert shapes(got.params) == shapes(start.params)
    except Refused as told:
        assert len(str(told).splitlines()) == 1


def test_a_message_larger_than_expected_is_not_read():
    start = plain()
    data = to_bytes(up(RULES, start, trained(start))) + bytes(1 << 21)
    with pytest.raises(Refused, match="bytes where at most"):
        from_bytes(data, most=MOST)


def test_messages_fit_into_the_limit_of_their_rules():
    start = start_of(first(3), first(3), first(3), rank=3, gain=None, s=True)
    assert wire.pack_down(RULES, start, KNOWN).array_bytes <= wire.most_bytes(RULES)
    rules = RULES._replace(selects=True)
    assert up(rules, start, trained(start)).array_bytes <= wire.most_bytes(rules)

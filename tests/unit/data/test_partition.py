"""Properties of partitions, for any classes, clients and seeds."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core import registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.data import PARTITIONERS, class_counts, partition
from fedjax_lora.data.partitioners import round_shares, simplex
from fedjax_lora.runs.plots import draw

ALPHAS = st.sampled_from([1e-300, 5e-324, 1e-9, 0.01, 0.5, 0.999, 1, 30.0, 1e9, 1e308])


@st.composite
def specs(draw):
    name = draw(st.sampled_from(sorted(PARTITIONERS)))
    if name == "dirichlet":
        return f"dirichlet(alpha={draw(ALPHAS)}, balanced={draw(st.booleans())})"
    if name == "quantity":
        return f"quantity(alpha={draw(ALPHAS)})"
    if name == "quality":
        share = draw(st.floats(0.01, 1))
        return f"quality(share={share}, alpha_high={draw(ALPHAS)}, alpha_low={draw(ALPHAS)})"
    return name


@st.composite
def requests(draw):
    """A spec and arguments that can be met."""
    spec = draw(specs())
    clients = draw(st.integers(1, 12))
    minimum = draw(st.integers(0, 4))
    examples = draw(st.integers(max(clients * max(minimum, 2), 1), 150))
    classes = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.integers(0, classes, examples).astype(np.int32)
    groups = rng.permutation(np.arange(examples) % draw(st.integers(clients, examples))) * 3
    options = {"clients": clients, "min_examples": minimum, "groups": groups}
    return spec, labels, {**options, "seed": draw(st.integers(0, 2**32))}


def one_by_one(spec, labels, options):
    """A partition as its docstring says it: a scan for each client, and a search for each move."""
    made = partition(spec, labels, **options | {"min_examples": 0})
    rng = np.random.default_rng(options["seed"])
    assign = registry.build(spec, PARTITIONERS, "partition")
    owner = assign(labels, options["groups"], options["clients"], rng).owner
    members = [np.flatnonzero(owner == client) for client in range(options["clients"])]
    assert all(np.array_equal(a, b) for a, b in zip(members, made.indices, strict=True))
    if min(map(len, members)) >= options["min_examples"]:
        return members
    order, drawn = rng.permutation(len(members)), {}
    sizes = np.array([len(members[client]) for client in order])
    gains: dict[int, list] = {}
    for place in np.flatnonzero(sizes < options["min_examples"]):
        while sizes[place] < options["min_examples"]:
            most = int(sizes.argmax())
            if most not in drawn:
                drawn[most] = list(rng.permutation(members[order[most]]))
            gains.setdefault(place, []).append(drawn[most].pop())
            sizes[most], sizes[place] = sizes[most] - 1, sizes[place] + 1
    for place, gained in gains.items():
        members[order[place]] = np.append(members[order[place]], gained)
    for place, left in drawn.items():
        members[order[place]] = left
    return [np.sort(part) for part in members]


@settings(max_examples=60, deadline=None)
@given(requests())
def test_partition_is_that_of_the_plain_algorithm(request):
    spec, labels, options = request
    got = partition(spec, labels, **options).indices
    for mine, want in zip(got, one_by_one(spec, labels, options), strict=True):
        assert np.array_equal(mine, want)


@pytest.mark.parametrize("spec", ["iid", "dirichlet(alpha=0.1)"])
def test_time_of_a_partition_grows_with_the_clients_and_not_with_their_square(spec):
    def seconds(clients: int) -> float:
        labels = np.arange(4 * clients) % 5
        begins = time.process_time()
        partition(spec, labels, clients=clients, seed=0, min_examples=2)
        return time.process_time() - begins

    few, many = (min(seconds(clients) for _ in range(3)) for clients in (1_500, 30_000))
    assert many < 5 * 20 * few, "20 times the clients; the square would be 400 times"


@settings(max_examples=150, deadline=None)
@given(requests())
def test_exact_cover_minimum_and_determinism(request):
    spec, labels, options = request
    first = partition(spec, labels, **options)
    assert len(first.indices) == options["clients"]
    assert np.array_equal(np.sort(np.concatenate(first.indices)), np.arange(len(labels)))
    for part in first.indices:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
        assert len(part) >= options["min_examples"]
    again = partition(spec, labels, **options)
    assert all(np.array_equal(a, b) for a, b in zip(first.indices, again.indices, strict=True))
    assert (first.quality is None) == (not spec.startswith("quality"))
    if first.quality is not None:
        assert np.array_equal(first.quality, again.quality)
        assert first.quality.shape == (options["clients"],)
        assert first.quality.any()
    counts = class_counts(first, labels, 12)
    assert np.array_equal(counts.sum(0), np.bincount(labels, minlength=12))
    assert np.array_equal(counts.sum(1), [len(part) for part in first.indices])


@st.composite
def requests_of_any_kind(draw):
    """Any number of examples, classes, clients and groups, whether that can be met or not."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    labels = rng.integers(0, draw(st.integers(1, 90)), draw(st.integers(0, 80)))
    groups = draw(st.none() | st.integers(1, 30))
    options = {
        "clients": draw(st.integers(-1, 100)),
        "min_examples": draw(st.integers(-1, 12)),
        "groups": None if groups is None else np.arange(len(labels)) % groups,
    }
    return draw(specs() | st.just("shards(per_client=5)")), labels, options


@settings(max_examples=150, deadline=None)
@given(requests_of_any_kind())
def test_any_partition_is_valid_or_refused(request):
    spec, labels, options = request
    clients, minimum = options["clients"], options["min_examples"]
    try:
        parts = partition(spec, labels, seed=0, **options).indices
    except InputError as error:
        assert "\n" not in str(error)
        possible = clients >= 1 and minimum >= 0 and clients * minimum <= len(labels)
        assert not (possible and len(labels) and spec.startswith(("iid", "dirichlet", "quantity")))
    else:
        assert len(parts) == clients and min(map(len, parts)) >= minimum
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))


@settings(max_examples=60, deadline=None)
@given(ALPHAS, st.integers(1, 50), st.integers(0, 99))
def test_simplex_samples_are_shares_that_sum_to_one(alpha, size, seed):
    share = simplex(alpha, size, np.random.default_rng(seed))
    assert np.isfinite(share).all()
    assert (share >= 0).all()
    assert share.sum() == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.2, 0.7, 1.0, 5.0])
def test_simplex_has_the_moments_of_a_dirichlet(alpha):
    rng = np.random.default_rng(0)
    draws = np.stack([simplex(alpha, 4, rng) for _ in range(4000)])
    assert draws.mean(0) == pytest.approx([0.25] * 4, abs=0.02)
    variance = 0.25 * 0.75 / (4 * alpha + 1)
    assert draws.var(0) == pytest.approx([variance] * 4, rel=0.15)


LABELS = np.arange(2000) % 10
seeds = pytest.mark.parametrize("seed", range(3))


def counts_of(spec, *, clients=20, seed=0, labels=LABELS, **options):
    parts = partition(spec, labels, clients=clients, seed=seed, **options)
    return class_counts(parts, labels, 10), parts


@seeds
def test_iid_partition_has_equal_shares(seed):
    counts, _ = counts_of("iid", clients=30, seed=seed)
    assert set(counts.sum(1)) == {66, 67}
    assert counts.max() < 25


@seeds
def test_smaller_dirichlet_alpha_skews_labels_more(seed):
    counts, _ = counts_of("dirichlet(alpha=1e6)", seed=seed)
    assert counts.min() >= 9
    assert counts.max() <= 11
    counts, _ = counts_of("dirichlet(alpha=1e-6)", seed=seed, min_examples=0)
    assert (np.sort(counts, 0)[:-1] == 0).all()  # each class with one client


@seeds
@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1.0, 1e6])
def test_balanced_dirichlet_skews_labels_and_not_sizes(seed, alpha):
    spec = f"dirichlet(alpha={alpha}, balanced=True)"
    counts, _ = counts_of(spec, seed=seed, min_examples=0)
    size = counts.sum(1)
    assert size.max() - size.min() <= 1
    share = np.sum(np.square(counts / size[:, None]), 1).mean()  # 1 / C if mixed, 1 if one class
    low, high = {1e-6: (0.5, 1), 0.1: (0.4, 0.95), 1.0: (0.15, 0.5), 1e6: (0.1, 0.15)}[alpha]
    assert low <= share <= high


def test_balanced_dirichlet_does_not_depend_on_client_ids():
    labels = np.repeat(np.arange(10), 50)
    own = [
        class_counts(partition("dirichlet(alpha=0.3, balanced=True)", labels, clients=8, seed=s),
                     labels, 10)
        for s in range(30)
    ]  # fmt: skip
    mean = np.mean(own, axis=0)  # [clients, classes], 6.25 each
    assert abs(mean[0] - 6.25).max() < 6 and abs(mean[-1] - 6.25).max() < 6


@pytest.mark.parametrize("alpha", [0.3, 1.0, 100.0, 1e300])
def test_many_small_classes_leave_no_client_empty(alpha):
    """1,000 classes of 20 examples over 100 clients: sizes spread as independent draws would."""
    labels = np.repeat(np.arange(1000), 20)
    sizes = np.stack([sizes_of(f"dirichlet(alpha={alpha})", labels, 100, s) for s in range(3)])
    share = np.random.default_rng(0).dirichlet(np.full(100, min(alpha, 1e6)), 1000)
    want = np.sqrt(
        np.sum((20 * share).var(axis=1) + np.mean(20 * share % 1 * (1 - 20 * share % 1), 1))
    )
    assert sizes.min() > 100
    assert sizes.std() == pytest.approx(want, rel=0.2)


@pytest.mark.parametrize("clients", [7, 300])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0, 1e300])
@pytest.mark.parametrize("minimum", [0, 1])
@pytest.mark.parametrize("name", ["dirichlet", "quality", "quantity"])
def test_expected_client_size_does_not_depend_on_its_id(name, minimum, alpha, clients):
    options = "alpha_low={0}, alpha_high={0}" if name == "quality" else "alpha={0}"
    spec, labels = f"{name}({options.format(alpha)})", np.arange(320) % 40
    sizes = np.stack([sizes_of(spec, labels, clients, seed, minimum) for seed in range(20)])
    blocks = np.array_split(np.arange(clients), min(clients, 9))
    means = np.array([sizes[:, part].mean(axis=1) for part in blocks])  # [9, 20]
    error = means.std() / np.sqrt(20) + 1e-9
    assert np.abs(means.mean(axis=1) - sizes.mean()).max() < 4.5 * error + 0.02


def sizes_of(spec, labels, clients, seed, minimum=0):
    parts = partition(spec, labels, clients=clients, seed=seed, min_examples=minimum).indices
    return np.array([len(part) for part in parts])


@settings(max_examples=60, deadline=None)
@given(ALPHAS, st.integers(1, 50), st.integers(0, 500), st.integers(0, 99))
def test_rounded_shares_differ_by_less_than_one(alpha, clients, size, seed):
    rng = np.random.default_rng(seed)
    share = simplex(alpha, clients, rng)
    counts = round_shares(share, size, rng)
    assert counts.sum() == size and counts.dtype == np.int64
    assert (counts >= np.floor(share * size - 1e-9)).all()
    assert (counts <= np.ceil(share * size + 1e-9)).all()


def test_rounded_shares_are_unbiased():
    share = np.array([0.02, 0.5, 0.03, 0.45])
    rng = np.random.default_rng(0)
    mean = np.mean([round_shares(share, 10, rng) for _ in range(4000)], axis=0)
    assert mean == pytest.approx(10 * share, abs=0.03)


@seeds
def test_shards_give_few_classes_and_equal_sizes(seed):
    counts, _ = counts_of("shards(per_client=2)", seed=seed)
    assert set(counts.sum(1)) == {100}
    assert (counts > 0).sum(1).max() <= 2
    scores = np.random.default_rng(0).random(50).astype(np.float32)
    parts = partition("shards", scores, clients=5, seed=seed)  # of sorted scores, too
    assert [len(part) for part in parts.indices] == [10] * 5


@seeds
def test_quantity_skews_sizes_only(seed):
    counts, _ = counts_of("quantity(alpha=0.5)", seed=seed, clients=10)
    sizes = counts.sum(1)
    assert sizes.max() > 2 * sizes.mean()
    largest = counts[sizes.argmax()] / sizes.max()
    assert largest == pytest.approx([0.1] * 10, abs=0.05)


def test_natural_partition_keeps_groups_whole():
    groups = np.array([7, 7, 2, 9, 2, 9, 7])
    labels = np.zeros(7, np.int64)
    parts = partition("natural", labels, clients=3, seed=0, groups=groups)
    assert [part.tolist() for part in parts.indices] == [[2, 4], [0, 1, 6], [3, 5]]
    parts = partition("natural", labels, clients=2, seed=0, groups=groups)
    assert [part.tolist() for part in parts.indices] == [[2, 3, 4, 5], [0, 1, 6]]


@seeds
def test_quality_partition_has_balanced_and_skewed_clients(seed):
    counts, parts = counts_of("quality(share=0.2)", seed=seed)
    assert parts.quality.sum() == 4
    share = counts / counts.sum(1, keepdims=True)
    spread = np.abs(share - 0.1).sum(1) / 2  # total variation from the balanced mix
    assert spread[parts.quality].max() < 0.15
    assert spread[~parts.quality].mean() > 0.35
    assert counts[parts.quality].sum() == 400  # in proportion to their number


def test_partition_is_determined_by_the_seed():
    first, second = (counts_of("dirichlet", seed=seed)[0] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_minimum_size_moves_as_few_examples_as_possible():
    skewed = "dirichlet(alpha=1e-6)"
    free, _ = counts_of(skewed, min_examples=0)
    level, _ = counts_of(skewed, min_examples=7)
    missing = np.maximum(7 - free.sum(1), 0)
    assert np.maximum(level.sum(1) - free.sum(1), 0).sum() == missing.sum()
    assert level.sum(1).min() == 7
    exact, _ = counts_of(skewed, min_examples=100)
    assert set(exact.sum(1)) == {100}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("diriclet", {}, "Unknown partition 'diriclet'; did you mean 'dirichlet'"),
        ("dirichlet(beta=1)", {}, "Unknown option of partition 'dirichlet'"),
        ("dirichlet(alpha=0)", {}, "alpha must be a number above 0"),
        ("dirichlet(alpha=-1.0)", {}, "alpha must be a number above 0"),
        ("dirichlet(alpha=1e999)", {}, "alpha must be a number above 0"),
        ("dirichlet(alpha='x')", {}, "alpha is float, got 'x'"),
        ("quantity(alpha=0)", {}, r"quantity\(alpha=0\)"),
        ("quality(share=0)", {}, "share must be a number above 0"),
        ("quality(share=2)", {}, "a share is at most 1"),
        ("quality(alpha_low=0)", {}, "alpha_low must be a number above 0"),
        ("shards(per_client=0)", {}, "per_client is a whole number above 0"),
        ("shards(per_client=1.5)", {}, "per_client is int, got 1.5"),
        ("shards(per_client=11)", {}, "cuts 110 shards for 10 clients, but there are 100"),
        ("natural", {}, "needs a group column"),
        ("natural", {"groups": np.arange(100) % 9}, "has 9 groups for 10 clients; ask for at most"),
        ("iid", {"groups": np.arange(9)}, "9 group codes for 100 labels"),
        ("iid", {"clients": 0}, "ask for at least one client"),
        ("iid", {"min_examples": -1}, "a minimum that is not negative"),
        ("iid", {"min_examples": 11}, "need 110 examples, but there are 100"),
    ],
)
def test_impossible_partitions_are_refused(spec, options, message):
    with pytest.raises(InputError, match=message):
        partition(spec, LABELS[:100], **{"clients": 10, "seed": 0, **options})


@pytest.mark.parametrize("spec", ["dirichlet", "quality"])
def test_scores_have_no_classes_to_skew(spec):
    with pytest.raises(InputError, match=f"{spec} needs class labels, and these are float32"):
        partition(spec, np.ones(9, np.float32), clients=2, seed=0)
    parts = partition("iid", np.ones(9, np.float32), clients=2, seed=0)
    with pytest.raises(InputError, match="class_counts needs class labels"):
        class_counts(parts, np.ones(9, np.float32), 1)


@pytest.mark.parametrize("classes", [1, 8, 40])
def test_partition_figure_is_written(tmp_path, classes):
    labels = np.arange(400) % classes
    parts = partition("dirichlet", labels, clients=5, seed=0)
    names = [f"class {n}" for n in range(classes)]
    counts = class_counts(parts, labels, classes)
    draw(counts, names, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="do not fit"):
        draw(counts, [*names, "one more"], tmp_path / "b.png")
    with pytest.raises(InputError, match="cannot be written"):
        draw(counts, names, tmp_path / "none" / "b.png")


def test_partition_figure_of_thousands_of_clients_is_readable(tmp_path, monkeypatch):
    """At most one column per pixel, similar clients side by side, class names unchanged."""
    from fedjax_lora.runs import plots

    seen = {}
    draw_layers = plots._draw_layers

    def spy(axes, clients, layers, *, gaps):
        seen.update(clients=clients, layers=layers, gaps=gaps)
        return draw_layers(axes, clients, layers, gaps=gaps)

    monkeypatch.setattr(plots, "_draw_layers", spy)
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.dirichlet(np.full(4, 0.3), 5000) * rng.gamma(2, 20, (5000, 1)))
    names = ["$\\frac{", "_hidden", "two\nlines", "n" * 500]
    draw(counts, names, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(seen["clients"]) == plots.MOST_COLUMNS and seen["clients"][-1] == 4999
    heights = np.stack([of for *_, of in seen["layers"]], axis=1)
    assert (np.diff(heights.argmax(1)) >= 0).all() and not seen["gaps"]
    assert [name for name, *_ in seen["layers"]] == [
        "$\\frac{", "_hidden", r"two\nlines", "n" * 37 + "...",
    ]  # fmt: skip


def test_partition_figure_merges_the_rarest_classes():
    from fedjax_lora.runs.plots import _layers

    counts = np.tile(np.arange(20), (3, 1))
    layers = _layers(counts, [str(n) for n in range(20)])
    assert [name for name, *_ in layers] == [*map(str, range(5, 20)), "5 other classes"]
    assert len({colour for _, colour, _ in layers}) == 16
    assert sum(height for *_, height in layers).tolist() == counts.sum(1).tolist()

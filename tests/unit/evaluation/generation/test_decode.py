"""Generation from a cache against a loop without one, against `transformers`, and row by row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lora import lora, models
from fedjax_lora.core.errors import InputError
from fedjax_lora.evaluation import generation
from tests._helpers.small_decoders import FAMILIES, MORE, random_adapters, saved

NEW = 9
PROMPTS = [[7, 3, 12, 33, 5, 41, 8], [9, 4], [30, 31, 32, 6]]


def batch(prompts=PROMPTS):
    width = max(map(len, prompts))
    ids, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt, True
    return ids, mask


@functools.partial(jax.jit, static_argnums=0)
def best(module, params, ids, length, adapter, gain):
    """The most likely token after the first ``length`` ones."""
    mask = jnp.arange(ids.shape[1], dtype=length.dtype)[None] < length
    out = lora.apply(module, params, adapter, gain, ids, mask)
    return models.logits(params, out.hidden[:, length - 1]).argmax(-1)[0]


def slowly(loaded, prompt, new, adapter=None, gain=None):
    """The most likely token, again and again, each time from the whole text."""
    ids = np.zeros((1, max(map(len, PROMPTS)) + new), np.int32)  # one width: compiled once
    ids[0, : len(prompt)] = prompt
    end = len(prompt) + new
    for length in range(len(prompt), end):
        given = loaded.params, ids, np.int32(length), adapter or {}, gain or {}
        ids[0, length] = best(loaded.module, *given)
    return ids[0, len(prompt) : end]


def load(folder, key, **options):
    return models.load(str(folder), num_labels=None, scan_unroll=1, key=key, **options)


@pytest.fixture(scope="module")
def tiny():
    """A model with a sliding window, so that the cache has to forget."""
    model = models.tiny(family="mistral", num_labels=None, layers=2, vocab_size=50)
    config = dataclasses.replace(model.config, sliding_window=5, full_layers=(1,), scan_unroll=1)
    return dataclasses.replace(model, config=config, module=models.LanguageModel(config))


def test_greedy_decoding_equals_decoding_without_a_cache(tiny):
    out = generation.generate(tiny.module, tiny.params, *batch(), new_tokens=NEW)
    want = np.stack([slowly(tiny, prompt, NEW) for prompt in PROMPTS])
    assert len(np.unique(want)) > 5, "a vacuous comparison"
    np.testing.assert_array_equal(out.tokens, want)
    np.testing.assert_array_equal(out.length, [NEW] * 3)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(x, marks=[pytest.mark.slow] * (x not in {"mistral", "qwen3"}))
        for x in (*FAMILIES, *MORE)
    ],
)
def test_greedy_decoding_equals_transformers(family, tmp_path, key):
    import torch

    folder, model = saved(tmp_path, family)
    model.generation_config.eos_token_id = None
    ids, mask = batch()
    want = model.generate(
        torch.tensor(ids, dtype=torch.long),
        attention_mask=torch.tensor(mask, dtype=torch.long),
        max_new_tokens=NEW,
        do_sample=False,
    )[:, ids.shape[1] :]
    loaded = load(folder, key)
    out = generation.generate(loaded.module, loaded.params, ids, mask, new_tokens=NEW)
    np.testing.assert_array_equal(out.tokens, want.numpy())


def test_each_row_can_use_its_own_adapter(tiny, key):
    spec = lora.make_spec(tiny.params, targets="attention", rank=3)
    many = random_adapters(spec, key, 3)
    gain = jax.tree.map(
        lambda *x: jnp.stack(x), *(lora.uniform_gain(spec, rank) for rank in (1, 2, 3))
    )
    together = generation.generate(
        tiny.module,
        tiny.params,
        *batch(),
        new_tokens=NEW,
        adapter=many,
        gain=gain,
        per_row=True,
    )
    base = generation.generate(tiny.module, tiny.params, *batch(), new_tokens=NEW)
    for row, prompt in enumerate(PROMPTS):
        one = jax.tree.map(lambda x: x[row], {"adapter": many, "gain": gain})  # noqa: B023
        np.testing.assert_array_equal(together.tokens[row], slowly(tiny, prompt, NEW, **one))
        assert not np.array_equal(together.tokens[row], base.tokens[row])


def test_one_adapter_can_serve_all_rows(tiny, key):
    spec = lora.make_spec(tiny.params, targets="all-linear", rank=2)
    one = random_adapters(spec, key)
    gain = lora.uniform_gain(spec)
    out = generation.generate(
        tiny.module, tiny.params, *batch(), new_tokens=NEW, adapter=one, gain=gain
    )
    merged = lora.merge(tiny.params, one, gain)
    want = generation.generate(tiny.module, merged, *batch(), new_tokens=NEW)
    np.testing.assert_array_equal(out.tokens, want.tokens)


def test_rows_stop_independently_at_stop_tokens(tiny):
    free = generation.generate(tiny.module, tiny.params, *batch(), new_tokens=NEW)
    stop = int(free.tokens[0, 2])
    assert stop not in free.tokens[0, :2]
    out = generation.generate(tiny.module, tiny.params, *batch(), new_tokens=NEW, stop=(stop, 49))
    for row in range(3):
        line = np.asarray(free.tokens[row])
        ends = np.flatnonzero(np.isin(line, [stop, 49]))
        length = ends[0] + 1 if len(ends) else NEW
        assert out.length[row] == length
        np.testing.assert_array_equal(out.tokens[row], np.where(np.arange(NEW) < length, line, 0))
    assert out.length[0] == 3


def test_samples_are_reproducible_and_independent_of_other_rows(tiny, key):
    rule = generation.Sampling(temperature=1.0, top_k=20)

    def run(ids, mask, key):
        return generation.generate(
            tiny.module, tiny.params, ids, mask, new_tokens=NEW, sampling=rule, key=key
        ).tokens

    ids, mask = batch()
    first = run(ids, mask, key)
    np.testing.assert_array_equal(first, run(ids, mask, key))
    assert not np.array_equal(first, run(ids, mask, jax.random.key(1)))
    np.testing.assert_array_equal(first[:2], run(ids[:2], mask[:2], key))


def test_changing_keys_adapters_or_prompts_does_not_recompile(tiny, key):
    ids, mask = batch()
    spec = lora.make_spec(tiny.params, rank=2)
    rule = generation.Sampling()

    def run(number):
        one = random_adapters(spec, jax.random.key(number))
        generation.generate(
            tiny.module,
            tiny.params,
            np.where(mask, ids + number, 0),
            mask,
            new_tokens=3,
            adapter=one,
            gain=lora.uniform_gain(spec),
            sampling=rule,
            key=jax.random.key(number),
        )

    run(0)
    size = generation.generate._cache_size()
    run(1)
    assert generation.generate._cache_size() == size


def test_batches_have_one_shape_and_are_padded_on_the_left():
    config = models.tiny(family="llama", num_labels=None).config
    made = list(generation.prompt_batches([[1] * 5, [2] * 3, [3]], config, new_tokens=4, batch=2))
    assert [ids.shape for _, ids, _ in made] == [(2, 32), (2, 32)]
    rows, ids, mask = made[1]
    np.testing.assert_array_equal(rows, [2, 2])
    np.testing.assert_array_equal(ids[0], [0] * 31 + [3])
    np.testing.assert_array_equal(mask.sum(axis=1), [1, 1])


def test_prompts_that_leave_no_room_for_an_answer_are_refused():
    config = models.tiny(family="llama", num_labels=None).config
    assert list(generation.prompt_batches([], config, new_tokens=5, batch=2)) == []
    with pytest.raises(InputError, match=r"new_tokens is 0 .*; batch is 0 but must be at least 1"):
        list(generation.prompt_batches([[1]], config, new_tokens=0, batch=0))
    with pytest.raises(InputError) as error:
        list(generation.prompt_batches([[1], [], [1] * 60], config, new_tokens=5, batch=2))
    assert str(error.value) == (
        "Prompts cannot be continued: prompt 2 has no tokens; prompt 3 has 60 tokens and the "
        "model's window is 64, so 5 new ones do not fit; shorten it or ask for fewer."
    )


def test_models_without_a_vocabulary_head_are_refused():
    for model, message in (
        (models.tiny(), "classifies and cannot generate"),
        (models.tiny(family="llama"), "classifies and cannot generate"),
        (models.tiny(family="llama", num_labels=None), "has no tokenizer"),
    ):
        with pytest.raises(InputError, match=message):
            generation.generate_text(model, ["x"], new_tokens=2)


@pytest.mark.shared
def test_trained_checkpoint_generates_the_expected_text(shared, key):
    loaded = models.load(str(shared / "models" / "stories260k"), num_labels=None, key=key)
    told = generation.generate_text(
        loaded, ["Once upon a time", "One day, a boy"], new_tokens=40, batch=1
    )
    assert told[0].startswith(
        ", there was a little girl named Lily. She loved to play outside in the park. "
        "One day, she saw a big, red ball."
    )
    assert told == generation.generate_text(
        loaded, ["Once upon a time", "One day, a boy"], new_tokens=40
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "generation_config.json is not JSON"),
        ("[2]", "generation_config.json must hold one JSON object"),
        ('{"eos_token_id": "</s>"}', "must give eos_token_id as a number or a list"),
    ],
)
def test_unreadable_generation_config_is_refused(text, sentence, tiny, tmp_path):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        generation.stop_token_ids(dataclasses.replace(tiny, folder=tmp_path))

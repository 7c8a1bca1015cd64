"""`evaluate` and `predict` with language models, with valid and invalid input."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError, models
from fedjax_lora.cli import main, predict
from fedjax_lora.cli.evaluate import EvaluateOptions, evaluate
from fedjax_lora.cli.run_or_model import open_folder
from fedjax_lora.evaluation import generation, text_metrics
from fedjax_lora.runs import config
from fedjax_lora.runs.evaluate import local_perplexity
from tests._helpers.character_tokenizer import make_tokenizer
from tests._helpers.small_instructions import SPEC, fill, make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def run(folder):
    """Clients have second factors of their own."""
    return fl.run(make(folder, method="fedsa_lora", learning_rate=3e-2), out=folder / "run")


def test_evaluate_reproduces_the_recorded_scores(run):
    found = evaluate(EvaluateOptions(where=run.out, ranks=(1, 2)))
    last = run.records[-1]
    assert found["metric"] == "perplexity" and found["examples"] == 14
    for name in ("perplexity", "loss", "token_accuracy", "perplexity_by_category"):
        assert found["global"][name] == pytest.approx(last[name], rel=1e-5)
    cut, whole = found["ranks"]
    assert whole["loss"] == found["global"]["loss"] != cut["loss"]


def test_adapter_folder_has_the_scores_of_its_run(run, folder):
    """Prompts, tokens of an answer and length are in the folder, its base is not."""
    options = {"model": str(folder / "llama"), "task": SPEC.replace("plain", "auto") + ")"}
    found = evaluate(EvaluateOptions(where=run.out / "adapter", data_dir=str(folder), **options))
    assert found["global"]["perplexity"] == pytest.approx(run.summary["perplexity"], rel=1e-5)


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_unknown_prompt_format_is_refused(command, run, folder, tmp_path, capsys):
    adapter = shutil.copytree(run.out / "adapter", tmp_path / "adapter")
    about = json.loads((adapter / "fedjax_lora.json").read_text())
    (adapter / "fedjax_lora.json").write_text(json.dumps(about | {"prompt_format": "plane"}))
    (tmp_path / "asked.txt").write_text("aba\n")
    words = {
        "predict": [f"--input={tmp_path / 'asked.txt'}"],
        "evaluate": [f"--task={SPEC.replace('plain', 'auto')})", f"--data-dir={folder}"],
    }[command]
    assert main.main([command, str(adapter), f"--model={folder / 'llama'}", *words]) == 2
    assert "Unknown prompt format 'plane'; did you mean 'plain'?" in capsys.readouterr().err


@pytest.mark.slow
def test_merged_model_has_the_scores_of_its_run(folder):
    """FLoRA's stack is of nearly full rank in a model as small as this."""
    made = fl.run(make(folder, method="flora", learning_rate=3e-2), out=folder / "merging")
    assert (folder / "merging" / "merged").is_dir()
    found = evaluate(EvaluateOptions(where=folder / "merging"))["global"]
    assert found["perplexity"] == pytest.approx(made.summary["perplexity"], rel=1e-5)


def test_each_client_is_evaluated_with_its_own_adapter(run, folder, tmp_path, capsys):
    out = tmp_path / "numbers.json"
    assert main.main(["evaluate", str(run.out), "--clients", f"--out={out}"]) == 0
    assert "local_perplexity" in capsys.readouterr().out
    rows = json.loads(out.read_text())["clients"]
    assert len({row["perplexity"] for row in rows}) == 3, "each has its own second factor"
    words = [f"--out={tmp_path / 'one'}", "--client=1"]
    assert main.main(["export", str(run.out), *words]) == 0
    alone = evaluate(
        EvaluateOptions(
            where=tmp_path / "one", model=str(folder / "llama"), task=SPEC + ")",
            data_dir=str(folder),
        )
    )["global"]  # fmt: skip
    assert rows[1]["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-5)
    # Of every client's examples, which are dealt in turn, about half are of either category.
    both = alone["perplexity_by_category"].values()
    assert min(both) < rows[1]["local_perplexity"] < max(both)


def test_local_perplexity_weighs_categories_of_the_client():
    each = {"a": 2.0, "c": 8.0}
    found = local_perplexity(each, ["a", "b", "c"], np.array([0.2, 0.2, 0.6]))
    assert found == pytest.approx(math.exp((0.2 * math.log(2) + 0.6 * math.log(8)) / 0.8))
    assert local_perplexity(each, ["a", "b"], np.array([0.0, 1.0])) is None


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l"])
def test_answers_are_generated_and_scored(metric, run, folder):
    if metric == "rouge_l":
        pytest.importorskip("rouge_score")
    task = f"{SPEC}, metric={metric!r})"
    found = evaluate(EvaluateOptions(where=run.out, task=task, data_dir=str(folder)))["global"]
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    answers = torch_answers(folder, run.out / "adapter", [f"{row['say']}\n" for row in rows], 6)
    wanted = getattr(text_metrics, metric)(answers, [row["said"] for row in rows])
    assert found[metric] == pytest.approx(wanted)
    assert found["perplexity"] == pytest.approx(run.summary["perplexity"], rel=1e-5)


def torch_answers(folder, adapter, prompts, new_tokens):
    """What PyTorch writes, one prompt at a time."""
    import peft
    import torch
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "llama")
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    tokenizer, found = make_tokenizer(), []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            made = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                max_new_tokens=new_tokens, pad_token_id=0,
            )  # fmt: skip
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        found.append(text.strip())
    return found


def test_answers_equal_those_of_transformers(run, folder, tmp_path, capsys):
    """From a run, and from an adapter that says nothing but what PEFT does."""
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "abc", "input": "de"}\n{"instruction": "x", "input": ""}\n'
    )
    out = tmp_path / "out.jsonl"
    words = [f"--input={tmp_path / 'a.jsonl'}", "--pair=input", "--format=jsonl", f"--out={out}"]
    assert main.main(["predict", str(run.out), *words]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = torch_answers(folder, run.out / "adapter", ["abc\nde\n", "x\n"], 6)
    assert [row["answer"] for row in found] == wanted
    assert [row["text"] for row in found] == ["abc", "x"]

    peft_only = tmp_path / "peft"
    peft_only.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (peft_only / name).write_bytes((run.out / "adapter" / name).read_bytes())
    (tmp_path / "a.txt").write_text("abc\tde\nx\t\n")
    words = [f"--input={tmp_path / 'a.txt'}", "--pair=about", f"--model={folder / 'llama'}"]
    words += ["--prompt-format=plain", "--answer-tokens=6"]
    capsys.readouterr()
    assert main.main(["predict", str(peft_only), *words]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "answer" and rows == wanted


def test_checkpoint_without_adapter_generates_text(folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("abc\n")
    words = [f"--input={tmp_path / 'a.txt'}", "--prompt-format=plain", "--answer-tokens=5"]
    assert main.main(["predict", str(folder / "llama"), *words, "--format=jsonl"]) == 0
    model = models.load(str(folder / "llama"), num_labels=None, key=jax.random.key(0))
    (wanted,) = generation.generate_text(model, ["abc\n"], new_tokens=5)
    assert json.loads(capsys.readouterr().out)["answer"] == wanted.strip()


def test_adapter_of_a_quantized_base_is_loaded_on_the_same_base(folder):
    made = make(folder, method="fed_plora", storage="bfloat16")
    out = fl.run(made, out=folder / "half").out
    model = open_folder(out / "adapter", model=str(folder / "llama"))
    assert model.pretrained.storage == "bfloat16" and model.metadata.prompt_format == "plain"


def test_decoder_classifier_is_evaluated_like_an_encoder(folder):
    made = make(folder, method="hlora")
    chosen = dataclasses.replace(
        made,
        data=config.DataConfig(train_examples=40, test_examples=20, max_length=18),
        federation=dataclasses.replace(made.federation, partition="iid"),
    )
    out = fl.run(chosen, out=folder / "classes")
    found = evaluate(EvaluateOptions(where=out.out))["global"]
    assert found["loss"] == pytest.approx(out.summary["loss"], abs=1e-5)
    with pytest.raises(InputError, match="--answer-tokens is only for language models"):
        predict.main([str(out.out), "--answer-tokens=3"])


WRONG = [
    (["evaluate", "{run}", "--pooling=mean"], "--pooling is only for classifiers"),
    (["predict", "{run}", "--pooling=mean"], "--pooling is only for classifiers"),
    (["evaluate", "{run}", "--task=docstrings"], "it is for a classifier, and this is a language"),
    (["predict", "{run}", "--input={one}", "--prompt-format=chat"], "has no chat template"),
    (["predict", "{run}", "--input={long}"], "prompt 1 has 42 tokens and the model's window is 32"),
    (["predict", "{run}", "--input={one}", "--answer-tokens=60"], "60 new ones do not fit"),
    (["predict", "{run}", "--input={empty}"], "holds no texts"),
    (["predict", "{run}", "--input={none}"], "cannot be read"),
    (["predict", "{run}", "--input={rows}"], "no column 'instruction'"),
    (["predict", "{run}", "--input={rows}", "--text=say", "--pair=input"], "no column 'input'"),
    (["predict", "{run}", "--answer-tokens=0"], "answer_tokens must be at least 1"),
    (["predict", "{run}/adapter"], "give it with --model"),
    (["evaluate", "{llama}"], "give --task"),
    (["evaluate", "{llama}", "--model=minilm"], "--model is only for adapters"),
    (["evaluate", "{llama}", "--ranks", "2"], "without an adapter: --ranks is only for adapters"),
    (
        ["predict", "{llama}", "--model=minilm", "--pooling=mean"],
        "--pooling is only for classifiers",
    ),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda x: str(x)[:50])
def test_invalid_input_is_refused_in_one_sentence(words, sentence, run, folder, tmp_path, capsys):
    texts = {"one": "abc\n", "long": f"{'x' * 40}\nabc\n", "empty": "", "rows": ""}
    places = {name: tmp_path / name for name in ("none", *texts)}
    places |= {"run": run.out, "llama": folder / "llama", "rows": folder / "test.jsonl"}
    for name, text in texts.items():
        if name != "rows":
            places[name].write_text(text)
    assert main.main([word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fedjax-lora: ") and sentence in error, error

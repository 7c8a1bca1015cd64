"""Small federated runs of a language task: scores, answers, weights and outputs."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

import fedjax_lora as fl
from fedjax_lora import InputError, data
from fedjax_lora.cli import main
from fedjax_lora.core.types import ClientParams
from fedjax_lora.data import Prompting, instruction_tokens
from fedjax_lora.evaluation import evaluator, generation, task_types
from fedjax_lora.evaluation.generation import answers
from fedjax_lora.interop import metadata
from fedjax_lora.runs import build, checkpoints, config, cost
from fedjax_lora.runs.loading import check_tokenizer
from tests._helpers import problems
from tests._helpers.character_tokenizer import make_tokenizer
from tests._helpers.small_instructions import SPEC, fill, make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def assets(folder):
    return build.load_assets(make(folder))


@pytest.fixture(scope="module")
def finished(folder, assets):
    return fl.run(make(folder, learning_rate=3e-2), out=folder / "run", assets=assets)


def torch_losses(folder, left, split):
    """Of each example, PyTorch's sum over its completion's tokens, and their number.

    By what a run has left: an adapter on the base, or a merged checkpoint.
    """
    import peft
    import torch
    import transformers

    merged = left.name == "merged"
    model = transformers.AutoModelForCausalLM.from_pretrained(left if merged else folder / "llama")
    model = (model if merged else peft.PeftModel.from_pretrained(model, left)).eval()
    tokenizer, found = make_tokenizer(), []
    for prompt_text, said in zip(split.texts, split.pairs, strict=True):
        prompt = tokenizer(f"{prompt_text}\n")["input_ids"]
        ids = prompt + tokenizer(said, add_special_tokens=False)["input_ids"] + [2]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        found.append((loss * (len(ids) - len(prompt)), len(ids) - len(prompt)))
    return np.array(found)


def sharded(folder):
    """On eight devices, the base in two parts: the config, and what is loaded for it."""
    how = config.ExecutionConfig(mode="sharded", mesh=(4, 2))
    made = dataclasses.replace(make(folder, learning_rate=3e-2), execution=how)
    return made, build.load_assets(made)  # every part of a matrix goes to its device at once


def test_decoder_is_loaded_in_parts(folder, assets):
    made, straight = sharded(folder)
    problems.assert_same_bits(straight.model.params, assets.model.params)
    assert straight.model.fingerprint == assets.model.fingerprint
    for base in (straight.model.params, build.build(made, assets).inputs.base):
        up = jax.tree.leaves(base["decoder"]["layers"]["mlp"]["up_proj"]["kernel"])
        assert not any(kernel.is_fully_replicated for kernel in up)


@pytest.mark.slow  # by default an encoder, in `test_execution` and `test_method_matrix`
def test_sharded_decoder_trains_equally(folder, finished):
    """Kernels that FLoRA changes, scores and all."""
    made, straight = sharded(folder)
    got = fl.run(made, assets=straight)
    problems.assert_close(
        problems.copy(got.state.server), problems.copy(finished.state.server), 2e-5
    )
    for one, other in zip(got.records, finished.records, strict=True):
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "leaves"),
    [("flora", "merged"), pytest.param("fed_plora", "adapter", marks=pytest.mark.slow)],
)
def test_exported_model_has_the_recorded_perplexity_in_pytorch(
    method, leaves, folder, finished, assets
):
    """Everything at once: prompts, tokens, loss, names, scale, and the base that FLoRA changed.

    FLoRA's stack is of nearly full rank in a model as small as this.
    """
    if method != "flora":
        chosen = make(folder, method=method, learning_rate=3e-2)
        finished = fl.run(chosen, out=folder / method, assets=assets)
    summary, left = finished.summary, finished.out / leaves
    if leaves == "adapter":
        chosen = json.loads((left / "adapter_config.json").read_text())
        assert chosen["task_type"] == "CAUSAL_LM" and not chosen.get("modules_to_save")
    assert "AutoModelForCausalLM" in (left / "README.md").read_text()
    losses = torch_losses(folder, left, assets.task.test)
    total, count = losses.sum(axis=0)
    assert summary["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    label = assets.task.test.labels
    for code, name in enumerate(assets.task.classes):
        total, count = losses[label == code].sum(axis=0)
        found = summary["perplexity_by_category"][name]
        assert found == pytest.approx(math.exp(total / count), rel=1e-4)
    assert abs(summary["perplexity"] / summary["start_perplexity"] - 1) > 0.01, "nothing learned"


def test_record_holds_perplexity_by_group(finished):
    last = finished.records[-1]
    assert set(last["perplexity_by_client"]) == {"p0", "p1", "p2"}
    assert set(last["validation_perplexity_by_category"]) == {"a", "b"}
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))
    assert 0 <= last["token_accuracy"] <= 1
    assert finished.summary["start_perplexity"] > 1
    assert (finished.out / "figures" / "accuracy.png").is_file()


def test_best_checkpoint_has_the_lowest_perplexity(finished, capsys):
    """The record holds the perplexity itself."""
    perplexities = [record["validation_perplexity"] for record in finished.records]
    assert perplexities[0] != perplexities[1]
    best = checkpoints.best(checkpoints.whole(finished.out))
    assert best.round == 1 + int(np.argmin(perplexities))
    assert main.main(["inspect", str(finished.out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert f"  perplexity = {finished.records[-1]['perplexity']:.4f}" in printed
    (marked,) = [line for line in printed if "the best" in line]
    assert f"checkpoints/{best.round}:" in marked


def test_traffic_equals_its_estimate(folder, finished, assets):
    found = cost.needs(make(folder, learning_rate=3e-2), assets)
    assert found.up == np.mean([h["up_bytes"] for h in finished.records])
    assert found.down == np.mean([h["down_bytes"] for h in finished.records])


def test_training_lowers_the_perplexity(folder, assets):
    two_epochs = make(folder, method="hetlora", learning_rate=3e-2, epochs=2, max_steps=None)
    result = fl.run(two_epochs, assets=assets)
    first, last = result.records[0]["train_loss"], result.records[-1]["train_loss"]
    assert last < first
    assert result.summary["perplexity"] < 0.9 * result.summary["start_perplexity"]


def test_clients_can_be_weighted_by_tokens(folder, assets):
    tokens = assets.train.types.sum(axis=1)
    made = build.build(make(folder, weights="tokens"), assets)
    plan = made.federation.plan(0, made.ranks.initial, 0.1)
    own = {k: tokens[rows].sum() for k, rows in enumerate(made.federation.members)}
    assert plan.weight.tolist() == [own[k] for k in plan.id.tolist()]
    made = build.build(make(folder), assets)
    plan = made.federation.plan(0, made.ranks.initial, 0.1)
    assert plan.weight.tolist() == [len(made.federation.members[k]) for k in plan.id]


def test_batched_answers_equal_single_answers(folder, assets):
    """Sorted, batched and padded: the texts are in the order of the examples."""
    model, tokens = assets.model, assets.test
    current = task_types.AdaptedParams(model.params, ClientParams({}, {}), {})
    got = answers.make_answer_fn(model, tokens, prompting=Prompting("plain", 6), batch=4)(current)
    prompts = [f"{text}\n" for text in assets.task.test.texts]
    alone = [generation.generate_text(model, [prompt], new_tokens=6)[0] for prompt in prompts[:5]]
    assert got[:5] == [text.strip() for text in alone]
    assert len(got) == len(prompts) and len(set(got)) > 3


def test_generated_answers_are_scored(folder, assets, monkeypatch):
    """The model is taught to be right about half of the examples."""
    task = dataclasses.replace(assets.task.task, metric="exact_match")
    right = [text if n % 2 else "wrong" for n, text in enumerate(assets.task.test.pairs)]
    monkeypatch.setattr(evaluator, "make_answer_fn", lambda *_, **__: lambda model: right)
    other = assets._replace(task=assets.task._replace(task=task), validation=None)
    made = build.build(make(folder), other)
    scores = made.evaluate(made.begin().state)
    assert scores["exact_match"] == 0.5
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


def test_multiple_choice_is_scored_by_likelihood(assets):
    """With the answers as choices, the likelihoods of the rows decide, questions whole."""
    test = assets.task.test
    choices = [("a", "b", said) for said in test.pairs]
    split = test._replace(choices=choices)
    predict = lambda params, rows: np.stack(  # noqa: E731
        [rows.length - 7.0 * (rows.label == 1), rows.label * 0, rows.label * 0 + 1], axis=1
    ).astype(np.float32)
    encode = lambda rows: instruction_tokens.encode(  # noqa: E731
        rows, make_tokenizer(), format="plain", max_length=18
    )
    chosen = dataclasses.replace(assets.task.task, metric="choice_accuracy")
    task = assets.task._replace(task=chosen)
    tools = task_types.EvalContext(
        task, predict, lambda x: x, encode, lambda tokens: lambda model: []
    )
    judge = task_types.TASK_TYPES["language"].make_eval_fn(tools, split, assets.test)
    # A right choice is at most 3 tokens longer than a wrong one, so always likelier.
    assert judge(task_types.AdaptedParams({}, ClientParams({}, {}), {}))["choice_accuracy"] == 1.0


@pytest.mark.slow
def test_loss_based_ranks_work_for_language_tasks(folder, assets):
    made = make(folder)
    federation = dataclasses.replace(
        made.federation, ranks="loss_based(low=1, high=3, share=0.4, score='loss')"
    )
    result = fl.run(dataclasses.replace(made, federation=federation), assets=assets)
    assert result.records[-1]["ranks"] == {"1": 1, "3": 2}


@pytest.mark.slow
def test_execution_modes_agree_on_a_language_task(folder, assets):
    made = make(folder)
    finals = []
    for mode in ("loop", "vmap", "sharded"):
        execution = dataclasses.replace(made.execution, mode=mode, clients_per_step=2)
        result = fl.run(dataclasses.replace(made, execution=execution), assets=assets)
        finals.append(jax.device_get(result.state.server.adapter))
    for other in finals[1:]:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5), finals[0], other)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-length=40"], "The longest text has"),
        (["--model=minilm"], "is an encoder and cannot generate text"),
        ([f"--task={SPEC.replace('plain', 'chat')})"], "has no chat template"),
        (
            [f"--task={SPEC.replace('6', '60')}, metric='rouge_l')"],
            "Answers of 60 tokens do not fit",
        ),
        ([f"--task={SPEC}, metric='rougel')"], "did you mean 'rouge_l'"),
    ],
)
def test_invalid_input_is_refused_without_creating_a_folder(
    options, sentence, folder, tmp_path, capsys
):
    long = {"say": "s" * 20, "said": "t" * 30, "kind": "a", "who": "p0"}
    for name in ("train", "test"):
        rows = (folder / f"{name}.jsonl").read_text()
        (tmp_path / f"{name}.jsonl").write_text(f"{rows}\n{json.dumps(long)}")
    given = {word.split("=")[0]: word for word in [
        f"--task={SPEC})", f"--data-dir={tmp_path}", f"--model={folder / 'llama'}",
        "--max-length=18", f"--out={tmp_path / 'out'}", "--partition=iid", "--clients=2",
        "--cohort=2", "--rounds=1", *options,
    ]}  # fmt: skip
    assert main.main(["run", *given.values()]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("fedjax-lora: ") and sentence in said, said
    assert not (tmp_path / "out").exists()


def without_a_shard(llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    (llama / "model.safetensors").unlink()
    model.save_pretrained(llama, max_shard_size="10KB")
    sorted(llama.glob("model-*.safetensors"))[1].unlink()


def without_an_end(llama):
    file = llama / "tokenizer_config.json"
    options = json.loads(file.read_text())
    file.write_text(json.dumps({name: x for name, x in options.items() if name != "eos_token"}))


def in_eight_bits(llama):
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(llama / "model.safetensors")
    reduced = {name: x.to(torch.float8_e4m3fn) for name, x in tensors.items()}
    save_file(reduced, llama / "model.safetensors")


def without_completions(llama):
    for name in ("train", "test"):
        file = llama.parent / f"{name}.jsonl"
        rows = map(json.loads, file.read_text().splitlines())
        file.write_text("\n".join(json.dumps(row | {"said": " "}) for row in rows))


@pytest.mark.parametrize(
    ("damage", "option", "sentence"),
    [
        (without_a_shard, "", "shard model-00002-of-"),
        (without_an_end, "", "it has no end-of-text token"),
        (in_eight_bits, "", "F8_E4M3"),
        (without_completions, "", "Not one of 40 examples has a completion"),
        (None, "--dtype=float16", "float16"),
        (None, "--storage=int4", "int4"),
    ],
)
def test_unusable_models_and_texts_are_refused_in_one_sentence(
    damage, option, sentence, folder, tmp_path, capsys
):
    """And one without a padding token can, which the checkpoint of all these tests has not."""
    place = shutil.copytree(folder, tmp_path / "all", ignore=shutil.ignore_patterns("run*"))
    if damage:
        damage(place / "llama")
    words = [f"--task={SPEC})", f"--data-dir={place}", f"--model={place / 'llama'}",
             "--max-length=18", f"--out={tmp_path / 'out'}", "--clients=2", "--cohort=2",
             *([option] if option else [])]  # fmt: skip
    try:
        assert main.main(["run", *words]) == 2
    except SystemExit as refused:  # by the parser of options
        assert refused.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert make_tokenizer().pad_token is None


def test_examples_without_a_completion_are_counted(folder, tmp_path):
    rows = (folder / "train.jsonl").read_text().splitlines()
    blank = json.dumps({"say": "x", "said": " ", "kind": "a", "who": "p1"})
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, blank, blank]))
    (tmp_path / "test.jsonl").write_text((folder / "test.jsonl").read_text())
    made = make(folder)
    elsewhere = dataclasses.replace(made.data, data_dir=str(tmp_path))
    assert build.load_assets(made).task.skipped == 0
    assert build.load_assets(dataclasses.replace(made, data=elsewhere)).task.skipped == 2


@pytest.mark.slow
def test_run_reports_skipped_examples(folder, tmp_path, capsys):
    rows = (folder / "train.jsonl").read_text().splitlines()
    blank = json.dumps({"say": "x", "said": " ", "kind": "a", "who": "p1"})
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, blank, blank]))
    (tmp_path / "test.jsonl").write_text((folder / "test.jsonl").read_text())
    words = [f"--task={SPEC})", f"--data-dir={tmp_path}", f"--model={folder / 'llama'}",
             "--max-length=18", f"--out={tmp_path / 'out'}", "--partition=natural", "--clients=3",
             "--cohort=2", "--rounds=1", "--ranks=fixed(rank=2)", "--max-steps=1"]  # fmt: skip
    assert main.main(["run", *words]) == 0
    printed = capsys.readouterr().out
    assert "2 examples could not be used" in printed and "before training" in printed


def test_tasks_without_a_tokenizer_are_refused(assets):
    assert isinstance(assets.task, data.TaskData)
    with pytest.raises(InputError, match="no tokenizer"):
        check_tokenizer(dataclasses.replace(assets.model, tokenizer=None))


@pytest.mark.parametrize("special", [True, False])
def test_answer_ends_where_the_chat_template_ends_it(special, assets, tmp_path):
    """For `answers`, and for PyTorch with the exported checkpoint and the lines of its card."""
    import torch
    import transformers

    def answered(end):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['content'] + (':' if m['role'] == 'user' else END) }}"
            "{% endfor %}".replace("END", repr(end))
        )
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": [end]})
        pretrained = dataclasses.replace(assets.model, tokenizer=tokenizer)
        model = fl.interop.TrainedModel(
            pretrained=pretrained,
            metadata=metadata.infer(pretrained, "base", language=True),
            targets=(), adapter={}, gain={}, head=pretrained.params["head"],
        )  # fmt: skip
        return model, fl.interop.answers(model, ["say it"], answer_tokens=12)[0]

    _, on_and_on = answered("<?>")
    end = next(c for c in on_and_on[3:] if c != " " and c not in on_and_on[:3])
    model, answer = answered(end)
    assert answer == on_and_on.partition(end)[0].strip() and len(answer) < len(on_and_on)

    fl.interop.save_merged(tmp_path, model)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert (f"stop_strings=[{end!r}], tokenizer=tokenizer" in card) == (not special)
    if special:
        ids = torch.tensor([tokenizer("say it:", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            out = exported.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert text.strip() == answer

"""Language tasks: files to instructions, and those to tokens of which completions are learned."""

import gzip
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lora.core.errors import InputError
from fedjax_lora.data import Split, find_task, instruction_tokens, load, partition, prompts
from fedjax_lora.data.datasets.registry import TASKS
from tests._helpers.character_tokenizer import make_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def split(rows, choices=None):
    told, contexts, answers = (list(x) for x in zip(*rows, strict=True))
    labels = np.arange(len(rows), dtype=np.int32)
    return Split(told, answers, labels, labels + 5, contexts, choices)


def text(tokenizer, tokens, row, learned):
    ids = tokens.ids[row, : tokens.length[row]]
    marked = tokens.types[row, : tokens.length[row]] == int(learned)
    return "".join(tokenizer.convert_ids_to_tokens(ids[marked]))


# ------------------------------------------------------------------------------------------ prompts


def test_alpaca_prompt_is_as_published():
    """The texts of https://github.com/tatsu-lab/stanford_alpaca, word for word."""
    assert prompts.alpaca("Add.", "1 and 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n"
    )
    assert prompts.alpaca("Add.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert (prompts.plain("Add.", "1"), prompts.plain("Add.", "")) == ("Add.\n1\n", "Add.\n")


def test_auto_format_uses_the_chat_template_if_there_is_one(tokenizer):
    assert prompts.resolve("auto", tokenizer) == "alpaca"
    with pytest.raises(InputError, match="no chat template; choose format='alpaca'"):
        prompts.resolve("chat", tokenizer)
    tokenizer.chat_template = CHAT
    assert prompts.resolve("auto", tokenizer) == "chat"
    assert prompts.resolve("plain", tokenizer) == "plain"
    with pytest.raises(InputError, match="Unknown prompt format 'alpacca'; did you mean 'alpaca'"):
        prompts.resolve("alpacca", tokenizer)


def test_template_whose_answer_does_not_follow_its_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{% if add_generation_prompt %}A{% else %}B{% endif %}"
    with pytest.raises(InputError, match="does not put an answer after"):
        prompts.format_example("chat", tokenizer, "x", "", "y")
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(InputError, match="only one turn"):
        prompts.format_example("chat", tokenizer, "x", "", "y")


# ------------------------------------------------------------------------------------------- tokens


def test_loss_covers_completion_and_end_token_only(tokenizer):
    data = split([("ab", "", "xyz"), ("ab", "c", "x")])
    made = instruction_tokens.encode(data, tokenizer, format="plain", max_length=32)
    assert text(tokenizer, made.tokens, 0, False) == "<s>ab\n"
    assert text(tokenizer, made.tokens, 0, True) == "xyz</s>"
    assert text(tokenizer, made.tokens, 1, False) == "<s>ab\nc\n"
    assert text(tokenizer, made.tokens, 1, True) == "x</s>"
    assert made.tokens.length.tolist() == [8, 8]
    assert instruction_tokens.prompt_length(made.tokens).tolist() == [4, 6]
    assert made.tokens.label.tolist() == [0, 1]


def test_chat_format_adds_no_second_special_tokens(tokenizer):
    tokenizer.chat_template = CHAT
    data = split([("ab", "c", "xyz")])
    made = instruction_tokens.encode(data, tokenizer, format="auto", max_length=64)
    whole = tokenizer.convert_ids_to_tokens(made.tokens.ids[0, : made.tokens.length[0]])
    assert whole.count("</s>") == 2 and "<s>" not in whole
    assert text(tokenizer, made.tokens, 0, True) == "xyz</s>"
    assert text(tokenizer, made.tokens, 0, False).endswith("<assistant>")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text("ab ", max_size=12), st.text("c", max_size=3), st.text("x y", max_size=9)
        ),
        min_size=1,
        max_size=6,
    ),
    max_length=st.integers(4, 24),
)
def test_examples_without_learnable_tokens_are_left_out(rows, max_length):
    tokenizer = make_tokenizer()
    fits = [
        bool(answer.strip()) and 1 + len(prompts.plain(told, context)) < max_length
        for told, context, answer in rows
    ]
    data = split(rows)
    if not any(fits):
        with pytest.raises(InputError, match=f"Not one of {len(rows)} examples"):
            instruction_tokens.encode(data, tokenizer, format="plain", max_length=max_length)
        return
    made = instruction_tokens.encode(data, tokenizer, format="plain", max_length=max_length)
    assert made.index.tolist() == np.flatnonzero(fits).tolist()
    assert made.split.groups.tolist() == (made.index + 5).tolist()
    for row, place in enumerate(made.index):
        told, context, answer = rows[place]
        room = max_length - 1 - len(prompts.plain(told, context))
        want = (answer + "$")[:room].replace("$", "</s>")
        assert text(tokenizer, made.tokens, row, True) == want
        assert (made.tokens.types[row, made.tokens.length[row] :] == 0).all()


def test_cache_distinguishes_formats(tokenizer, tmp_path):
    data = split([("ab", "", "xyz")])
    made = [
        instruction_tokens.encode(data, tokenizer, format=name, max_length=400, cache_dir=tmp_path)
        for name in ("plain", "alpaca", "plain")
    ]
    lengths = [int(x.tokens.length[0]) for x in made]
    assert lengths[0] == lengths[2] < lengths[1]
    assert len(list(tmp_path.iterdir())) == 2


def test_tokenizer_without_end_token_is_refused_in_one_sentence(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        instruction_tokens.encode(split([("a", "", "b")]), tokenizer, format="plain", max_length=9)


def test_every_choice_becomes_an_example_of_its_question(tokenizer):
    data = split([("q", "", "B"), ("r", "", "A")], choices=[("A", "B", "C"), ("A", "B")])
    rows, question = instruction_tokens.expand_choices(data)
    assert rows.pairs == ["A", "B", "C", "A", "B"]
    assert rows.texts == ["q"] * 3 + ["r"] * 2
    assert question.tolist() == [0, 0, 0, 1, 1]
    assert rows.labels.tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(InputError, match="no choices"):
        instruction_tokens.expand_choices(split([("q", "", "B")]))


# -------------------------------------------------------------------------------------------- files


@pytest.fixture
def folder(tmp_path):
    """Small files in the official forms."""

    def write(name, value):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt") as file:
            file.write(value if isinstance(value, str) else json.dumps(value))

    def dolly(n, category):
        names = ("instruction", "context", "response", "category")
        return dict(
            zip(names, (f"do {n}", f"about {n}" * (n % 2), f"done {n}", category), strict=True)
        )

    for client, count in ((0, 3), (10, 2), (2, 4)):
        rows = [dolly(10 * client + n, "xyz"[n % 3]) for n in range(count)]
        write(f"dolly_alpaca_fed10/local_training_{client}.json.gz", rows)
    write("dolly_alpaca_fed10/global_test.json", [dolly(3, "x"), dolly(21, "new")])
    gsm = [json.dumps({"question": f"{n}+1?", "answer": f"so\n#### {n + 1}"}) for n in range(5)]
    write("gsm8k/train.jsonl.gz", "\n".join(gsm[:3]))
    write("gsm8k/test.jsonl", "\n".join(gsm[3:]))
    quiz = [
        {
            "instruction": "i",
            "input": f"q{n}",
            "output": f"The answer is: {c}. x",
            "class": f"s{n % 2}",
        }
        for n, c in enumerate("ABCDA")
    ]
    write("mmlu/mmlu_test_1444.jsonl", quiz)
    for name, category in (("task1_a", "QA"), ("task2_b", "QA"), ("task3_c", "Summary")):
        instances = [{"input": f"{name} {n}", "output": [f"o{n}", "other"]} for n in range(120)]
        value = {"Definition": [f"Do {name}."], "Categories": [category], "Instances": instances}
        write(f"natural_instructions/tasks/{name}.json", value)
    write("natural_instructions/splits/default/train_tasks.txt", "task2_b\ntask1_a\ntask9_z\n")
    write("natural_instructions/splits/default/test_tasks.txt", "task3_c\n")
    return tmp_path


def test_dolly_alpaca_has_natural_clients_and_categories(folder):
    made = load("dolly_alpaca", data_dir=str(folder))
    assert made.groups == ("0", "2", "10")
    assert made.train.groups.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert made.classes == ("x", "y", "z", "new")
    assert made.train.pairs[:2] == ["done 0", "done 1"]
    assert made.train.contexts[:2] == ["", "about 1"]
    assert made.test.groups is None
    assert made.overlap == 1  # "do 21"; the context of "do 3" tells it from no training example
    dealt = partition("natural", made.train.labels, clients=3, seed=0, groups=made.train.groups)
    assert [len(own) for own in dealt.indices] == [3, 4, 2]
    made = load("dolly_alpaca(clients='category')", data_dir=str(folder))
    assert made.groups == ("x", "y", "z", "new")


def test_natural_instructions_follow_the_official_split(folder):
    made = load("natural_instructions", data_dir=str(folder))
    assert made.groups == ("task1_a", "task2_b", "task3_c")
    assert len(made.train.texts) == 200 and len(made.test.texts) == 100
    assert made.train.texts[0] == "Do task2_b." and made.train.contexts[0] == "task2_b 0"
    assert made.train.pairs[0] == "o0"
    assert made.classes == ("QA", "Summary")
    listed = folder / "natural_instructions/splits/default/test_tasks.txt"
    listed.write_bytes(b"t\xe2che3_c\n")
    with pytest.raises(InputError, match=r"test_tasks\.txt is not UTF-8 text"):
        load("natural_instructions", data_dir=str(folder))
    listed.unlink()
    made = load("natural_instructions", data_dir=str(folder))
    assert (len(made.train.texts), len(made.test.texts)) == (240, 60)
    broken = folder / "natural_instructions/tasks/task1_a.json"
    broken.write_text('{"Definition": []}')
    with pytest.raises(InputError, match=r"task1_a\.json is not a natural-instructions task"):
        load("natural_instructions", data_dir=str(folder))


def test_gsm8k_has_one_category_and_no_natural_clients(folder):
    made = load("gsm8k", data_dir=str(folder))
    assert (made.task.metric, made.classes, made.groups) == ("exact_match", ("all",), ())
    assert made.train.texts == ["0+1?", "1+1?", "2+1?"]
    assert made.test.pairs[0] == "so\n#### 4"
    dealt = partition("dirichlet(alpha=0.5)", made.train.labels, clients=2, seed=0)
    assert sum(map(len, dealt.indices)) == 3


def test_multiple_choice_tasks_have_choices_and_choice_accuracy(folder):
    made = load("mmlu", data_dir=str(folder))
    assert (len(made.train.texts), len(made.test.texts)) == (4, 1)
    assert made.train.choices[0] == ("A", "B", "C", "D")
    other = load("dolly_alpaca(test='mmlu')", data_dir=str(folder))
    assert other.task.metric == "choice_accuracy"
    assert other.test.contexts == [f"q{n}" for n in range(5)]
    assert other.test.pairs == list("ABCDA")
    assert len(other.train.texts) == 9


def test_instruction_columns_are_read_from_own_files(tmp_path):
    rows = "q,a,about\none,1,\ntwo,2,more\n"
    (tmp_path / "a.csv").write_text(rows)
    spec = "instructions(train='a.csv', test='a.csv', instruction='q', completion='a'"
    made = load(spec + ")", data_dir=str(tmp_path))
    assert made.train.texts == ["one", "two"] and made.train.contexts == ["", ""]
    made = load(spec + ", context='about', group='q')", data_dir=str(tmp_path))
    assert made.train.contexts == ["", "more"] and made.groups == ("one", "two")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("instructions(train='a.csv', completion='b')", "no column 'instruction'"),
        ("instructions(train='a.csv', metric='choice_accuracy')", "has no choices"),
        ("instructions(train='a.csv', metric='accuracy')", "accuracy"),
        ("gsm8k(metric='choice_accuracy')", "gsm8k has no choices"),
        ("gsm8k(answer_tokens=0)", "answer_tokens is 0"),
        ("gsm8k(format='alpacca')", "did you mean 'alpaca'"),
        ("gsm8k(test='mmul')", "did you mean 'mmlu'"),
        ("gsm8k(clients='tasks')", "clients"),
        ("file(train='a.csv', metric='rouge_l')", "rouge_l"),
        ("natural_instructions", "no folder"),
    ],
)
def test_invalid_options_are_refused_in_one_sentence(spec, sentence, tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=sentence):
        load(spec, data_dir=str(tmp_path))


def test_missing_files_are_named(tmp_path):
    (tmp_path / "dolly_alpaca_fed10").mkdir()
    with pytest.raises(InputError, match=r"lacks local_training_0\.json"):
        load("dolly_alpaca", data_dir=str(tmp_path))
    with pytest.raises(InputError, match="no folder dolly_alpaca_fed10; check --data-dir"):
        load("dolly_alpaca")


def test_hub_tasks_request_the_published_columns_and_splits(monkeypatch):
    """Columns and splits asked for are those of the data sets' cards."""
    asked = []

    class Rows(list):
        column_names = (
            "question",
            "answer",
            "choices",
            "subject",
            "instruction",
            "output",
            "input",
        )

        def __getitem__(self, key):
            if not isinstance(key, str):
                return super().__getitem__(key)
            return [row[key] for row in self]

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        row = {"question": "q", "answer": "a", "instruction": "i", "output": "o", "input": ""}
        if name == "cais/mmlu":
            row |= {"answer": 2, "choices": ["w", "x", "y", "z"], "subject": "s"}
        return [Rows([row] * 10) for _ in split]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert load("gsm8k").train.texts == ["q"] * 10
    made = load("alpaca")
    assert (len(made.train.texts), len(made.test.texts)) == (8, 2)
    made = load("mmlu")
    assert made.test.pairs == ["C"] * 10
    assert made.test.contexts[0] == "q\nA. w\nB. x\nC. y\nD. z"
    assert len(load("alpaca(test='mmlu')").test.texts) == 10
    assert asked == [
        ("openai/gsm8k", "main", ["train", "test"]),
        ("tatsu-lab/alpaca", None, ["train"]),
        ("cais/mmlu", "all", ["validation+dev", "test"]),
        ("tatsu-lab/alpaca", None, ["train"]),
        ("cais/mmlu", "all", ["test"]),
    ]


def test_options_do_not_change_the_registered_task():
    assert find_task("gsm8k(format='plain', answer_tokens=9)").prompting.answer_tokens == 9
    assert TASKS["gsm8k"].prompting.answer_tokens == 256
    assert find_task("gsm8k") == TASKS["gsm8k"]


# --------------------------------------------------------------------------------------- real files


@pytest.mark.shared
def test_real_instruction_files_have_their_published_sizes(shared):
    real = {name: load(name, data_dir=str(shared / "data")) for name in ("gsm8k", "dolly_alpaca")}
    assert [len(real["gsm8k"].train.texts), len(real["gsm8k"].test.texts)] == [7473, 1319]
    dolly = real["dolly_alpaca"]
    assert dolly.groups == ("0", "1", "2", "4", "5", "6", "7", "8", "9")
    sizes = np.bincount(dolly.train.groups).tolist()
    assert sizes == [826, 967, 3840, 2280, 4204, 2129, 3573, 2115, 774]
    assert len(dolly.test.texts) == 160
    quiz = load("gsm8k(test='mmlu')", data_dir=str(shared / "data"))
    assert len(quiz.test.texts) == 1444 and len(quiz.classes) == 58


@pytest.mark.shared
def test_real_chat_template_of_qwen_separates_prompt_and_answer(shared):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "qwen2.5-0.5b-instruct")
    data = split([("Say hello.", "In French.", "Bonjour!")])
    made = instruction_tokens.encode(data, tokenizer, format="auto", max_length=64)
    at = instruction_tokens.prompt_length(made.tokens)[0]
    ids = made.tokens.ids[0, : made.tokens.length[0]]
    assert tokenizer.decode(ids[:at]).endswith(
        "<|im_start|>user\nSay hello.\n\nIn French.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(ids[at:]) == "Bonjour!<|im_end|>\n"

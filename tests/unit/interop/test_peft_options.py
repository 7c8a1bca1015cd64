"""Options of PEFT's config give PEFT's logits or are refused by name."""

import itertools
import json

import jax
import numpy as np
import pytest

from fedjax_lora import InputError, interop, models
from tests._helpers import peft_cases
from tests._helpers.peft_cases import compare, edit_config, edit_names

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """One base of a family, made when it is first asked for."""
    made = {}

    def base(family):
        if family not in made:
            made[family] = peft_cases.make_base(tmp_path_factory.mktemp(family), family)
        return made[family]

    return base


@pytest.fixture
def bert(bases):
    return bases("bert")


HONOURED = {
    "rslora": {"use_rslora": True},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal", "r": 4},
    "eva": {"init_lora_weights": "eva"},
    "mica": {"init_lora_weights": "mica"},
    "random": {"init_lora_weights": False},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora", "use_rslora": True},
    "pissa with patterns": {
        "init_lora_weights": "pissa",
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"layer.0.*value": 5},
    },
    "one layer": {"layers_to_transform": 1},
    "some layers": {"layers_to_transform": [0, 2], "layers_pattern": "layer"},
    "a pattern of targets": {"target_modules": r".*layer\.[01]\.attention\.self\.(query|key)"},
    "all linear layers": {"target_modules": "all-linear"},
    "excluded by name": {"exclude_modules": ["0.attention.self.query"]},
    "excluded by a pattern": {"exclude_modules": r".*\.layer\.(0|2)\..*value"},
    "groups and classes": {
        "rank_pattern": {
            r".*layer\.(0|1)\..*": 2,
            r"layer\.[2-9]\.attention\.self\.(query|value)": 4,
        },
        "alpha_pattern": {r"(?:(?!value).)*layer\.\d{1,2}\.(?:.*\.)?query": 9},
    },
    "a pattern that matches nothing": {"rank_pattern": {r"layer\.[0-3]\.": 2}},
    "a rank above that of the matrix": {"r": 30},
    "an unused option": {"lora_dropout": 0.5, "loftq_config": {"loftq_bits": 4}},
}  # fmt: skip


@pytest.mark.parametrize("name", HONOURED)
def test_option_gives_the_logits_of_peft(name, bert, tmp_path):
    compare(tmp_path, base=bert, **HONOURED[name]).check()


OF_EVERY_FAMILY = [
    name
    for name, options in HONOURED.items()
    if not any("layer" in str(value) or "query" in str(value) for value in options.values())
]
"""The others have BERT's names in a pattern; where it matches nothing, PEFT refuses."""
UNWRITTEN = [
    ("albert", "one layer"),  # all its layers are one
    ("distilbert", "all linear layers"),  # the head's own layer too, which is saved as it is
]
"""What PEFT cannot make of an option."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        case
        for case in itertools.product(peft_cases.FAMILIES, OF_EVERY_FAMILY)
        if case[0] != "bert" and case not in UNWRITTEN
    ],
)
def test_option_gives_the_logits_of_peft_in_every_family(family, name, bases, tmp_path):
    compare(tmp_path, base=bases(family), **HONOURED[name]).check()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]}),
        ("qwen2", {"rank_pattern": {r"layers\.(0|1)\.self_attn\.q_proj": 2}}),
    ],
)
def test_option_gives_the_logits_of_peft_in_language_models(family, options, bases, tmp_path):
    compare(tmp_path, base=bases(family), task="CausalLM", task_type="CAUSAL_LM", **options).check()


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_changed_base_is_not_repeated_with_rounded_matrices(storage, bases, tmp_path):
    """Singular vectors of a quantized matrix can be other ones, and what they subtract too."""
    base = bases("llama")
    options = {"init_lora_weights": "pissa", "target_modules": ["q_proj"]}
    peft_cases.make_adapter(tmp_path / "a", base, task="CausalLM", task_type="CAUSAL_LM", **options)
    loaded = models.load(str(base), num_labels=None, storage=storage, key=jax.random.key(0))
    with pytest.raises(InputError, match=r"'pissa', which is repeated .* take float32"):
        interop.load_adapter(tmp_path / "a", loaded)


REFUSED = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "trainable_token_indices": {"trainable_token_indices": {"word_embeddings": [1, 2]}},
    "layer_replication": {"layer_replication": [[0, 2], [1, 3]]},
    "other embeddings": {"modules_to_save": ["classifier", "word_embeddings"]},
    "word_embeddings": {"target_modules": ["query", "word_embeddings"]},
    "init_lora_weights": {"init_lora_weights": "pissa_niter_4"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_option_beyond_two_factors_is_refused(name, bert, tmp_path):
    compare(tmp_path, base=bert, **REFUSED[name]).check_refused(name)


EDITED = {
    "corda": ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
    "lora_ga": ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
    "loftq": ({"init_lora_weights": "loftq"}, "merge_and_unload"),
    "an unknown init": ({"init_lora_weights": "spectral"}, "init_lora_weights is 'spectral'"),
    "alora": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is not supported"),
    "arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config is not supported"),
    "kasa": ({"kasa_config": {"beta": 1}}, "kasa_config is not supported"),
    "bdlora": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is not supported"),
    "megatron": ({"megatron_config": {"tp": 2}}, "megatron_config is not supported"),
    "parameters": ({"target_parameters": ["x.weight"]}, "target_parameters is not supported"),
    "qalora": ({"use_qalora": True}, "use_qalora is not supported"),
    "a later option": ({"use_thing": True}, "use_thing is True, an option that is not known"),
    "a text for a flag": ({"use_rslora": "false"}, "use_rslora is 'false'"),
    "backreferences": ({"rank_pattern": {r"(a)\1": 3}}, "uses groupref, which is not supported"),
    "no pattern": ({"rank_pattern": {"(a": 3}}, "is no regular expression"),
    "no names": ({"target_modules": [1]}, "target_modules is [1]"),
    "no layers": ({"layers_to_transform": ["0"]}, "layers_to_transform is ['0']"),
    "fewer targets": ({"target_modules": ["query"]}, "attention.self.value"),
    "more targets": ({"target_modules": ["query", "value", "key"]}, "lacks the factors of"),
    "another layer": ({"layers_to_transform": [0]}, "which adapter_config.json leaves out"),
}


@pytest.fixture(scope="module")
def plain(bases, tmp_path_factory):
    """An adapter without anything special, and its logits."""
    folder = tmp_path_factory.mktemp("plain") / "adapter"
    peft_cases.make_adapter(folder, bases("bert"))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return files, peft_cases.peft_logits(folder, bases("bert"), "SequenceClassification")


def edited(files, folder, edit):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    edit(folder)
    return folder


@pytest.mark.parametrize("name", EDITED)
def test_unsupported_config_value_is_refused(name, plain, bert, tmp_path):
    values, sentence = EDITED[name]
    folder = edited(plain[0], tmp_path / "adapter", edit_config(**values))
    with pytest.raises(InputError) as error:
        interop.load_model(folder, base=str(bert))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def inside(name, part):
    """Put the adapter's name where PEFT has it in a state dict."""
    for kind in ("lora_A", "lora_B"):
        name = name.replace(f".{kind}.", f".{kind}.{part}.")
    return name.replace(".classifier.", f".classifier.modules_to_save.{part}.")


SPELLINGS = {
    "twice": lambda name: f"base_model.model.{name}",
    "distributed": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: name.replace(".encoder.", ".encoder._orig_mod."),
    "bare": lambda name: name.removeprefix("base_model.model."),
    "default": lambda name: inside(name, "default"),
    "in a module of a trainer": lambda name: f"student.model.{name}",
    "saved without an adapter name": lambda name: name.replace(
        ".classifier.", ".classifier.modules_to_save."
    ),
    "another adapter name": lambda name: f"module.{inside(name, 'mine')}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_wrapper_prefixes_are_removed_from_names(spelling, plain, bert, tmp_path):
    """PEFT itself loads nothing from some of these, with a warning."""
    files, logits = plain
    folder = edited(files, tmp_path / "adapter", edit_names(SPELLINGS[spelling]))
    ours = peft_cases.our_logits(folder, bert)
    np.testing.assert_allclose(ours, logits, atol=peft_cases.TOLERANCE * np.abs(logits).max())


def test_unknown_tensor_names_are_listed(plain, bert, tmp_path):
    strange = edit_names(lambda name: name.replace("classifier", "my_head"))
    folder = edited(plain[0], tmp_path / "adapter", strange)
    with pytest.raises(InputError, match=r"no head .*its other tensors are my_head\.bias"):
        interop.load_model(folder, base=str(bert))


def test_several_adapters_in_one_file_are_refused(plain, bert, tmp_path):
    names = iter("ab" * 100)
    folder = edited(
        plain[0], tmp_path / "adapter", edit_names(lambda name: inside(name, next(names)))
    )
    with pytest.raises(InputError, match=r"holds several adapters \(a, b\)"):
        interop.load_model(folder, base=str(bert))


OTHER_TASKS = [
    ("TokenClassification", "TOKEN_CLS"),
    ("QuestionAnswering", "QUESTION_ANS"),
    ("", "FEATURE_EXTRACTION"),
    ("TokenClassification", None),  # PEFT stores the class
    ("QuestionAnswering", None),
    ("MaskedLM", None),
]


@pytest.mark.parametrize(("task", "task_type"), OTHER_TASKS)
def test_adapter_of_another_task_is_refused_as_classifier(task, task_type, bert, tmp_path):
    outcome = compare(tmp_path, base=bert, task=task, task_type=task_type)
    stored = json.loads((outcome.folder / "adapter_config.json").read_text())
    assert stored["task_type"] == task_type
    names = {"TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS"}
    outcome.check_refused(task_type or names.get(task, "BertForMaskedLM"))


def test_warm_start_needs_an_adapter_of_the_same_task_type(bert, bases, tmp_path):
    """Refused before a model is loaded; an adapter of a bare encoder fits a classifier."""
    make = peft_cases.make_adapter
    llama = bases("llama")
    made = {
        "SEQ_CLS": make(tmp_path / "0", bert),
        "TOKEN_CLS": make(tmp_path / "1", bert, task="TokenClassification", task_type="TOKEN_CLS"),
        "FEATURE_EXTRACTION": make(tmp_path / "2", bert, task="", task_type="FEATURE_EXTRACTION"),
        "CAUSAL_LM": make(tmp_path / "3", llama, task="CausalLM", task_type="CAUSAL_LM"),
    }
    for language, fitting in ((False, {"SEQ_CLS", "FEATURE_EXTRACTION"}), (True, {"CAUSAL_LM"})):
        for task, folder in made.items():
            if task in fitting:
                interop.check_task(folder, language=language)
                continue
            with pytest.raises(InputError, match=f"is one for {task}, and what is needed"):
                interop.check_task(folder, language=language)


def test_adapter_without_task_type_takes_that_of_its_base(bases, tmp_path):
    """PEFT puts it on the base as it is, whose head then is the model's."""
    outcome = compare(
        tmp_path / "language", base=bases("llama"), task="CausalLM", task_type=None,
        edit=edit_config(auto_mapping=None),
    )  # fmt: skip
    outcome.check()
    classifier = tmp_path / "classifier"
    model = peft_cases.in_torch(bases("bert"), "SequenceClassification")
    model.config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
    model.classifier.weight.data.normal_()
    model.save_pretrained(classifier)
    outcome = compare(tmp_path / "base", base=classifier, task_type=None)
    outcome.check()
    assert interop.load_model(outcome.folder, base=str(classifier)).metadata.classes == (
        "no",
        "perhaps",
        "yes",
    )
    (tmp_path / "none").mkdir()
    outcome = compare(tmp_path / "none", base=bases("bert"), task_type=None)
    outcome.check_refused("has no head")

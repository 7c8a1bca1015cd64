"""Copies of the base's embeddings in an adapter's file, from PEFT's ``save_embedding_layers``."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests._helpers import peft_cases

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

NAMES = {
    "bert": ["bert.embeddings.word_embeddings.weight"],
    "distilbert": ["distilbert.embeddings.word_embeddings.weight"],
    "llama": ["model.embed_tokens.weight", "lm_head.weight"],
    "qwen2": ["model.embed_tokens.weight", "lm_head.weight"],  # tied
}


def add_tables(base, family, change=0.0):
    """An edit of an adapter's folder that adds the base's tables, with one number changed."""

    def edit(folder):
        file = folder / "adapter_model.safetensors"
        stored, whole = load_file(file), load_file(base / "model.safetensors")
        for name in NAMES[family]:
            table = whole.get(name, whole.get(name.partition(".")[2]))
            table = whole["model.embed_tokens.weight"] if table is None else table  # tied
            stored[f"base_model.model.{name}"] = (
                table + change * (np.arange(len(table)) == 7)[:, None]
            )
        save_file(stored, file)

    return edit


@pytest.mark.parametrize("family", NAMES)
def test_embeddings_equal_to_the_base_are_ignored(family, tmp_path):
    base = peft_cases.make_base(tmp_path, family)
    language = family in ("llama", "qwen2")
    task = {"task": "CausalLM", "task_type": "CAUSAL_LM"} if language else {}
    edit = add_tables(base, family)
    peft_cases.compare(tmp_path, base=base, family=family, edit=edit, **task).check()


def test_embeddings_that_differ_from_the_base_are_refused_by_name(tmp_path):
    base = peft_cases.make_base(tmp_path, "bert")
    edit = add_tables(base, "bert", change=0.5)
    outcome = peft_cases.compare(tmp_path, base=base, edit=edit)
    outcome.check_refused("other embeddings than the base has", NAMES["bert"][0], "merge")

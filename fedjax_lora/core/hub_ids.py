"""Ids of models on the Hugging Face hub."""

import re

__all__ = ["former_id", "present_id"]

# Owners of the models that the hub once listed by name alone.
_OWNERS: tuple[tuple[str, str], ...] = (
    (r"bert-(base|large)-.+", "google-bert"),
    (r"distil(bert|roberta)-base.*", "distilbert"),
    (r"roberta-(base|large)(-.+)?", "FacebookAI"),
    (r"albert-(base|large|xlarge|xxlarge)-v[12]", "albert"),
)


def present_id(name: str) -> str:
    """Return the id of a model that the hub once listed by name alone; any other name as it is.

    >>> present_id("bert-base-cased"), present_id("Qwen/Qwen3-0.6B")
    ('google-bert/bert-base-cased', 'Qwen/Qwen3-0.6B')
    """
    owner = next((owner for pattern, owner in _OWNERS if re.fullmatch(pattern, name)), None)
    return f"{owner}/{name}" if owner else name


def former_id(hub: str) -> str:
    """Return the name by which the hub once listed a model; the id itself if there is no other.

    >>> former_id("google-bert/bert-base-uncased"), former_id("Qwen/Qwen3-0.6B")
    ('bert-base-uncased', 'Qwen/Qwen3-0.6B')
    """
    name = hub.rpartition("/")[2]
    return name if present_id(name) == hub else hub

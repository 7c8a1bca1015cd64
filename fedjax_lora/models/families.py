"""What tells the four supported encoder families apart, as data.

The modules in `encoder` and `heads` are written once; a family is a row of facts they look up.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Family(NamedTuple):
    """The facts of one family.

    Attributes:
      prefix: the base model's name inside a Hugging Face classification checkpoint.
      head: which classification head goes on top, a key of `heads.HEADS`.
      pooler: a tanh layer on the first token belongs to the base model.
      token_types: the embeddings add a row for the segment of each token.
      factorised: token embeddings have their own width and a projection to the hidden width.
      shared_layers: one set of layer parameters serves every layer.
      padded_positions: positions count the tokens that are not padding, from ``pad_token_id + 1``.
      attention_output_dropout: dropout on what the attention block adds to its input.
      feed_forward_dropout: dropout on what the feed-forward block adds to its input.
    """

    prefix: str
    head: str = "linear"
    pooler: bool = False
    token_types: bool = True
    factorised: bool = False
    shared_layers: bool = False
    padded_positions: bool = False
    attention_output_dropout: bool = True
    feed_forward_dropout: bool = True


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "albert": Family(
            "albert", pooler=True, factorised=True, shared_layers=True, feed_forward_dropout=False
        ),
        "bert": Family("bert", pooler=True),
        "distilbert": Family(
            "distilbert", head="pre_classifier", token_types=False, attention_output_dropout=False
        ),
        "roberta": Family("roberta", head="dense_tanh", padded_positions=True),
    }
)

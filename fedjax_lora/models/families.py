"""Properties of the four supported encoder families.

The modules in `encoder` and `heads` are written once and look up the properties of a family here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Family(NamedTuple):
    """Properties of one encoder family.

    Attributes:
      prefix: prefix of the base model's tensors in a Hugging Face classification checkpoint.
      head: the classification head, a key of `heads.HEADS`.
      pooler: the base model has a tanh layer on the first token.
      token_types: the embeddings add a row for the segment of each token.
      factorised: token embeddings have their own width and a projection to the hidden width.
      shared_layers: one set of layer parameters serves every layer.
      padded_positions: positions count the tokens that are not padding, from ``pad_token_id + 1``.
      attention_output_dropout: dropout on the residual branch of the attention block.
      feed_forward_dropout: dropout on the residual branch of the feed-forward block.
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

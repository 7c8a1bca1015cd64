"""The part of a `transformers` tokenizer that the package uses."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:

    class Tokenizer(Protocol):
        """A tokenizer of `transformers`, see its `PreTrainedTokenizerBase`."""

        pad_token: str | None
        eos_token: str | None
        bos_token: str | None
        unk_token: str | None
        pad_token_id: int | None
        bos_token_id: int | None
        eos_token_id: int | None
        unk_token_id: int | None
        all_special_ids: Sequence[int]
        added_tokens_decoder: Mapping[int, object]
        truncation_side: str
        chat_template: str | dict[str, str] | None
        backend_tokenizer: Any  # of the library `tokenizers`
        is_fast: bool

        def __call__(self, text: object, /, *pair: object, **options: object) -> Mapping[str, Any]:
            """Encode one text, several, or pairs of texts."""
            ...

        def __len__(self) -> int:
            """The number of tokens, added ones included."""
            ...

        def get_vocab(self) -> dict[str, int]:
            """The ids by token."""
            ...

        def batch_decode(self, ids: object, /, **options: object) -> list[str]:
            """The texts of several sequences of ids."""
            ...

        def convert_tokens_to_ids(self, token: str) -> int:
            """The id of a token."""
            ...

        def convert_ids_to_tokens(self, id: int) -> str:
            """The token of an id."""
            ...

        def num_special_tokens_to_add(self, pair: bool = False) -> int:
            """How many special tokens a text, or a pair, gets."""
            ...

        def get_chat_template(self) -> str:
            """The chat template of a conversation without tools."""
            ...

        def apply_chat_template(self, conversation: object, /, **options: object) -> Any:
            """The text of a conversation."""
            ...

        def save_pretrained(self, folder: str | os.PathLike[str]) -> object:
            """Write the tokenizer's files."""
            ...
else:
    # At run time anything: libraries that check annotations would look up every attribute.
    Tokenizer = object

"""Names of the tensors in PEFT's files, with the traces of wrappers removed.

PEFT stores ``base_model.model.MODULE.lora_A.weight``. Files that were made from the ``state_dict``
of a wrapped or compiled model have further prefixes, or the name of the adapter inside: those of a
training framework have in front the name under which it holds the model.
"""

import re
from collections.abc import Iterable

from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.interop.peft_writer import PREFIX

__all__ = ["plain_names"]

_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Prefixes of distributed training and of `torch.compile`, in any order and number."""

_WRAPPERS = re.compile(r"\.(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_SAVED = re.compile(r"\.modules_to_save(?=\.(?:weight|bias)$)")
_ADAPTER = re.compile(r"(?P<part>\.(?:lora_[A-Z]|modules_to_save))\.(?P<adapter>[^.]+)(?=\.|$)")


def plain_names(names: Iterable[str], file: object) -> dict[str, str]:
    """Return the names as PEFT would write them, without its prefix, by the names as stored.

    The copy of a module that PEFT keeps beside a trained one, and does not use, is left out.

    Args:
      names: names of the tensors in a file.
      file: the file, for messages.

    Raises:
      InputError: two tensors have the same plain name, or the file holds several adapters.
    """
    plain: dict[str, str] = {}
    adapters: set[str] = set()
    for stored in names:
        name = _SAVED.sub("", _WRAPPERS.sub("", stored).rpartition(PREFIX)[2])
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if ".original_module." in name:
            continue
        if (found := _ADAPTER.search(name)) and found["adapter"] not in ("weight", "bias"):
            adapters.add(found["adapter"])
            part = "" if found["part"] == ".modules_to_save" else found["part"]
            name = f"{name[: found.start()]}{part}{name[found.end() :]}"
        plain[stored] = name
    if len(adapters) > 1:
        raise InputError(
            f"{file} holds several adapters ({', '.join(sorted(adapters))}); save each of them "
            "into a folder of its own."
        )
    seen: set[str] = set()
    twice = {name for name in plain.values() if name in seen or seen.add(name)}
    raise_all(f"{file} stores tensors twice, under two spellings of a name", sorted(twice)[:5])
    return plain

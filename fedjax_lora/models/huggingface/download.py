"""Download of checkpoints from the Hugging Face hub, with its errors in one sentence."""

import re
from collections.abc import Iterable
from pathlib import Path

from fedjax_lora.core.errors import InputError

# Without network the download should fail after seconds, not minutes.
_TIMEOUT_SECONDS = 5.0
_CONFIG = "config.json"
_TOKENIZER = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "tokenizer.model",
        "chat_template.jinja",
        "generation_config.json",
    }
)
_SAFE_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
_PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin|pytorch_model\.bin\.index\.json")


def download(repo: str, *, weights: bool = True) -> Path:
    """Download a repository's config, tokenizer and weights, unless they are cached.

    Without network, or with ``HF_HUB_OFFLINE=1``, the hub's local cache is used.

    Args:
      repo: ``org/name``.
      weights: False does not download the weights, which may be gigabytes.

    Returns:
      The checkpoint folder in the hub's local cache.

    Raises:
      InputError: the repository does not exist or is not accessible, or the hub cannot be reached
        and the repository is not cached.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        # Not `snapshot_download`, which requests the list of files without a time limit.
        info = HfApi().model_info(repo, timeout=_TIMEOUT_SECONDS)
        paths = [
            hf_hub_download(repo, file, etag_timeout=_TIMEOUT_SECONDS)
            for file in _select_files((item.rfilename for item in info.siblings or ()), weights)
        ]
    except Exception as error:  # errors of the hub, of its HTTP library and of the system
        folder = _cached(repo, weights)
        if folder is None:
            raise InputError(_explain(repo, error)) from error
        return folder
    if not paths:
        raise InputError(f"Hub repository {repo!r} holds no {_CONFIG}; it is not a checkpoint.")
    return Path(paths[0]).parent


def _select_files(files: Iterable[str], weights: bool = True) -> list[str]:
    """Select the files of a checkpoint, with or without its weights."""
    files = sorted(files)
    if _CONFIG not in files:
        return []
    tokenizer = [file for file in files if file in _TOKENIZER]
    return [_CONFIG, *tokenizer, *(_weights(files) if weights else [])]


def _weights(files: Iterable[str]) -> list[str]:
    """Select the weight files; pickled ones only if there are no others."""
    files = list(files)
    safe = [file for file in files if _SAFE_WEIGHTS.fullmatch(file)]
    return safe or [file for file in files if _PICKLED_WEIGHTS.fullmatch(file)]


def _cached(repo: str, weights: bool) -> Path | None:
    """Newest snapshot in the hub's cache, if it has a config and, if requested, weights."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except Exception:  # not cached, or incomplete: the caller reports why the cache was needed
        return None
    files = [file.name for file in folder.iterdir()]
    return folder if _select_files(files) and (_weights(files) or not weights) else None


def _explain(repo: str, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"Hub repository {repo!r} is gated; accept its terms there and log in (hf auth login)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"Model {repo!r} is not a folder here, and the hub has no such public repository."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"Model {repo!r} is not in the local cache, and HF_HUB_OFFLINE forbids downloading it."
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"Model {repo!r} is not a folder here and not in the local cache, and the hub could not "
        f"provide it ({reason}); check the network, or give a checkpoint folder."
    )

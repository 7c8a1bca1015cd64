"""Upload of an exported model to the Hugging Face hub."""

import pathlib

from fedjax_lora.core.errors import InputError

__all__ = ["check", "check_base", "push"]


def check(repo: str) -> None:
    """Check that something can be uploaded to a repository, as far as the hub says before it is.

    Args:
      repo: ``user/name``.

    Raises:
      InputError: no valid name, no token, or the hub cannot be reached or refuses the token.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise _bad_name(repo) from error
    if repo.count("/") != 1:
        raise _bad_name(repo)
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"Nothing can be pushed to {repo}: HF_HUB_OFFLINE forbids it.")
    if get_token() is None:
        raise InputError(
            f"Nothing can be pushed to {repo} without a token of the hub; log in (hf auth login), "
            "or set HF_TOKEN."
        )
    try:
        HfApi().whoami()
    except Exception as error:  # errors of the hub, of its HTTP library and of the system
        raise _refused(repo, error) from error


def push(folder: pathlib.Path, repo: str, *, private: bool = False) -> str:
    """Upload a folder as one commit to a repository, which is created if there is none.

    Files of the repository that the folder does not have stay there.

    Args:
      folder: an exported model.
      repo: ``user/name``.
      private: a repository that is created is private; one that exists stays as it is.

    Returns:
      The repository's URL.

    Raises:
      InputError: the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload a model of fedjax-lora"
        )
    except Exception as error:
        raise _refused(repo, error) from error
    return str(url)


def check_base(base: str, repo: str) -> None:
    """Check that those who load an adapter from the hub can load its base.

    Args:
      base: the name of the base that the card states.
      repo: where the adapter is to be pushed.

    Raises:
      InputError: the name is not a hub id.
    """
    if "/" not in base:
        raise InputError(
            f"The adapter's base {base!r} is a folder or file of this machine, and nobody else "
            f"could load what is pushed to {repo}; push the --merged model."
        )


def _bad_name(repo: str) -> InputError:
    return InputError(
        f"{repo!r} is not a repository USER/NAME of the hub: letters, digits, '-', '_' and '.'."
    )


def _refused(repo: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"The hub did not take the model for {repo} ({reason}); check the name, the "
        "token's permission to write, and the network. Nothing of the run is lost."
    )

"""A folder that can tell whether it is whole: the sha256 of every file, written last.

``SHA256SUMS`` has the format of the command of that name: ``sha256sum -c SHA256SUMS`` checks it.
"""

import pathlib

from fedjax_lora.core import atomic_io

SUMS = "SHA256SUMS"


def write_checksums(folder: pathlib.Path) -> None:
    """Write down the digest of every file in a folder."""
    atomic_io.write(folder / SUMS, _text(_sums(folder)))


def verify(folder: pathlib.Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if it is as it was sealed."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({error})"
    here = _sums(folder)
    if text == _text(here):
        return None
    sealed = {name: digest for digest, _, name in (x.partition("  ") for x in text.splitlines())}
    for name in here | sealed:
        if name not in here:
            return f"the file {name} is missing"
        if name not in sealed:
            return f"the file {name} is not in {SUMS}"
        if here[name] != sealed[name]:
            return f"the file {name} has changed"
    return f"{SUMS} has changed"


def _sums(folder: pathlib.Path) -> dict[str, str]:
    """The digest of every file in a folder and the folders in it, but of the list itself."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in found)
    return {name: atomic_io.sha256(folder / name) for name in names if name != SUMS}


def _text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())

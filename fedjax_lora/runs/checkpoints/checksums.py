"""Checksums of a folder: the sha256 of every file, written last, to find damage.

``SHA256SUMS`` has the format of the command of that name: ``sha256sum -c SHA256SUMS`` checks it.
"""

import pathlib

from fedjax_lora.core import atomic_io

SUMS = "SHA256SUMS"


def write_checksums(folder: pathlib.Path) -> None:
    """Write the digest of every file in a folder into its `SUMS`."""
    atomic_io.write(folder / SUMS, _format(_digests(folder)))


def verify(folder: pathlib.Path) -> str | None:
    """Describe the damage of a folder in a few words; None if every file has its digest."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        return f"{SUMS} cannot be read ({error})"
    present = _digests(folder)
    if text == _format(present):
        return None
    lines = (line.partition("  ") for line in text.splitlines())
    expected = {name: digest for digest, _, name in lines}
    for name in present | expected:
        if name not in present:
            return f"the file {name} is missing"
        if name not in expected:
            return f"the file {name} is not in {SUMS}"
        if present[name] != expected[name]:
            return f"the file {name} has changed"
    return f"{SUMS} has changed"


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """Return the digest of every file in a folder and its subfolders, except for `SUMS`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    return {name: atomic_io.sha256(folder / name) for name in names if name != SUMS}


def _format(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())

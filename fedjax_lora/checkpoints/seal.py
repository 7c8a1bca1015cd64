"""A folder that can tell whether it is whole: the sha256 of every file, written last.

``SHA256SUMS`` has the format of the command of that name: ``sha256sum -c SHA256SUMS`` checks it.
"""

import pathlib

from fedjax_lora import files

SUMS = "SHA256SUMS"


def seal(folder: pathlib.Path) -> None:
    """Write down the digest of every file in a folder."""
    lines = [f"{files.sha256(folder / name)}  {name}\n" for name in _names(folder)]
    files.write(folder / SUMS, "".join(lines))


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if it is as it was sealed."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return f"{SUMS} cannot be read: {getattr(error, 'strerror', None) or error}"
    sums = dict(line.split("  ", 1)[::-1] for line in text.splitlines() if "  " in line)
    names = _names(folder)
    for name in sorted(set(sums) | set(names)):
        if name not in names:
            return f"the file {name} is missing"
        if name not in sums:
            return f"the file {name} is not in {SUMS}"
        if files.sha256(folder / name) != sums[name]:
            return f"the file {name} has changed"
    return None


def _names(folder: pathlib.Path) -> list[str]:
    """All files in a folder and the folders in it but the list itself, by relative path."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != SUMS)

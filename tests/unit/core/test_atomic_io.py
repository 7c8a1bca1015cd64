"""Files and folders are written atomically, with the user's links and permissions."""

import os
import pathlib
import stat
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o007, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def fill(folder: pathlib.Path) -> None:
    """As libraries do: through private temporary files, and in folders of their own."""
    (folder / "inner").mkdir(mode=0o700)
    save_file({"a": np.zeros(2)}, folder / "inner" / "a.safetensors")
    (folder / "private").touch(mode=0o600)


def test_new_file_has_the_permissions_of_the_umask(umask, tmp_path):
    atomic_io.write_folder(tmp_path / "new" / "folder", fill)
    atomic_io.write(tmp_path / "new" / "file", "text")
    for path in (tmp_path / "new").rglob("*"):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_replaced_file_keeps_its_permissions(tmp_path):
    file = tmp_path / "file"
    file.touch(mode=0o600)
    atomic_io.write(file, b"bytes")
    assert (mode(file), file.read_bytes()) == (0o600, b"bytes")


def test_symbolic_links_are_followed_and_kept(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    for name in ("folder", "file", "later"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / {"folder": "real"}.get(name, name))
    atomic_io.write_folder(tmp_path / "folder", fill)
    atomic_io.write_folder(tmp_path / "later", fill)
    atomic_io.write(tmp_path / "file", "text")
    assert all((tmp_path / name).is_symlink() for name in ("folder", "file", "later"))
    disk = tmp_path / "disk"
    assert sorted(x.name for x in disk.iterdir()) == ["file", "later", "real"]
    assert (disk / "real" / "private").exists() and (disk / "file").read_text() == "text"

    atomic_io.remove_folder(tmp_path / "folder")
    assert (tmp_path / "folder").is_symlink() and list((disk / "real").iterdir()) == []


def test_special_file_is_written_in_place(tmp_path):
    atomic_io.write(pathlib.Path(os.devnull), "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    atomic_io.write(pipe, "text")
    reader.join()
    assert got == ["text"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_failed_folder_write_keeps_the_old_folder(tmp_path):
    atomic_io.write_folder(tmp_path / "folder", fill)

    def fails(folder):
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_io.write_folder(tmp_path / "folder", fails)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "private").exists()


def test_failed_file_write_keeps_the_old_file(tmp_path, monkeypatch):
    atomic_io.write(tmp_path / "file", "before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_io.write(tmp_path / "file", "after" * 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (Exception("File too large (os error 27)"), "File too large .os error 27."),
    ],
)
def test_write_errors_are_reported_whatever_raises_them(error, reason, tmp_path):
    with (
        pytest.raises(InputError, match=f"{tmp_path} cannot be written .{reason}."),
        atomic_io.reporting_write_errors(tmp_path),
    ):
        raise error
    with pytest.raises(ZeroDivisionError), atomic_io.reporting_write_errors(tmp_path):
        raise ZeroDivisionError


def test_concurrent_threads_write_one_file_safely(tmp_path):
    texts = [str(n) * 10_000 for n in range(8)]
    threads = [
        threading.Thread(target=atomic_io.write, args=(tmp_path / "file", text)) for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

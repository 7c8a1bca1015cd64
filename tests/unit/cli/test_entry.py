"""The entry of the command line."""

import importlib.abc
import subprocess
import sys

from fedjax_lora import __main__ as entry


class Interrupted(importlib.abc.MetaPathFinder):
    """Ctrl-C while a module is looked for."""

    def find_spec(self, name, path=None, target=None):
        if name == "fedjax_lora.cli.main":
            raise KeyboardInterrupt


def test_ctrl_c_during_imports_is_one_sentence(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "fedjax_lora.cli.main", raising=False)
    monkeypatch.delattr("fedjax_lora.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert entry.main() == 130
    assert capsys.readouterr().err == "fedjax-lora: stopped\n"


def test_entry_imports_little_before_it_can_be_interrupted():
    code = "import sys, fedjax_lora.__main__; print(*[m for m in sys.modules if '.' not in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"jax", "numpy", "tyro", "rich"}.isdisjoint(done.stdout.split())

"""Packages that only some features need: whether they are there, without importing them."""

import importlib.util


def is_installed(module: str) -> bool:
    """Return whether a module, which may be inside a package, can be imported.

    >>> is_installed("json.decoder"), is_installed("no_such_package.inside")
    (True, False)
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False

"""For all tests of clients."""

import problems
import pytest

quick = pytest.fixture(problems.quick_compilation, scope="module", autouse=True)

"""For all tests of generation."""

import problems
import pytest

quick = pytest.fixture(problems.quick_compilation, scope="module", autouse=True)

"""The task that machines share, and each one's own file."""

import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.deploy import tasks


@pytest.mark.parametrize(
    ("task", "language"),
    [
        ("file(train='a.csv', text='body', metric='macro_f1')", False),
        ("instructions(train='a.jsonl', completion='said', format='plain')", True),
    ],
)
def test_what_is_shared_can_be_read_with_any_file(task, language):
    shared = tasks.shared(task)
    assert "a." not in shared and tasks.shared(shared) == shared
    assert tasks.is_language(shared) == language


def test_columns_that_the_task_does_not_have_are_refused():
    with pytest.raises(InputError, match="no column 'label'; it has instruction, completion"):
        tasks.with_file("instructions", "a.jsonl", {"label": "x"})

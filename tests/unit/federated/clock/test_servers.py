"""Servers that do not wait for all: who begins and answers when, by hand."""

import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.core import registry
from fedjax_lora.federated.clock import SERVERS, Events, Job

SECONDS = np.array([1.0, 2.0, 5.0, 1.0, 1.0])


def events(text, cohort=3):
    """The idle client of the lowest number begins first."""
    server = registry.build(text, SERVERS, "server")
    return Events(server, len(SECONDS), cohort, lambda t, n, idle, count: idle[:count])


def take(round, ids):
    return SECONDS[ids]


def test_buffer_takes_what_arrives_and_lets_others_begin_at_once():
    """At 1 client 0 has answered and 3 begins; at 2 clients 1 and 3 answer, 1 fills the buffer."""
    made = events("fedbuff(buffer=2)")
    found = [made.answered(t, take) for t in range(4)]
    assert [x.jobs for x in found] == [
        (Job(1, 0, 0), Job(2, 1, 0)),
        (Job(2, 3, 0), Job(3, 0, 1)),
        (Job(4, 0, 2), Job(4, 1, 1)),
        (Job(5, 0, 3), Job(5, 2, 0)),
    ]
    assert [x.seconds for x in found] == [2, 1, 1, 1]
    assert all(x.stopped == () for x in found)


def test_clients_that_would_be_too_late_are_stopped():
    """Client 2 began in round 0 and cannot be in round 2 any more."""
    made = events("fedbuff(buffer=2, most=1)")
    found = [made.answered(t, take) for t in range(3)]
    assert [x.stopped for x in found] == [(), (2,), ()]
    assert 2 not in [job.id for job in found[2].jobs]


def test_semi_synchronous_clients_begin_with_the_new_model():
    made = events("semi_synchronous(buffer=2)")
    found = [made.answered(t, take) for t in range(3)]
    assert [x.jobs for x in found] == [
        (Job(1, 0, 0), Job(2, 1, 0)),
        (Job(3, 0, 1), Job(4, 1, 1)),
        (Job(5, 0, 2), Job(5, 2, 0)),
    ]


@pytest.mark.parametrize("text", ["semi_synchronous", "fedbuff(buffer=3)"])
def test_whole_cohort_of_equal_clients_is_never_late(text):
    made = events(text)
    for t in range(3):
        found = made.answered(t, lambda round, ids: np.full(len(ids), 2.0))
        assert [job.round for job in found.jobs] == [t] * 3 and found.seconds == 2


def test_fedasync_makes_a_round_of_every_answer():
    made = events("fedasync", cohort=2)
    found = [made.answered(t, take).jobs for t in range(4)]
    assert found == [(Job(1, 0, 0),), (Job(2, 0, 1),), (Job(2, 1, 0),), (Job(3, 0, 2),)]


def test_any_round_is_played_from_the_beginning():
    one, other = events("fedbuff(buffer=2)"), events("fedbuff(buffer=2)")
    assert one.answered(3, take) == [other.answered(t, take) for t in range(4)][3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fedbuff(buffer=0)", "buffer of at least 1"),
        ("fedasync(mixing=0)", "a rate above 0"),
        ("fedasync(exponent=-1)", "exponent of at least 0"),
        ("fedbuff(mix='sums')", "mix"),
    ],
)
def test_values_out_of_range_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        registry.build(text, SERVERS, "server")


def test_larger_buffer_than_cohort_is_refused():
    with pytest.raises(InputError, match="give a cohort of at least 4"):
        events("fedbuff(buffer=4)").answered(0, take)

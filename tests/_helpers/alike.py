"""Methods of which the default run tests what is their own, and the slow run everything.

A method is in all tests that are parametrised with methods. What a round does around a method is
tested by default with methods of every kind (`problems.KINDS`); for those below, whose hooks are of
these kinds, the default run has the rule itself and leaves the rest to ``make test-all``.
"""

import pytest

ALIKE = {"fedhl", "fedmomentum", "eclora", "fedsvd", "fedrot_lora", "frlora", "ravan", "fed_sb"}

OWN = {
    "test_a_round_agrees_with_the_oracle",
    "test_initial_client_parameters_agree_with_the_oracle",
    "test_absent_clients_have_no_influence",
    "test_an_empty_cohort_leaves_the_server_unchanged",
    "test_traffic_is_the_size_of_what_is_sent",
    "test_traffic_counts_beyond_32_bits",
    "test_aggregate_of_one_client_is_its_own_model",
    "test_inactive_components_are_exactly_zero",
    "test_trained_parameters_are_counted",
    "test_trained_parameters_are_in_memory",
    "test_records_are_frozen_and_documented",
    "test_a_misspelt_option_value_is_refused",
}
"""Tests of the rule itself, in the default run with the method's default options."""


def belongs_to_the_slow_run(item: pytest.Item) -> bool:
    """Whether a test is one of a method of `ALIKE` that is not `OWN`, or has options."""
    call = getattr(item, "callspec", None)
    texts = [x for x in call.params.values() if isinstance(x, str)] if call else []
    named = [x for x in texts if x.split("(")[0] in ALIKE]
    own = item.name.split("[")[0] in OWN and not any("(" in x for x in named)
    return bool(named) and not own

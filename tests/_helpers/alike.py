"""Which tests of a method the default run leaves to the slow one, decided when tests are collected.

Most tests of methods are parametrised with the name of every registered method, or with every
variant of its options (``"hlora(sigma='b')"``). Two lists below say what of that is slow:

* For a method of `ALIKE` the default run has only the tests named in `OWN`, with default options.
  Those compare its rule with the NumPy oracle and check what the rule alone decides. What a round
  does around a rule, such as sharding, faults or checkpoints, is the same code for all methods and
  is tested by default with a method of every kind, see `problems.one_of_each_kind`.
* A variant in `SECOND` has an option whose code and use are tested by default in another variant
  of the same method.

Nothing is skipped: ``make test-all`` runs everything. So a new method needs no entry here; add it
to `ALIKE` only if its hooks are of kinds that other methods have.
"""

import pytest

ALIKE = {"fedhl", "fedmomentum", "eclora", "fedsvd", "fedrot_lora", "frlora", "ravan", "fed_sb"}
"""Methods whose hooks are of kinds that the methods of `problems.KINDS` have."""

OWN = {
    "test_a_round_agrees_with_the_oracle",
    "test_initial_client_parameters_agree_with_the_oracle",
    "test_absent_clients_have_no_influence",
    "test_an_empty_cohort_leaves_the_server_unchanged",
    "test_traffic_equals_the_size_of_what_is_sent",
    "test_traffic_counts_beyond_32_bits",
    "test_aggregate_of_one_client_is_its_own_model",
    "test_inactive_components_are_exactly_zero",
    "test_count_of_trained_parameters_equals_what_is_sent",
    "test_memory_estimate_includes_trained_parameters",
    "test_records_are_frozen_and_documented",
    "test_a_misspelt_option_value_is_refused",
}
"""Tests of the rule itself, in the default run for every method with its default options."""

SECOND = {
    "flexlora(sigma='a')",
    "rb_lora(sigma='a')",
    "raflora(sigma='a')",
    "raflora(sigma='b')",
    "florist(sigma='a')",
    "florist(sigma='both')",
}
"""Another side for the singular values: one is tested for each of these methods by default, alone
or with its other options, and all of them for ``hlora``."""


def belongs_to_the_slow_run(item: pytest.Item) -> bool:
    """Whether a collected test is one that the default run leaves out, see this module."""
    call = getattr(item, "callspec", None)
    texts = [x for x in call.params.values() if isinstance(x, str)] if call else []
    named = [x for x in texts if x.split("(")[0] in ALIKE]
    own = item.name.split("[")[0] in OWN and not any("(" in x for x in named)
    return (bool(named) and not own) or not SECOND.isdisjoint(texts)

"""Noise in whole runs: its multiplier from an epsilon, its budget, and what it does not go with."""

import pytest

from fedjax_lora import InputError
from fedjax_lora.runs import build
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.choices import update_specs
from fedjax_lora.runs.compilation import programs
from fedjax_lora.runs.resume import check_config
from tests._helpers import tiny_runs


@pytest.fixture(scope="module")
def shared():
    return tiny_runs.assets(), programs()


def changed(*updates, **federation):
    fields = {f"federation.{name}": value for name, value in federation.items()}
    return tiny_runs.change(tiny_runs.CONFIG, {"federation.updates": updates} | fields)


def test_an_epsilon_gives_the_noise_of_the_compiled_round(shared):
    config = changed("gaussian_noise(epsilon=6.0, norm=0.5)", "int8", rounds=7)
    made = build.build(config, *shared)
    spent = [made.setup.privacy(t)["epsilon"] for t in (6, 7)]
    assert spent[0] < spent[1] and 6 * 0.999 < spent[1] <= 6
    assert made.round_spec.updates == update_specs(config) != config.federation.updates
    assert "epsilon" not in made.round_spec.updates[0]
    assert made.rounds == 7


def test_run_ends_when_its_privacy_budget_is_spent(shared):
    noise = "gaussian_noise(multiplier=4.0, norm=0.5{})"
    whole = build.build(changed(noise.format(""), rounds=9), *shared)
    budget = (whole.setup.privacy(3)["epsilon"] + whole.setup.privacy(4)["epsilon"]) / 2
    made = build.build(changed(noise.format(f", budget={budget}"), rounds=9), *shared)
    assert whole.rounds == 9 and made.rounds == 3
    assert made.ends([{}] * 3) and not made.ends([{}] * 2)


def test_noise_with_clients_that_are_not_always_available_is_refused(shared):
    profiles = "classes(names=['laptop-m1'], availability=0.9)"
    noise = "gaussian_noise(multiplier=4.0, norm=0.5)"
    with pytest.raises(InputError, match="not always available"):
        build.build(changed(noise, device_profiles=profiles), *shared)


def test_extending_a_run_with_noise_from_an_epsilon_is_refused():
    before = configs.to_record(changed("gaussian_noise(epsilon=6.0, norm=0.5)"))
    after = changed("gaussian_noise(epsilon=6.0, norm=0.5)", rounds=tiny_runs.ROUNDS + 1)
    with pytest.raises(InputError, match="another noise"):
        check_config(before, after, lambda rounds: lambda t: 1.0, 2)


@pytest.mark.parametrize(
    ("updates", "ranks", "words"),
    [
        (
            "gaussian_noise(multiplier=4.0, norm=0.5)",
            "loss_based(low=1, high=2, share=0.5)",
            "reads clients' models without noise",
        ),
        ("gaussian_noise(norm=0.5)", "fixed(rank=1)", "needs a multiplier"),
        ("gaussian_noise(norm=0.5, epsilon=-1.0)", "fixed(rank=1)", "epsilon above 0"),
    ],
)
def test_noise_that_protects_nothing_is_refused(updates, ranks, words, shared):
    with pytest.raises(InputError) as caught:
        build.build(changed(updates, ranks=ranks), *shared)
    assert words in str(caught.value) and "\n" not in str(caught.value)

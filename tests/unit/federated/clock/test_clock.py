"""The simulated clock against times counted by hand."""

import json

import numpy as np
import pytest

from fedjax_lora import InputError
from fedjax_lora.core import registry
from fedjax_lora.core.types import Batches
from fedjax_lora.federated import Plan
from fedjax_lora.federated.clock import (
    DEADLINES,
    DEVICE_CLASSES,
    DEVICE_PROFILES,
    Clock,
    Devices,
    Work,
)

STEPS = np.array([3, 2, 3, 0])
"""Client 3 has dropped out; the last place of the cohort is absent."""


def profiles(spec):
    return registry.build(spec, DEVICE_PROFILES, "device profiles")


def deadline(spec):
    return registry.build(spec, DEADLINES, "deadline")


def plan():
    """Three clients of 10 tokens a step; their ids are not in order."""
    taken = np.arange(3) < np.append(STEPS, 0)[:, None]
    tokens = np.where(taken, 10, 0)
    return Plan(
        id=np.array([2, 0, 1, 3, 4]),
        rank=np.array([1, 1, 3, 1, 1]),
        weight=np.where(np.append(STEPS, 0) > 0, 5.0, 0.0).astype(np.float32),
        batches=Batches(
            np.zeros((5, 3, 1), int), taken[..., None], np.append(STEPS, 0), tokens, tokens
        ),
        rate=np.float32(1),
        round=np.int32(0),
    )


def close(spec="none", cohort=4):
    """Token costs 2 + rank; client k computes 10 (k + 1) a second; 100 bytes down, 50 up."""
    speed = 10.0 * np.arange(1, 5)
    devices = Devices(speed, np.full(4, 100.0), np.full(4, 50.0), np.full(4, 1e9), np.ones(4))
    clock = Clock(devices, Work(2.0, 1.0, 0.0, 0.0), deadline(spec), cohort)
    return clock.close(plan(), np.full(4, 100), np.full(4, 50))


# Seconds of a step: client 2: 10 * 3 / 30 = 1, client 0: 10 * 3 / 10 = 3, client 1: 50 / 20 = 2.5;
# with a second each to receive and to send they finish after 5, 8 and 9.5 seconds.


def test_round_time_is_that_of_its_slowest_client():
    after, timing = close()
    assert timing.total.tolist() == [5.0, 8.0, 9.5, 1.0]
    assert timing.seconds == 9.5 and timing.late == timing.surplus == []
    np.testing.assert_array_equal(after.weight, plan().weight)
    np.testing.assert_array_equal(after.batches.steps, plan().batches.steps)


def test_late_clients_are_dropped_at_the_deadline():
    after, timing = close("after(seconds=8)")
    assert timing.late == [1] and timing.seconds == 8
    assert after.weight.tolist() == [5, 5, 0, 0, 0]
    assert after.batches.steps.tolist() == [3, 2, 0, 0, 0]
    assert not after.batches.valid[2].any()
    assert timing.upload.tolist() == [1, 1, 0, 0]
    assert timing.compute[2] == 7, "it works until the server closes the round"


@pytest.mark.parametrize(("seconds", "steps"), [(7.4, 2), (4.5, 1), (4.49, 0), (9.5, 3)])
def test_partial_clients_send_the_steps_that_fit(seconds, steps):
    """With the last step that would end in time, sending included; without any it sends nothing."""
    after, timing = close(f"after(seconds={seconds}, late='partial')")
    assert after.batches.steps[2] == steps and (after.weight[2] > 0) == (steps > 0)
    assert (1 in timing.late) == (steps < 3)
    assert timing.seconds == seconds


def test_round_ends_when_a_full_cohort_has_answered():
    after, timing = close("first(over=2)", cohort=2)
    assert timing.seconds == 8 and timing.surplus == [1] and timing.late == []
    assert after.weight.tolist() == [5, 5, 0, 0, 0]
    assert timing.upload.tolist() == [1, 1, 0, 0]


def test_a_full_cohort_closes_a_round_before_its_deadline():
    _, timing = close("after(seconds=100, over=2.0)", cohort=2)
    assert timing.seconds == 8
    _, timing = close("after(seconds=100)", cohort=4)
    assert timing.seconds == 100, "the server waits for the one that has dropped out"


def test_round_without_answers_in_time_lasts_until_its_deadline():
    after, timing = close("after(seconds=1)")
    assert not after.weight.any() and timing.seconds == 1 and timing.late == [0, 1, 2]


def test_over_selection_draws_an_exact_number_of_clients():
    assert [deadline(f"first(over={x})").drawn(10, 50) for x in (1, 1.1, 1.3, 1.25)] == [
        10, 11, 13, 13,
    ]  # fmt: skip
    assert deadline("first(over=9)").drawn(10, 50) == 50


def test_device_classes_have_exact_shares_and_depend_on_the_seed():
    mix = profiles("classes(names=['jetson-nano', 'server-t4'], shares=[0.7, 0.3], efficiency=0.5)")
    devices = mix(10, 0)
    slow = 0.5 * DEVICE_CLASSES["jetson-nano"].peak
    assert np.sum(devices.flops == slow) == 7
    np.testing.assert_array_equal(devices.flops, mix(10, 0).flops)
    assert any(np.any(devices.flops != mix(10, seed).flops) for seed in (1, 2))
    assert all(
        c.source and min(c.peak, c.memory, c.up, c.down) > 0 for c in DEVICE_CLASSES.values()
    )


def test_device_profiles_are_read_from_csv_and_fedscale_files(tmp_path):
    rows = ["flops,down,up,memory,availability", "1e9,100,50,1e9,1", "2e9,200,100,2e9,0.5"]
    (tmp_path / "a.csv").write_text("\n".join(rows))
    devices = profiles(f"file(path={str(tmp_path / 'a.csv')!r})")(2, 7)
    assert devices.flops.tolist() == [1e9, 2e9] and devices.availability.tolist() == [1, 0.5]
    many = profiles(f"file(path={str(tmp_path / 'a.csv')!r})")(40, 7)
    assert set(many.up.tolist()) == {50.0, 100.0}
    # FedScale: a prediction of 0.6e9 operations takes 100 ms, 8000 kbit/s are 1e6 bytes/s.
    (tmp_path / "b.json").write_text(
        json.dumps({"1": {"computation": 100.0, "communication": 8000.0}})
    )
    one = profiles(f"file(path={str(tmp_path / 'b.json')!r}, inference_flops=6e8)")(1, 0)
    assert [float(x[0]) for x in one] == pytest.approx([6e9, 1e6, 1e6, np.inf, 1.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flops,down\n1,2", "have no up"),
        ("flops,down,up\n1,2,x", "hold up 'x', which is no number"),
        ("flops,down,up\n0,2,3", "need values above 0"),
        ("flops,down,up,availability\n1,2,3,1.5", "an availability of at most 1"),
        ("flops,down,up\nnan,2,3", "need values above 0"),
        ("computation,communication\n1,2", "give inference_flops"),
        ("flops,down,up\n", "are empty"),
        ("", "are empty"),
    ],
)
def test_invalid_profile_files_are_refused_in_one_sentence(text, words, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        profiles(f"file(path={str(tmp_path / 'a.csv')!r})")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "spec", "words"),
    [
        (profiles, "classes(names=['jetson'])", "did you mean 'jetson-nano'"),
        (profiles, "classes(names=[])", "as many non-negative shares as names"),
        (profiles, "classes(names=['server-t4'], shares=[1, 2])", "as many non-negative shares"),
        (profiles, "classes(names=['server-t4'], efficiency=0)", "efficiency and availability"),
        (profiles, "file(path='/nowhere.csv')", "cannot be read"),
        (deadline, "after(seconds=0)", "needs seconds above 0"),
        (deadline, "after(seconds=1, over=0.5)", "needs over from 1 to 100"),
        (deadline, "after(seconds=1, late='wait')", "late is one of 'drop', 'partial'"),
        (deadline, "first(over=1e999)", "needs over from 1 to 100"),
    ],
)
def test_invalid_deadlines_and_profiles_are_refused(make, spec, words):
    with pytest.raises(InputError) as caught:
        make(spec)
    assert words in str(caught.value)

"""Run what has no result yet; see `experiments.robustness.attacks`."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

import fedjax_lora as fl
from experiments.examples.own_model import NET, accuracy, digits, loss_fn, pretrain
from experiments.robustness.attacks import (
    ATTACKS,
    DEFENCES,
    METHODS,
    RESULTS,
    SEEDS,
    SHARE,
    SMALL_ATTACKS,
    SMALL_DEFENCES,
    SMALL_METHODS,
)
from experiments.tools import json_lines
from fedjax_lora import methods
from fedjax_lora.federated import transforms
from fedjax_lora.federated.attacks import Attack
from fedjax_lora.federated.faults import attacks_of, make_faults

CLIENTS, COHORT, STEPS, BATCH, RANK = 20, 10, 16, 16, 8
RANKS = np.resize([1, 2, 4, 8], CLIENTS)


class Case(NamedTuple):
    """One run."""

    method: str
    attack: str
    defence: str
    seed: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.method}, {self.attack}, {self.defence}, seed {self.seed}"


class Problem(NamedTuple):
    """The data and the base model."""

    base: Any
    train: dict[str, np.ndarray]  # the second half has flipped labels
    test: dict[str, np.ndarray]


def cases(*, small: bool) -> Iterator[Case]:
    """Yield the cases that are possible, seed by seed."""
    for seed in SEEDS[:1] if small else SEEDS:
        for method in SMALL_METHODS if small else METHODS:
            for attack in SMALL_ATTACKS if small else ATTACKS:
                for defence in SMALL_DEFENCES if small else DEFENCES:
                    case = Case(method, attack, defence, seed)
                    if is_possible(case):
                        yield case


def is_possible(case: Case) -> bool:
    """Whether a defence goes with a method; the library refuses the others."""
    if "geometric_median" in DEFENCES[case.defence]:
        return case.method != "fed_plora"  # counts all clients alike
    return case.defence not in ("median", "trimmed_mean") or case.method not in ("hlora", "flora")


def problem(*, steps: int = 200) -> Problem:
    """Pretrain the base on upright digits, and make the labels that attackers train on."""
    (upright, _), (train, test) = digits(False), digits(True)
    both = {
        "image": np.concatenate([train["image"]] * 2),
        "label": np.concatenate([train["label"], 9 - train["label"]]),
    }
    return Problem(pretrain(upright, steps=steps), both, test)


def play(case: Case, given: Problem, *, rounds: int = 20) -> dict[str, Any]:
    """Run a case; returns its record."""
    rule = methods.make(case.method, fl.lora.make_spec(given.base, targets="layers_", rank=RANK))
    attacks, attackers = attack_of(case)
    step = fl.federated.make_round(
        rule,
        fl.federated.local_training(
            NET, loss_fn, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
        ),
        updates=transforms.make_transforms(DEFENCES[case.defence], rule),
        attacks=attacks,
    )
    parts = partition(given, case)
    state = fl.federated.init(rule, given.base, jax.random.key(case.seed), num_clients=CLIENTS)
    rng, seconds = np.random.default_rng([case.seed, 1]), []
    counts = {"found": 0, "attacks": 0, "false_alarms": 0, "honest": 0}
    for t in range(rounds):
        ids = rng.choice(CLIENTS, size=COHORT, replace=False)
        rows = np.stack([rng.choice(parts[i], (STEPS, BATCH)) for i in ids])
        mine = attackers[ids]
        cohort = fl.federated.cohort(
            ids,
            RANKS[ids],
            [len(parts[i]) for i in ids],
            rows,
            round=t,
            data=given.train,
            attackers=[mine] * len(attacks),
        )
        began = time.perf_counter()
        state, metrics = step(given.base, state, cohort)
        rejected = np.asarray(metrics.rejected)
        seconds.append(time.perf_counter() - began)
        counts["found"] += int(np.sum(rejected & mine))
        counts["attacks"] += int(mine.sum())
        counts["false_alarms"] += int(np.sum(rejected & ~mine))
        counts["honest"] += int(np.sum(~mine))
    score = accuracy(fl.federated.global_params(rule, given.base, state), given.test)
    times = {"round_ms": 1e3 * float(np.median(seconds[1:]))}
    return {"name": case.name, **case._asdict(), "accuracy": score, **counts, **times}


def attack_of(case: Case) -> tuple[tuple[Attack, ...], np.ndarray]:
    """Return what attackers send, and who they are, ``bool[N]``: the same for every attack."""
    text = ATTACKS[case.attack]
    named = f"free_rider(share={SHARE if text else 0.0})"
    attackers = attacks_of(make_faults([named]))[0].attackers(RANKS, (case.seed, 0))
    return attacks_of(make_faults([text] if text and "(" in text else [])), attackers


def partition(given: Problem, case: Case) -> list[np.ndarray]:
    """Return the rows of each client; attackers that flip labels have those of the second half."""
    own = len(given.train["label"]) // 2
    parts = fl.data.partition(
        "dirichlet(alpha=1.0)", given.train["label"][:own], clients=CLIENTS, seed=case.seed
    ).indices
    flipped = attack_of(case)[1] & (case.attack == "label flip")
    return [rows + own * flips for rows, flips in zip(parts, flipped, strict=True)]


def main(*, small: bool = False) -> None:
    """Run the cases that have no result yet.

    Args:
      small: only some of the methods, attacks and defences, and one seed.
    """
    given, done = problem(), json_lines.by_name(RESULTS)
    for case in cases(small=small):
        if case.name not in done:
            record = play(case, given)
            json_lines.append(RESULTS, record)
            print(f"{case.name}: {record['accuracy']:.3f}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)

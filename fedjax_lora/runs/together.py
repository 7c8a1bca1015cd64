"""Run configs side by side that differ in seeds and learning rates alone: one program for all.

A small run does not fill a device. Several that share a compiled round are then trained at once,
see `fedjax_lora.federated.CompiledRound.together`; each has its own examples, partition, cohorts,
ranks and scores, and ends as it would alone, but for the order of sums.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_lora import data
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.federated.together import joined, shifted
from fedjax_lora.runs.build import build
from fedjax_lora.runs.checkpoints import Progress
from fedjax_lora.runs.compilation import CompiledFunctions
from fedjax_lora.runs.compilation import programs as new_programs
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.fairness import client_scores
from fedjax_lora.runs.loading import Assets
from fedjax_lora.runs.outputs import Result, finish, make_result
from fedjax_lora.runs.prepared import Run
from fedjax_lora.runs.run import Clock, begin_round, end_round, warn_of_few_owners
from fedjax_lora.runs.run import run as run_alone

OnRound = Callable[[RunConfig, Record], object]
"""Called with a config and the numbers of its round."""


class Together:
    """Runs configs in groups; a group runs when the first of its results is asked for."""

    def __init__(
        self,
        configs: Iterable[RunConfig],
        *,
        most: int,
        assets: Callable[[RunConfig], Assets],
        programs: CompiledFunctions | None = None,
        on_round: OnRound = lambda config, record: None,
    ) -> None:
        """Group configs that differ in seed, partition seed and learning rate alone.

        Args:
          configs: distinct configs.
          most: runs that are trained at once.
          assets: loads data and model of a config, see `fedjax_lora.runs.sweep.shared_assets`.
          programs: compiled functions to share with other runs.
          on_round: called with each round's numbers.

        Raises:
          InputError: ``most`` is below 1.
        """
        if most < 1:
            raise InputError(f"Runs are trained together by at least 1, got {most}.")
        self._assets, self._on_round = assets, on_round
        self._programs = programs or new_programs()
        self._results: dict[RunConfig, Result] = {}
        alike: dict[RunConfig, list[RunConfig]] = {}
        for config in configs:
            alike.setdefault(_without_own(config), []).append(config)
        self._groups = {
            config: tuple(group[at : at + most])
            for group in alike.values()
            for at in range(0, len(group), most)
            for config in group[at : at + most]
        }

    def result(self, config: RunConfig) -> Result:
        """Return the result of a config.

        Raises:
          InputError: as `fedjax_lora.run`, of any config of its group.
        """
        if config not in self._results:
            group = self._groups.get(config, (config,))
            results = run_together(
                group,
                assets=[self._assets(one) for one in group],
                programs=self._programs,
                on_round=self._on_round,
            )
            self._results |= dict(zip(group, results, strict=True))
        return self._results.pop(config)


def run_together(
    configs: Sequence[RunConfig],
    *,
    assets: Sequence[Assets],
    programs: CompiledFunctions | None = None,
    on_round: OnRound = lambda config, record: None,
) -> list[Result]:
    """Run configs to their ends, those that can share a program side by side.

    That takes equal compiled rounds (see `fedjax_lora.runs.compilation.RoundSpec`), bases, cohorts
    and numbers of rounds, mode ``vmap``, and no stopping rule; the others run by themselves.
    Nothing is written.

    Args:
      configs: the runs.
      assets: data and model of each; a base that runs share is loaded once, see
        `fedjax_lora.runs.sweep.shared_assets`.
      programs: compiled functions to share with other runs.
      on_round: called with each round's numbers.

    Returns:
      The results, in the order of the configs. Seconds are a run's share of its group's.

    Raises:
      InputError: anything wrong with the input, in one sentence.
    """
    shared = programs or new_programs()
    if len(configs) == 1:
        return [_alone(configs[0], assets[0], shared, on_round)]
    built = _build(configs, assets, shared)
    longest = max((one.federation.steps for one in built), default=0)
    if any(one.federation.steps < longest for one in built):  # plans of one shape
        shared = shared._replace(least_steps=longest)
        built = _build(configs, assets, shared)
    results: dict[int, Result] = {}
    for group in _groups(built):
        if len(group) > 1:
            played = _play([built[n] for n in group], on_round)
        else:
            played = [_alone(configs[group[0]], assets[group[0]], shared, on_round)]
        results |= dict(zip(group, played, strict=True))
    return [results[n] for n in range(len(configs))]


def _groups(runs: Sequence[Run]) -> list[list[int]]:
    """Return the numbers of the runs that are trained at once."""
    groups: dict[Hashable, list[int]] = {}
    for n, one in enumerate(runs):
        groups.setdefault(_program_of(one) if _can_join(one) else n, []).append(n)
    return list(groups.values())


def _alone(
    config: RunConfig, assets: Assets, shared: CompiledFunctions, on_round: OnRound
) -> Result:
    report = functools.partial(on_round, config)
    return run_alone(config, assets=assets, programs=shared, on_round=report)


def _build(
    configs: Sequence[RunConfig], assets: Sequence[Assets], shared: CompiledFunctions
) -> list[Run]:
    """Build the runs; those with the same model share their frozen base."""
    built, bases = [], {}
    for config, its in zip(configs, assets, strict=True):
        frozen = {name: part for name, part in its.model.params.items() if name != "head"}
        key = (config.execution, *map(id, jax.tree.leaves(frozen)))
        one = build(config, its, shared, together=len(configs), base=bases.get(key))
        bases[key] = one.inputs.base
        built.append(one)
    return built


def _without_own(config: RunConfig) -> RunConfig:
    """Return the config without what runs of one group may differ in."""
    return dataclasses.replace(
        config,
        seed=0,
        federation=dataclasses.replace(config.federation, partition_seed=None),
        local=dataclasses.replace(config.local, learning_rate=1.0),
    )


def _can_join(run: Run) -> bool:
    """Return whether a run may share its rounds with others."""
    config = run.config
    return run.step.several is not None and config.federation.stop == "never"


def _program_of(run: Run) -> Hashable:
    """Return what runs that are trained at once have in common."""
    return (
        run.round_spec,
        run.rounds,
        run.config.federation.clients,
        run.config.execution.eval_every,
        (run.federation.padded, run.federation.steps),
        id(run.inputs.base),
    )


def _play(runs: Sequence[Run], on_round: OnRound) -> list[Result]:
    """Play all rounds of runs that share a program."""
    clock = Clock()
    progress = [run.begin() for run in runs]
    references = [run.reference(p.state) for run, p in zip(runs, progress, strict=True)]
    histories = _play_rounds(runs, progress, on_round)
    times = {name: value / len(runs) for name, value in clock.times().items()}
    ends = zip(runs, progress, histories, references, strict=True)
    return [_result(*end, times, len(runs)) for end in ends]


def _play_rounds(
    runs: Sequence[Run], progress: list[Progress], on_round: OnRound
) -> list[list[Record]]:
    """Play the rounds, which change ``progress``; returns the history of each run."""
    histories: list[list[Record]] = [[] for _ in runs]
    (rows, offsets), keys = _common_rows(runs), [run.key for run in runs]
    base, step = runs[0].inputs.base, runs[0].step
    for _ in range(runs[0].rounds):
        began = time.perf_counter()
        begun = [begin_round(run, p) for run, p in zip(runs, progress, strict=True)]
        plans = [shifted(b.plan, offset) for b, offset in zip(begun, offsets, strict=True)]
        after, metrics = step.together(base, rows, [b.state for b in begun], plans, keys)
        jax.block_until_ready(metrics)
        seconds = (time.perf_counter() - began) / len(runs)
        for n, trained in enumerate(zip(runs, begun, after, metrics, strict=True)):
            progress[n], record, times = end_round(*trained, seconds)
            warn_of_few_owners(record, histories[n])
            histories[n].append(record)
            on_round(runs[n].config, record | times)
    return histories


def _result(
    run: Run,
    progress: Progress,
    history: History,
    reference: Record,
    times: dict[str, float],
    together: int,
) -> Result:
    found = reference | client_scores(run, progress, history[-1])
    summary = finish(run, progress, history, found, times, None)
    return make_result(run, progress, history, summary | {"runs_together": together}, None)


def _common_rows(runs: Sequence[Run]) -> tuple[data.Tokens, list[int]]:
    """Return the training examples of all runs, on the device, and where those of each begin."""
    own = [run.setup.training.tokens for run in runs]
    if all(tokens.ids is own[0].ids for tokens in own):
        return runs[0].inputs.train, [0] * len(runs)
    width = max(tokens.ids.shape[1] for tokens in own)
    return joined([_widened(tokens, width) for tokens in own])


def _widened(tokens: data.Tokens, width: int) -> data.Tokens:
    """Return the tokens with padding up to a width; lengths say what is padding."""

    def wide(x: Any) -> np.ndarray:
        return np.pad(np.asarray(x), ((0, 0), (0, width - x.shape[1])))

    return tokens._replace(ids=wide(tokens.ids), types=wide(tokens.types))

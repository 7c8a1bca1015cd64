"""The server: a run whose cohorts are trained by sites.

`serve` plays a run as `fedjax_lora.runs.run` does, with its folder, checkpoints and records; what
differs is who trains. It knows no site's rows, only how many there are.
"""

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lora import lora, methods, models
from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.data import Split, Tokens
from fedjax_lora.deploy import kernels
from fedjax_lora.deploy.exchange import Exchange, Send
from fedjax_lora.deploy.message import (
    Message,
    Refused,
    check_meta,
    from_bytes,
    number,
    text,
    to_bytes,
)
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.deploy.wire import Rules
from fedjax_lora.federated import Execution
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods import Method
from fedjax_lora.models import Pretrained
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.folder import read_lines
from fedjax_lora.runs.loading import Assets, load_assets
from fedjax_lora.runs.outputs import Result
from fedjax_lora.runs.run import run

log = logging.getLogger(__name__)

REGISTER = "register.json"
"""File of how many examples each site has, in the run folder."""

MESSAGES = "messages.jsonl"
"""File of the sizes of messages and of who has answered, in the run folder."""

Ask = Callable[[bytes], Mapping[int, bytes]]
"""Sends all sites one message and returns their answers, by client id."""


def adapter_spec(config: RunConfig, model: Pretrained, rank: int) -> LoraSpec:
    """The adapted layers of a federation, stored at rank `R`; the same on every machine."""
    options = config.lora
    return lora.make_spec(
        {name: part for name, part in model.params.items() if name != "head"},
        targets=options.targets,
        alpha=options.alpha,
        scale=options.scale,
        layers=options.lora_layers,
        rank=rank,
    )


def make_rules(spec: FederationSpec, model: Pretrained) -> tuple[Method, Rules]:
    """The method of a federation and what its messages hold."""
    where = adapter_spec(spec.config, model, spec.rank)
    method = methods.make(spec.config.federation.method, where)
    averages = spec.config.federation.heads == "average"
    rules = Rules(
        where,
        model.params["head"] if averages else {},
        method.sends,
        selects=method.select is not None,
        trims=method.trim is not None,
        adds=bool(kernels.first_kernels(method, models.frozen_base(model))),
        encoding=spec.encoding,  # pyright: ignore[reportArgumentType]
    )
    return method, rules


def run_config(
    spec: FederationSpec, task: str = "", ranks: Sequence[int] | None = None
) -> RunConfig:
    """The config of the run that a federation is: its sites are natural clients.

    Args:
      spec: the federation.
      task: with the server's own file; by default as in the spec, without one.
      ranks: those that sites have chosen; by default as in the spec.
    """
    config, count = spec.config, len(spec.sites)
    federation = dataclasses.replace(
        config.federation,
        clients=count,
        cohort=min(config.federation.cohort, count),
        partition="natural",
        min_examples=1,
        ranks=f"table(ranks={list(ranks or spec.ranks)}, most={spec.rank})",
    )
    data = dataclasses.replace(config.data, task=task or config.data.task)
    return dataclasses.replace(config, federation=federation, data=data)


def serve(
    spec: FederationSpec,
    ask: Ask,
    send: Send,
    *,
    task: str,
    out: pathlib.Path,
    resume: bool = False,
    overwrite: bool = False,
    on_round: Callable[[Record], object] = lambda record: None,
) -> Result:
    """Play a federation to its end.

    Args:
      spec: the federation.
      ask: asks all sites about themselves, once.
      send: carries the messages of a round.
      task: the federation's, with the server's own file of test examples.
      out: the run folder.
      resume: continue the run in ``out``.
      overwrite: replace it.
      on_round: called with each round's record.

    Raises:
      InputError: a method that cannot be deployed, a site that does not answer at the beginning or
        has another base, too few answers in a round, or as for `fedjax_lora.runs.run`.
    """
    loaded = load_assets(run_config(spec, task), classes=spec.classes)
    _, rules = make_rules(spec, loaded.model)
    known = _known(out) if resume else {}
    sites, held = register(spec, loaded.model.fingerprint, ask, known)
    config = run_config(spec, task, [sites[k].rank for k in range(len(spec.sites))])
    exchange = Exchange(rules, spec.digest, send, least=spec.least, names=spec.sites, held=held)
    began = time.perf_counter()

    def record(values: Record) -> None:
        nonlocal began
        _append(out / MESSAGES, _messages(exchange, values, time.perf_counter() - began))
        if not (out / REGISTER).exists():
            _write(out / REGISTER, {str(k): one._asdict() for k, one in sites.items()})
        began = time.perf_counter()
        on_round(values)

    return run(
        config,
        out=out,
        resume=resume,
        overwrite=overwrite,
        assets=stand_in(loaded, spec, [sites[k].examples for k in range(len(spec.sites))]),
        execution=Execution(mode="remote", exchange=exchange, report=exchange.report),
        on_round=record,
    )


class Registered(NamedTuple):
    """What a site says about itself before a run, which stays."""

    examples: int
    rank: int


class Register(NamedTuple):
    """What all sites say about themselves before a run, by client id."""

    sites: dict[int, Registered]
    kernels: dict[int, str]  # names of the base kernels that they hold, where a method changes them


def register(
    spec: FederationSpec, base: str, ask: Ask, known: Mapping[int, Registered]
) -> Register:
    """Ask the sites about themselves.

    Args:
      spec: the federation.
      base: fingerprint of the server's base.
      ask: asks all sites.
      known: what sites have said at the beginning of the run, if it is resumed.

    Raises:
      InputError: a site that has never answered, or that says something else than before.
    """
    question = Message({}, {"digest": spec.digest, "base": base})
    sites, held = dict(known), {}
    for id, answer in ask(to_bytes(question)).items():
        try:
            message = from_bytes(answer, most=1 << 16)
            values = {"examples", "rank", "kernels"}
            check_meta(message, {"digest": spec.digest, "client": id}, values)
            examples = int(number(message, "examples", 1, 2**53, whole=True))
            rank = int(number(message, "rank", 1, spec.rank, whole=True))
            held[id] = text(message, "kernels")
        except Refused as reason:
            raise InputError(f"Site {spec.sites[id]!r} cannot take part: {reason}") from reason
        one = Registered(min(examples, spec.most_examples), rank)
        if sites.setdefault(id, one) != one:
            raise InputError(
                f"Site {spec.sites[id]!r} has {one.examples} examples and rank {one.rank}, and had "
                f"{sites[id].examples} and {sites[id].rank} when the run began; give it the same, "
                "or begin a new run."
            )
    if missing := [name for k, name in enumerate(spec.sites) if k not in sites]:
        raise InputError(
            f"Site {missing[0]!r} has not said how many examples it has; start it with "
            "fedjax-lora client, then the run again."
        )
    return Register(sites, held)


def stand_in(loaded: Assets, spec: FederationSpec, examples: Sequence[int]) -> Assets:
    """The server's assets, with as many empty training rows as the sites have examples."""
    group = np.repeat(np.arange(len(spec.sites)), examples)
    zeros = np.zeros(len(group), np.int32)
    split = Split([""] * len(group), None, zeros, group.astype(np.int32))
    one = np.zeros((len(group), 1), np.int32)
    tokens = Tokens(one, one, np.ones(len(group), np.int32), zeros)
    task = loaded.task._replace(train=split, overlap=0, skipped=0, groups=spec.sites)
    return loaded._replace(task=task, train=tokens)


def _messages(exchange: Exchange, record: Record, seconds: float) -> Record:
    """What is written about the messages of a round."""
    sites = {
        exchange.name(id): sizes._asdict()
        | ({"refused": exchange.refused[id]} if id in exchange.refused else {})
        for id, sizes in exchange.sizes.items()
    }
    return {"round": record["round"], "seconds": round(seconds, 3), "sites": sites}


def _known(out: pathlib.Path) -> dict[int, Registered]:
    """What sites have said about themselves when the run in a folder began."""
    try:
        values = json.loads((out / REGISTER).read_text(encoding="utf-8"))
        return {int(k): Registered(**one) for k, one in values.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(path: pathlib.Path, values: Any) -> None:
    atomic_io.write(path, json.dumps(values) + "\n")


def _append(path: pathlib.Path, values: Record) -> None:
    """Add a round's line; a resumed run repeats rounds after its checkpoint."""
    earlier = [line for line in read_lines(path) if line["round"] < values["round"]]
    lines = [json.dumps(line) + "\n" for line in [*earlier, values]]
    atomic_io.write(path, "".join(lines))

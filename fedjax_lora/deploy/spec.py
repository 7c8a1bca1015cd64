"""What all machines of a federation agree on: a frozen record, its file and its digest."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lora import methods
from fedjax_lora.core import atomic_io, registry
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.types import Adapter, Kernels
from fedjax_lora.deploy import tasks
from fedjax_lora.deploy.encodings import ENCODINGS
from fedjax_lora.federated import ranks
from fedjax_lora.lora import LoraSpec, LoraTarget
from fedjax_lora.methods.base import Cohort, client_kernels
from fedjax_lora.runs import config as configs
from fedjax_lora.runs.config import RunConfig

FILE = "federation.json"
"""Name of the spec's file, in the folder of the federation and in each kit."""

VERSION = 2

MOST_EXAMPLES = 10_000_000
"""Examples that a site may claim, unless the spec says less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FederationSpec:
    """A federation of real machines.

    Attributes:
      config: method, model, local training and rounds, as of a simulated run. Its task names no
        files: the server and each site have their own, see `fedjax_lora.deploy.tasks`.
      classes: names of the classes, in the order of their numbers; none of a language task.
      sites: names of the sites; a site's place is its client id.
      ranks: the rank of each site, unless it chooses another, up to the largest of these.
      least: a round needs so many answers.
      deadline: seconds that sites have for a round.
      most_examples: a site that claims more examples counts as one with so many.

    Raises:
      InputError: values that do not go together, or a choice that only a simulation has.
    """

    config: RunConfig
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    ranks: tuple[int, ...]
    least: int = 1
    deadline: int = 600
    most_examples: int = MOST_EXAMPLES

    def __post_init__(self) -> None:
        check_fields(self)
        _check_classes(self.config.data.task, self.classes)
        if len(self.ranks) != len(self.sites):
            raise InputError(
                f"A federation of {len(self.sites)} sites needs a rank for each, got "
                f"{list(self.ranks)}."
            )
        if min(self.ranks, default=0) < 1:
            raise InputError(f"Ranks of sites must be at least 1, got {list(self.ranks)}.")
        _check_sites(self.sites)
        if not 1 <= self.least <= len(self.sites):
            raise InputError(
                f"A round needs 1 to {len(self.sites)} answers, not {self.least}; change least."
            )
        if self.deadline < 1 or self.most_examples < 1:
            raise InputError("deadline and most_examples of a federation must be at least 1.")
        _check_config(self.config)
        check_method(self.config.federation.method, self.ranks)

    @property
    def digest(self) -> str:
        """Hex sha256 digest of everything in the spec."""
        values = json.dumps(self.to_record(), sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()

    @property
    def is_language(self) -> bool:
        """Whether the model generates text."""
        return tasks.is_language(self.config.data.task)

    @property
    def rank(self) -> int:
        """The stored rank `R`."""
        return max(self.ranks)

    @property
    def encoding(self) -> str:
        """How sites write their numbers: the wire transform of the config, or float32."""
        given = [name for name in self.config.federation.updates if name in ENCODINGS]
        return given[0] if given else "float32"

    def to_record(self) -> dict[str, object]:
        """The spec as JSON values."""
        values = dataclasses.asdict(dataclasses.replace(self)) | {
            "config": configs.to_dict(self.config),
            "version": VERSION,
        }
        return json.loads(json.dumps(values))

    def write(self, folder: pathlib.Path) -> None:
        """Write the spec's file."""
        with atomic_io.reporting_write_errors(folder):
            atomic_io.write(folder / FILE, json.dumps(self.to_record(), indent=2) + "\n")


def from_record(values: Mapping[str, object]) -> FederationSpec:
    """Build a spec from its JSON values.

    Raises:
      InputError: values that are not a spec's.
    """
    values = dict(values)
    if values.pop("version", None) != VERSION:
        raise InputError("This federation was made by another version of fedjax-lora; make it new.")
    try:
        config = configs.from_dict(values.pop("config"))  # pyright: ignore[reportArgumentType]
        lists = {n: tuple(values.pop(n)) for n in ("classes", "sites", "ranks")}  # pyright: ignore
        return FederationSpec(config=config, **lists, **values)  # pyright: ignore
    except (KeyError, TypeError) as error:
        raise InputError(f"{FILE} holds no federation ({error}); make it new.") from error


def read(folder: pathlib.Path) -> FederationSpec:
    """Read the spec in a folder.

    Raises:
      InputError: there is none.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"Folder {folder} holds no federation; make one with fedjax-lora deploy new."
        ) from error
    return from_record(values)


def site_ranks(config: RunConfig, sites: int) -> tuple[int, ...]:
    """The ranks that a config allocates to so many sites.

    Raises:
      InputError: ranks that change, or that depend on the model or on how data were divided.
    """
    given = config.federation.ranks
    if given.startswith(("budget", "by_quality", "by_device")):
        raise InputError(f"Ranks {given!r} need more than the number of sites; list them: table.")
    population = ranks.Population(sites, config.seed, None, 1)
    allocation = ranks.checked(
        registry.build(given, ranks.ALLOCATIONS, "rank allocation", population=population), given
    )
    if allocation.schedule is not None:
        raise InputError(f"Ranks of real sites do not change yet, as {given!r} would; list them.")
    return tuple(map(int, allocation.ranks))


def check_method(name: str, rank: Sequence[int]) -> None:
    """Refuse a method that messages cannot carry yet, by the reason; no model is needed for it.

    Args:
      name: the method with its options.
      rank: ranks of the sites.

    Raises:
      InputError: the method is not supported, or not with these ranks.
    """
    layer = LoraSpec(targets=(LoraTarget("layer", 2, 2, None),), rank=2, alpha=2.0)
    method = methods.make(name, layer)
    reason = ""
    if changes_kernels_unsaid(method):
        reason = "it changes the base and does not say by which products (AggregateResult.added)"
    elif method.keeps == "client":
        reason = "a part of its adapter stays on its client between rounds"
    if reason:
        raise InputError(
            f"Method {method.name!r} cannot be deployed yet: {reason}; choose another, such as "
            "'hlora'."
        )
    method.check(np.array(rank))


def changes_kernels_unsaid(method: methods.Method) -> bool:
    """Whether a method changes the clients' kernels without saying what it adds to them."""

    def traced() -> tuple[Kernels, Adapter | tuple[()]]:
        zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)  # noqa: E731
        targets, one = method.spec.targets, jnp.ones(1)
        kernels = {t.path: jnp.zeros((*t.stack, t.inputs, t.outputs)) for t in targets}
        server = method.init(zeros(method.spec.shapes()), kernels)
        whole = jnp.ones(1, jnp.int32)
        cohort = Cohort(whole, whole, one, one, jnp.zeros((), jnp.int32), jax.random.key(0))
        clients = method.init_clients(1)
        start = method.broadcast(server, clients, cohort)
        result = method.aggregate(server, clients, cohort, start, start.adapter)
        return client_kernels(method, server), result.added

    kernels, added = jax.eval_shape(traced)
    return bool(kernels) and set(kernels) != set(added or ())


def _check_classes(task: str, classes: Sequence[str]) -> None:
    """Refuse classes that do not go with the task, and a task that tells where its files are.

    Raises:
      InputError: they do not.
    """
    if tasks.shared(task) != task:
        raise InputError(
            f"A federation's task names no files or columns, got {task!r}; write it as "
            f"{tasks.shared(task)!r}."
        )
    if tasks.is_language(task):
        if classes:
            raise InputError("A language task has no classes; leave them out.")
    elif len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"A federation needs two classes or more, got {list(classes)}.")


def _check_sites(sites: Sequence[str]) -> None:
    """Refuse names that are no file name everywhere, or are not distinct."""
    good = all(name.isascii() and name.replace("-", "").isalnum() for name in sites)
    if not sites or not good or len(set(sites)) < len(sites) or "server" in sites:
        raise InputError(f"Sites need distinct names of letters, digits and -, got {list(sites)}.")


def _check_config(config: RunConfig) -> None:
    """Refuse what only a simulation has.

    Raises:
      InputError: the config has such a choice.
    """
    fed = config.federation
    problems = {
        "faults": bool(fed.faults),
        "central_noise": any("central_noise" in update for update in fed.updates),
        "gaussian_noise(epsilon=...), only gaussian_noise(multiplier=...),": any(
            "epsilon" in update for update in fed.updates
        ),
        "device_profiles": fed.device_profiles != "none",
        "a simulated deadline (--deadline of a run)": fed.deadline != "none",
        "server_mode but 'synchronous'": fed.server_mode != "synchronous",
        "heads='local'": fed.heads == "local",
        "client_weights='tokens'": fed.client_weights != "examples",
        "validation_examples": config.data.validation_examples > 0,
        "a warm start (lora.adapter)": config.lora.adapter is not None,
        "sharded execution": config.execution.mode == "sharded",
        "lora_dropout or dropout": config.lora.lora_dropout > 0 or config.model.dropout != 0,
    }
    if found := [name for name, wrong in problems.items() if wrong]:
        raise InputError(f"A federation of real machines has no {found[0]} yet; leave it out.")

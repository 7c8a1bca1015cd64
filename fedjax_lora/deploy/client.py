"""A site as its owner sets it up: its own file, and what leaves it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fedjax_lora import data, federated, models
from fedjax_lora.core import atomic_io, trees
from fedjax_lora.core.errors import InputError
from fedjax_lora.core.json_values import Record
from fedjax_lora.core.records import check_fields
from fedjax_lora.core.types import Params
from fedjax_lora.data import Tokens
from fedjax_lora.data.batch_shapes import padded_shapes, row_buckets
from fedjax_lora.deploy import tasks
from fedjax_lora.deploy.encodings import ENCODINGS
from fedjax_lora.deploy.kernels import SiteKernels, first_kernels
from fedjax_lora.deploy.message import Message, check_meta, from_bytes, to_bytes
from fedjax_lora.deploy.server import make_rules
from fedjax_lora.deploy.site import Site
from fedjax_lora.deploy.spec import FederationSpec
from fedjax_lora.federated import optimizers, transforms
from fedjax_lora.federated.planning import LocalSteps
from fedjax_lora.lora import LoraSpec
from fedjax_lora.methods.base import FLOAT_BYTES
from fedjax_lora.runs.client_work import COPIES
from fedjax_lora.runs.compilation import training_inputs
from fedjax_lora.runs.loading import check_tokenizer, encode_split, load_base, num_labels

FILE = "site.json"
"""Name of the file with a site's own options, in its kit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """What a site's owner says.

    Attributes:
      name: of the site in the federation.
      train: file of its examples; it is read on this machine and nowhere else.
      columns: names of its columns, by what they are in `fedjax_lora.deploy.tasks.COLUMNS`.
      rank: that it chooses; None for what the federation says.
      memory: bytes that it has for training; it takes the largest rank that fits, see
        `rank_for_memory`.
      updates: transforms of what it sends, on top of the federation's.
    """

    name: str
    train: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rank: int | None = None
    memory: int | None = None
    updates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank is not None and self.memory is not None:
            raise InputError("A site's rank is given, or follows from memory; leave out one.")

    def write(self, folder: pathlib.Path) -> None:
        """Write the options' file."""
        values = dataclasses.asdict(self)
        with atomic_io.reporting_write_errors(folder):
            atomic_io.write(folder / FILE, json.dumps(values, indent=2) + "\n")


def read_options(folder: pathlib.Path) -> SiteOptions:
    """Read the options of a site from its kit.

    Raises:
      InputError: there are none.
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return SiteOptions(**(values | {"updates": tuple(values["updates"])}))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / FILE} holds no options of a site ({error}).") from error


class Client:
    """A site that answers: its model and rows are loaded once and stay.

    Attributes:
      spec: the federation.
      site: its half of a round.
      fingerprint: of its base.
    """

    def __init__(self, spec: FederationSpec, options: SiteOptions) -> None:
        """Load the model and the site's examples.

        Raises:
          InputError: the federation has no such site, or anything wrong with file or model.
        """
        if options.name not in spec.sites:
            raise InputError(
                f"The federation has no site {options.name!r}; its sites are "
                f"{', '.join(spec.sites)}."
            )
        config = spec.config
        task = data.load(
            tasks.with_file(config.data.task, options.train, options.columns),
            classes=spec.classes,
            date=config.data.chat_date,
        )
        model = load_base(config, num_labels=num_labels(task))
        check_tokenizer(model)
        tokens = encode_split(task, task.train, model, config.data.max_length)
        self.spec, self.options, self.fingerprint = spec, options, model.fingerprint
        self.examples = len(tokens.label)
        method, rules = make_rules(spec, model)
        self.rank = chosen_rank(spec, options, method.spec, model.params)
        base = models.frozen_base(model)
        self.site = Site(
            client=spec.sites.index(options.name),
            digest=spec.digest,
            rules=rules,
            work=jax.jit(federated.make_client_work(method, training(spec, model))),
            base=jax.device_put(base),
            data=jax.device_put(widened(tokens, config.data.max_length)),
            rows=np.arange(self.examples),
            local=local_steps(spec),
            head=jax.tree.map(np.asarray, model.params["head"]),
            kernels=SiteKernels(method.spec, first_kernels(method, base) if rules.adds else {}),
            updates=_own_updates(spec, options, method),
        )

    def register(self, data: bytes) -> bytes:
        """Answer the server's first question: how many examples there are.

        Raises:
          InputError: the server has another federation or another base.
        """
        message = from_bytes(data, most=1 << 16)
        check_meta(message, {"digest": self.spec.digest}, {"base"})
        if message.meta["base"] != self.fingerprint:
            raise InputError(
                f"Site {self.options.name!r} has another base than the server; give both the same "
                f"checkpoint of {self.spec.config.model.model}."
            )
        values = {"digest": self.spec.digest, "client": self.site.client}
        examples = min(self.examples, self.spec.most_examples)
        values |= {"examples": examples, "rank": self.rank, "kernels": self.site.kernels.version}
        return to_bytes(Message({}, values))

    def fit(self, data: bytes) -> bytes:
        """Answer a round's message; see `Site.fit`."""
        return self.site.fit(data)

    def leaves(self) -> Record:
        """What leaves this machine in a round, by name: shapes of arrays, and numbers."""
        rank, rules = self.rank, self.site.rules
        arrays = {}
        for target in rules.spec.targets:
            for factor, size in (("a", target.inputs), ("b", target.outputs)):
                if getattr(rules.sends, factor):
                    arrays[f"{target.path}.{factor}"] = [target.adapted * rank, size]
        arrays |= {
            f"head.{name}": [int(np.prod(np.shape(x)))] for name, x in _flat(rules.head).items()
        }
        numbers = [
            "number of examples (once)",
            "rank (once)",
            "mean training loss",
            "examples processed",
        ]
        return {"arrays": arrays, "encoding": rules.encoding, "numbers": numbers}


def describe(client: Client) -> list[str]:
    """What a site's owner is told before anything leaves: lines of text."""
    spec, leaves = client.spec, client.leaves()
    lines = [
        f"site {client.options.name}: {client.examples} examples in {client.options.train}, "
        f"rank {client.rank} of {spec.rank}, {spec.config.federation.method}",
        f"classes: {', '.join(spec.classes)}" if spec.classes else "task: texts to generate",
        f"base: {spec.config.model.model}, sha256 {client.fingerprint[:16]}",
        "these numbers leave this machine, and nothing else of the file:",
        *(f"  {number}" for number in leaves["numbers"]),
        f"and these arrays in each round, as {leaves['encoding']}:",
        *(f"  {name} {shape}" for name, shape in leaves["arrays"].items()),
    ]
    applied = [name for name in spec.config.federation.updates if name not in ENCODINGS]
    applied += client.options.updates
    lines.append(f"after: {', '.join(applied) or 'no clipping and no noise'}")
    return lines


def _flat(head: object) -> dict[str, object]:
    from fedjax_lora.core.trees import flat

    return flat(head)  # pyright: ignore[reportArgumentType]


def training(spec: FederationSpec, model: models.Pretrained) -> federated.LocalTraining:
    """The local training of a federation; step shapes come from ``max_length`` alone.

    A server does not know the lengths of the sites' texts. A simulation whose longest text has
    ``max_length`` tokens has the same shapes with ``step_shapes=1``.
    """
    config, local = spec.config, spec.config.local
    lengths = (config.data.max_length,)
    kind = "language" if spec.is_language else "classification"
    inputs = training_inputs(config, model.module, lengths, task_type=kind)
    return federated.LocalTraining(
        inputs.objective(),
        optimizers.optimizer(local.optimizer, clip=local.clip),
        shapes=padded_shapes(row_buckets(local.batch), lengths),
        prox=local.prox,
    )


def chosen_rank(
    spec: FederationSpec, options: SiteOptions, layers: LoraSpec, params: Params
) -> int:
    """The rank of a site.

    Args:
      spec: the federation.
      options: the site's own.
      layers: the adapted layers.
      params: base and head.

    Raises:
      InputError: a rank that the federation does not store, or memory for none.
    """
    if options.memory is not None:
        return rank_for_memory(options.memory, layers, params)
    rank = options.rank or spec.ranks[spec.sites.index(options.name)]
    if options.rank is not None and not 1 <= options.rank <= spec.rank:
        raise InputError(
            f"This federation stores rank {spec.rank}, and rank {options.rank} was asked for; give "
            f"a rank from 1 to {spec.rank}."
        )
    return rank


def rank_for_memory(memory: int, layers: LoraSpec, params: Params) -> int:
    """The largest rank whose training fits: base, and each trained number four times.

    These are its value, its gradient and Adam's two moments. Activations come on top of it.

    Args:
      memory: bytes.
      layers: the adapted layers, with the largest rank.
      params: base and head.

    Raises:
      InputError: not even rank 1 fits.
    """
    base = trees.size_bytes({name: part for name, part in params.items() if name != "head"})
    fixed = base + COPIES * trees.size_bytes(params["head"])
    component = COPIES * FLOAT_BYTES * layers.component_size
    if (rank := (memory - fixed) // component) < 1:
        raise InputError(
            f"Rank 1 needs {(fixed + component) / 1e9:.3g} GB besides activations, and memory is "
            f"{memory / 1e9:.3g} GB; give more, or a smaller model."
        )
    return min(rank, layers.rank)


def local_steps(spec: FederationSpec) -> LocalSteps:
    """How sites train on their examples."""
    local = spec.config.local
    return LocalSteps(
        batch=local.batch,
        epochs=local.epochs,
        max_steps=local.max_steps,
        by_length=local.group_by_length,
        seed=spec.config.seed,
    )


def widened(tokens: Tokens, length: int) -> Tokens:
    """The tokens with ids padded to a length; padding is never read."""
    more = length - tokens.ids.shape[1]
    return tokens._replace(
        ids=np.pad(tokens.ids, ((0, 0), (0, more))), types=np.pad(tokens.types, ((0, 0), (0, more)))
    )


def _own_updates(
    spec: FederationSpec, options: SiteOptions, method: object
) -> Sequence[transforms.UpdateTransform]:
    """The transforms that a site applies: the federation's, then its own.

    Raises:
      InputError: one of its own is not a client's.
    """
    given = [name for name in spec.config.federation.updates if name not in ENCODINGS]
    common = transforms.make_transforms(given, method)  # pyright: ignore[reportArgumentType]
    own = transforms.make_transforms(options.updates, method)  # pyright: ignore[reportArgumentType]
    if wrong := [n for n, x in zip(options.updates, own, strict=True) if x.stage != "client"]:
        raise InputError(
            f"A site cannot apply {wrong[0]!r} by itself; give clip(...) or gaussian_noise(...)."
        )
    return [update for update in (*common, *own) if update.stage == "client"]

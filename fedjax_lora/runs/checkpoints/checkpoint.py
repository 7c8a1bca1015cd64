"""One checkpoint: what a run carries from round to round, on disk and back.

A checkpoint of round 7 is the folder ``checkpoints/7`` of a run's folder: ``arrays/`` (Orbax),
``about.json`` (the history, what the run is, and the shape and type of every array) and
``SHA256SUMS`` (see `fedjax_lora.runs.checkpoints.checksums`). The frozen base is not in it, only
its fingerprint. The folder takes its name when all of it is written.
"""

import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_lora import federated
from fedjax_lora.core import atomic_io, tree_structure
from fedjax_lora.core.errors import raise_all
from fedjax_lora.federated import FederatedState
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.runs.checkpoints.checksums import verify, write_checksums

FOLDER = "checkpoints"
ABOUT, ARRAYS = "about.json", "arrays"

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Everything a run carries from one round to the next."""

    state: FederatedState
    rank: np.ndarray  # int32[N]
    logged_rank: np.ndarray  # int32[N], the ranks that the history tells last
    scores: ClientScores
    history: list[dict[str, Any]]  # one record per round, as in metrics.jsonl
    seconds: float = 0.0  # that the run has taken so far

    @property
    def round(self) -> int:
        """Rounds done."""
        return len(self.history)


class Checkpoint(NamedTuple):
    """A whole checkpoint on disk."""

    path: pathlib.Path
    round: int
    score: float | None  # of its model, see `fedjax_lora.runs.folder.score`; the higher, the better
    about: dict[str, Any]  # config, fingerprints, versions, history


def arrays(progress: Progress) -> dict[str, Any]:
    """The part of a progress that consists of arrays."""
    return {
        "state": progress.state,
        "rank": progress.rank,
        "logged_rank": progress.logged_rank,
        "scores": progress.scores,
    }


def specs(tree: Any) -> dict[str, str]:
    """Type and shape of every array by its path in the tree.

    >>> specs({"rank": np.zeros(3, np.int32)})
    {'rank': 'int32[3]'}
    """
    return tree_structure.describe_leaves(tree, tree_structure.describe_array)


def save(
    folder: pathlib.Path, progress: Progress, about: dict[str, Any], score: float | None = None
) -> Checkpoint:
    """Write a checkpoint into a run's folder; it is there as a whole or not at all.

    Args:
      folder: the run's.
      progress: what to save.
      about: JSON values that say what the run is.
      score: of the model, the higher the better.
    """
    held = arrays(progress)
    logged_rank = about | {
        "round": progress.round,
        "score": score,
        "seconds": progress.seconds,
        "arrays": specs(held),
        "history": progress.history,
    }

    def fill(partial: pathlib.Path) -> None:
        with _checkpointer() as checkpointer:
            checkpointer.save(partial.absolute() / ARRAYS, held)
        atomic_io.write(partial / ABOUT, json.dumps(logged_rank) + "\n")
        write_checksums(partial)

    path = folder / FOLDER / str(progress.round)
    atomic_io.write_folder(path, fill)
    return Checkpoint(path, progress.round, score, logged_rank)


def _checkpointer() -> ocp.StandardCheckpointer:
    """One for this process alone: the others do not wait for it."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"process{here}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def whole(folder: pathlib.Path) -> list[Checkpoint]:
    """The checkpoints of a run's folder, oldest first; damaged ones are left out with a warning."""
    found = []
    for path in (folder / FOLDER).glob("[0-9]*"):
        if wrong := verify(path):
            log.warning("checkpoint %s is damaged and not used: %s", path, wrong)
        else:
            about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
            found.append(Checkpoint(path, about["round"], about["score"], about))
    return sorted(found, key=lambda checkpoint: checkpoint.round)


def latest(folder: pathlib.Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run's folder, if it has any."""
    return max(whole(folder), key=lambda checkpoint: checkpoint.round, default=None)


def best(found: list[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the highest score, the first of equals; None if none has a score."""
    scored = [(one.score, -one.round, one) for one in found if one.score is not None]
    return max(scored)[2] if scored else None


def restore(checkpoint: Checkpoint, like: Progress) -> Progress:
    """What was saved, with every array of the state where that of ``like`` is.

    Args:
      checkpoint: from `whole`, `latest` or `best`.
      like: the progress of the same run before its first round.

    Raises:
      InputError: arrays are missing, too many, or of another type or shape; all of them are named.
    """
    wanted, stored = specs(arrays(like)), checkpoint.about["arrays"]
    # Orbax casts another type silently and words another shape as a missing handler.
    raise_all(
        f"Checkpoint {checkpoint.path} is not of this run",
        tree_structure.compare_descriptions(stored, wanted),
    )
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arrays(like))
    with _checkpointer() as checkpointer:
        held = checkpointer.restore(checkpoint.path.absolute() / ARRAYS, empty)
    return placed(held, like, checkpoint.about["history"], checkpoint.about["seconds"])


def placed(
    held: dict[str, Any], like: Progress, history: list[dict[str, Any]], seconds: float
) -> Progress:
    """A progress of these arrays (see `arrays`), those of the state where those of ``like`` are."""
    where = jax.tree.map(lambda x: x.sharding, like.state)
    state = federated.place(held["state"], where)
    return Progress(state, held["rank"], held["logged_rank"], held["scores"], history, seconds)

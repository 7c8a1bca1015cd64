"""Save and restore the state that a run carries from round to round.

A checkpoint of round 7 is the folder ``checkpoints/7`` of a run folder: ``arrays/`` (Orbax),
``about.json`` (what the run is, and the shape and dtype of every array) and ``SHA256SUMS`` (see
`fedjax_lora.runs.checkpoints.checksums`). The frozen base is not in it, only its fingerprint, and
the history is in a file that all checkpoints share (`fedjax_lora.runs.checkpoints.history`). The
folder takes its name when all of it is written.
"""

import json
import logging
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_lora import federated
from fedjax_lora.core import atomic_io, distributed, tree_structure
from fedjax_lora.core.errors import InputError, raise_all
from fedjax_lora.core.json_values import History, Record
from fedjax_lora.core.types import PyTree
from fedjax_lora.core.untrusted_files import first_line
from fedjax_lora.federated import FederatedState
from fedjax_lora.federated.ranks import ClientScores
from fedjax_lora.runs.checkpoints.checksums import verify, write_checksums
from fedjax_lora.runs.checkpoints.history import HistoryPart, has_history, read_history
from fedjax_lora.runs.checkpoints.plain_path import plain_path
from fedjax_lora.runs.folder_names import CHECKPOINTS as FOLDER

ABOUT, ARRAYS = "about.json", "arrays"

RENAMED: Mapping[str, str] = {"told": "logged_rank"}
"""Arrays of version 0.1 that have another name now."""

_ONE_AT_A_TIME = threading.Lock()
"""Orbax numbers its operations by a counter of the process: those of two threads would mix."""

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Everything that a run carries from one round to the next, but for its history.

    Attributes:
      state: state of the federation.
      rank: rank of each client, ``int32[N]``.
      logged_rank: the ranks that the history holds last, ``int32[N]``.
      scores: last score of each client, for the reallocation of ranks.
      round: rounds done.
      seconds: seconds that the run has taken so far.
    """

    state: FederatedState
    rank: np.ndarray
    logged_rank: np.ndarray
    scores: ClientScores
    round: int = 0
    seconds: float = 0.0


class Checkpoint(NamedTuple):
    """A complete checkpoint on disk.

    Attributes:
      path: its folder.
      round: rounds done.
      score: score of its model, see `fedjax_lora.runs.recorder.score`; higher is better.
      about: config, digests and versions, as JSON values.
    """

    path: pathlib.Path
    round: int
    score: float | None
    about: Record

    @property
    def history(self) -> History:
        """One record for each round done, as in ``metrics.jsonl``.

        Raises:
          InputError: the files that hold it have been damaged since the checkpoint was found.
        """
        part = _part(self.about)
        if part is None:
            return self.about["history"]
        found = read_history(self.path.parent.parent, part)
        if found is None:
            raise InputError(f"The history of checkpoint {self.path} is damaged; resume again.")
        return found


def _part(about: Record) -> HistoryPart | None:
    """Return which history is that of a checkpoint; None if it holds it, as until version 0.2."""
    history = about["history"]
    return None if isinstance(history, list) else HistoryPart(**history)


def arrays(progress: Progress) -> dict[str, PyTree]:
    """Return the part of a progress that consists of arrays."""
    return {
        "state": progress.state,
        "rank": progress.rank,
        "logged_rank": progress.logged_rank,
        "scores": progress.scores,
    }


def specs(tree: PyTree) -> dict[str, str]:
    """Return dtype and shape of every array by its path in the tree.

    >>> specs({"rank": np.zeros(3, np.int32)})
    {'rank': 'int32[3]'}
    """
    return tree_structure.describe_leaves(tree, tree_structure.describe_array)


def save(
    folder: pathlib.Path,
    progress: Progress,
    history: HistoryPart,
    about: Mapping[str, object],
    score: float | None = None,
) -> Checkpoint:
    """Write a checkpoint into a run folder; it is there as a whole or not at all.

    It is read again and compared before it takes its name.

    Args:
      folder: the run folder.
      progress: what to save.
      history: the part of the history, already on disk, that is its own.
      about: JSON values that say what the run is.
      score: score of the model; higher is better.

    Raises:
      OSError: it cannot be written, or what is read is not what was written.
    """
    tree = arrays(progress)
    about = {
        **about,
        "round": progress.round,
        "score": score,
        "seconds": progress.seconds,
        "arrays": specs(tree),
        "history": history._asdict(),
    }

    def fill(partial: pathlib.Path) -> None:
        with _ONE_AT_A_TIME:
            with plain_path(partial) as place, _checkpointer() as checkpointer:
                checkpointer.save(place / ARRAYS, tree)
            _check_readable(partial, tree)
        atomic_io.write(partial / ABOUT, json.dumps(about) + "\n")
        write_checksums(partial)

    path = folder / FOLDER / str(progress.round)
    atomic_io.write_folder(path, fill)
    return Checkpoint(path, progress.round, score, about)


def _check_readable(folder: pathlib.Path, tree: dict[str, Any]) -> None:
    """Read the arrays in a folder and compare them, bit by bit, with those that were saved."""
    expected, _ = jax.tree_util.tree_flatten_with_path(tree)
    read = _read_leaves(folder)
    for path, value in expected:
        name, array = _leaf_name(path), np.asarray(value)
        if name not in read or read[name].tobytes() != array.tobytes():
            raise OSError(f"the array {name} cannot be read back from {folder}")


def _checkpointer() -> ocp.StandardCheckpointer:
    """Build a checkpointer of this process alone: the others do not wait for it."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process{process}",
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def whole(folder: pathlib.Path) -> list[Checkpoint]:
    """Return the complete checkpoints of a run folder, oldest first.

    Damaged ones are left out with a warning.
    """
    complete = []
    for path in (folder / FOLDER).glob("[0-9]*"):
        if damage := verify(path):
            log.warning("checkpoint %s is damaged and not used: %s", path, damage)
        else:
            about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
            part = _part(about)
            if part is None or has_history(folder, part):
                complete.append(Checkpoint(path, about["round"], about["score"], about))
            else:
                log.warning("checkpoint %s is not used: the history of its run is damaged", path)
    return sorted(complete, key=lambda checkpoint: checkpoint.round)


def latest(folder: pathlib.Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a run folder, if it has any."""
    return max(whole(folder), key=lambda checkpoint: checkpoint.round, default=None)


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the highest score, the first of equals; None without scores."""
    scored = [(c.score, -c.round, c) for c in checkpoints if c.score is not None]
    return max(scored)[2] if scored else None


def restore(checkpoint: Checkpoint, like: Progress) -> Progress:
    """Read a checkpoint, with every array of the state where that of ``like`` is.

    Args:
      checkpoint: from `whole`, `latest` or `best`; also one of version 0.1.
      like: the progress of the same run before its first round.

    Raises:
      InputError: arrays are missing, too many, or of another dtype or shape, all of which are
        named; or they cannot be read.
    """
    expected = specs(arrays(like))
    stored = {_present_name(path): spec for path, spec in checkpoint.about["arrays"].items()}
    # Orbax casts another dtype silently and reports another shape as a missing handler.
    raise_all(
        f"Checkpoint {checkpoint.path} is not of this run",
        tree_structure.compare_descriptions(stored, expected),
    )
    try:
        read = _read_leaves(checkpoint.path)
    except Exception as error:  # Orbax raises many types
        raise InputError(
            f"Checkpoint {checkpoint.path} cannot be read ({first_line(error)}); move it away, and "
            "the run resumes from the previous one."
        ) from error
    leaves = {_present_name(path): leaf for path, leaf in read.items()}
    structure = jax.tree.structure(arrays(like))
    tree = jax.tree.unflatten(structure, [leaves[path] for path in expected])
    return place(tree, like, checkpoint.round, checkpoint.about["seconds"])


def _read_leaves(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read all arrays of a checkpoint by their path in the tree.

    The tree is that of the file: a version that has added a field without arrays reads it as well.
    """
    with plain_path(path) as place, _checkpointer() as checkpointer:
        folder = place / ARRAYS
        saved = checkpointer.metadata(folder).item_metadata
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), getattr(saved, "tree", saved))
        restored = checkpointer.restore(folder, empty)
    leaves, _ = jax.tree_util.tree_flatten_with_path(restored)
    return {_leaf_name(path): np.asarray(leaf) for path, leaf in leaves}


def _leaf_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _present_name(path: str) -> str:
    """Return the present path of an array that version 0.1 may have saved under another name."""
    first, slash, rest = path.partition("/")
    return RENAMED.get(first, first) + slash + rest


def share(progress: Progress, history: History) -> tuple[Progress, History]:
    """Give the progress and the history of the first process to all processes."""
    if jax.process_count() == 1:
        return progress, history
    round, seconds, history = distributed.gather([progress.round, progress.seconds, history])[0]
    own = jax.tree.map(np.asarray, arrays(progress))
    return place(distributed.broadcast_arrays(own), progress, round, seconds), history


def place(tree: Mapping[str, PyTree], like: Progress, round: int, seconds: float) -> Progress:
    """Build a progress from its arrays.

    Args:
      tree: arrays as from `arrays`.
      like: a progress whose state is where the new state is to be.
      round: rounds done.
      seconds: seconds that the run has taken.
    """
    where = jax.tree.map(lambda x: x.sharding, like.state)
    state = federated.place(tree["state"], where)
    return Progress(state, tree["rank"], tree["logged_rank"], tree["scores"], round, seconds)

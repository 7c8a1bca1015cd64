"""Federations of real processes: server and sites on one machine, over NVIDIA FLARE.

* ``parity``: methods over the network and in one process with the same messages; the adapter
  files are compared byte for byte. Seconds of a round, and bytes on the wire beside what a method
  counts.
* ``kills``: a site is killed (``SIGKILL``, with the process that watches over it) in every phase of
  a round, and the server in every phase of one, after which it is started again with ``--resume``.
  The adapter is compared with that of a federation in one process in which the site is silent from
  that round on, or nothing happens.
* ``scale``: twenty sites, ten rounds, and the memory of each process.
* ``language``: SmolLM2 on three sites with instructions.

    python -m experiments.robustness.deployment.run --folder DIR [--part kills]     # resumable
    python -m experiments.robustness.deployment.report                              # tables

Needs the extra ``deploy``. Each trial is stored as soon as it is over. Times are those of the
machine under whatever else it does: ``load`` of a trial is the load average at its end.
"""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
"""One file for each part."""

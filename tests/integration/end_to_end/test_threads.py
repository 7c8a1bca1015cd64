"""Two runs in threads of one process, each into a folder of its own."""

import concurrent.futures

import fedjax_lora as fl
from fedjax_lora.runs.compilation import programs
from tests._helpers import tiny_runs
from tests._helpers.tiny_runs import CONFIG, change

ASSETS = tiny_runs.assets()
METHODS = ("hlora", "flora")


def test_concurrent_runs_in_threads_write_the_same_outputs(tmp_path):
    """The same bytes: nothing of a run is global to the process, not even while it compiles."""

    def run(method, folder, shared):
        config = change(CONFIG, {"federation.method": method, "federation.rounds": 2})
        fl.run(config, out=folder, assets=ASSETS, programs=shared)
        return tiny_runs.left(folder)

    with concurrent.futures.ThreadPoolExecutor(len(METHODS)) as pool:
        shared = programs()
        begun = [pool.submit(run, name, tmp_path / name, shared) for name in METHODS]
        together = [future.result() for future in begun]
    for name, left in zip(METHODS, together, strict=True):
        assert run(name, tmp_path / f"{name}-alone", shared) == left

"""JSON-lines result files: complete records survive killed and concurrent writers."""

import multiprocessing
from typing import NamedTuple

import pytest

from experiments.tools import json_lines, run_store
from fedjax_lora import InputError, RunConfig
from fedjax_lora.runs import config as configs


class FakeResult(NamedTuple):
    records: list
    summary: dict


RESULT = FakeResult([{"round": 1}], {"seconds": 1.0})


def test_incomplete_last_line_is_ignored_and_replaced(tmp_path):
    path = tmp_path / "folder" / "records.jsonl"
    assert json_lines.read(path) == []
    json_lines.append(path, {"name": "a", "é": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"name": "b"')
    assert json_lines.read(path) == [{"name": "a", "é": 1}]
    json_lines.append(path, {"name": "c"})
    assert list(json_lines.by_name(path)) == ["a", "c"]


@pytest.mark.parametrize("line", ["no JSON", "3"])
def test_malformed_line_is_refused(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{{}}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"Line 2 of .*records\.jsonl is not a JSON object"):
        json_lines.read(path)


def test_concurrent_writers_keep_all_records(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        pool.starmap(json_lines.append, [(path, {"name": str(n)}) for n in range(40)])
    assert sorted(json_lines.by_name(path), key=int) == [str(n) for n in range(40)]


def test_each_config_is_run_once(tmp_path):
    path, calls = tmp_path / "runs.jsonl", []

    def run():
        calls.append(1)
        return RESULT

    for _ in range(2):
        for seed in (0, 1):
            record = run_store.run_once(path, RunConfig(seed=seed), run)
            assert configs.from_dict(record["config"]) == RunConfig(seed=seed)
            assert record["history"] == RESULT.records
    assert len(calls) == 2
    assert list(run_store.finished(path)) == [RunConfig(seed=0), RunConfig(seed=1)]


def test_runs_with_former_partitions_are_not_mixed_with_new_ones(tmp_path):
    path = tmp_path / "runs.jsonl"
    former = FakeResult([{"round": 1}], {"packages": {"fedjax-lora": "0.1.0"}})
    run_store.add(path, RunConfig(seed=0), former)
    assert run_store.run_once(path, RunConfig(seed=0), lambda: RESULT)["summary"] == former.summary
    with pytest.raises(InputError, match=r"runs of version 0\.1\.0, which rounded the shares"):
        run_store.run_once(path, RunConfig(seed=1), lambda: RESULT)


@pytest.mark.parametrize(
    "broken",
    [{"history": []}, {"config": {"execution": {"no_such_field": 1}}}, {"config": 3}],
)
def test_record_without_results_is_refused(tmp_path, broken):
    path = tmp_path / "runs.jsonl"
    whole = {"config": configs.to_dict(RunConfig()), "history": [{}], "summary": {"seconds": 1}}
    json_lines.append(path, whole | broken)
    with pytest.raises(InputError, match="not a finished run"):
        run_store.finished(path)

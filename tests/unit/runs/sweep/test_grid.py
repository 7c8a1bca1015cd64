"""The runs of a grid, and the messages about impossible ones."""

import pytest

from fedjax_lora.core.errors import InputError
from fedjax_lora.runs.config import RunConfig
from fedjax_lora.runs.sweep import grid
from fedjax_lora.runs.sweep.grid import Grid, Problem, parse_vary


def cells(**options):
    given = {"base": RunConfig(), "methods": ("fed_plora", "hlora"), "seeds": (0, 1)}
    return grid.cells(Grid(**(given | options)))


def test_every_combination_once_seed_by_seed():
    made, problems = cells(vary={"local.learning_rate": (0.1, 0.2), "lora.lora_layers": ([0], [1])})
    assert problems == []
    assert len(made) == len({cell.config for cell in made}) == 2 * 2 * 2 * 2
    assert [cell.config.seed for cell in made] == [0] * 8 + [1] * 8
    assert [cell.config.federation.method for cell in made] == ["fed_plora", "hlora"] * 8
    for cell in made:
        assert cell.config.local.learning_rate == cell.labels["local.learning_rate"]
        assert list(cell.config.lora.lora_layers) == cell.labels["lora.lora_layers"]
        assert list(cell.labels) == ["method", "local.learning_rate", "lora.lora_layers", "seed"]


def test_fields_that_are_not_varied_keep_their_values():
    base = RunConfig(seed=7)
    made, _ = cells(base=base, methods=("fed_plora",), seeds=(7,))
    assert [cell.config for cell in made] == [base]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vary": {"local.lerning_rate": (1.0,)}}, "did you mean 'local.learning_rate'"),
        ({"vary": {"seed": (1,)}}, "seed is varied by --seeds"),
        ({"vary": {"federation.method": ("hlora",)}}, "varied by --methods"),
        ({"vary": {"local.batch": ()}}, "local.batch has no value"),
        ({"vary": {"local.batch": (8, 16, 8)}}, "local.batch 8 is given twice"),
        ({"methods": ("hlora", "hlora")}, "method 'hlora' is given twice"),
        ({"vary": {"local.batch": ("many",)}}, "local.batch cannot be 'many'"),
        ({"vary": {"federation.cohort": (60,)}}, "a cohort of 60 cannot be drawn from 50 clients"),
    ],
)
def test_impossible_grid_is_refused_with_the_reason(options, sentence):
    _, problems = cells(**options)
    with pytest.raises(InputError) as error:
        grid.refuse(problems)
    assert sentence in str(error.value)
    assert str(error.value).startswith("This comparison is impossible: ")


def test_all_problems_are_reported_once():
    vary = {"local.bach": (1,), "federation.cohort": (10, 60), "model.layers": (0,)}
    made, problems = cells(vary=vary)
    assert made == []  # no layers, anywhere
    with pytest.raises(InputError) as error:
        grid.refuse(problems)
    text = str(error.value)
    assert "did you mean 'local.batch'" in text
    assert "[fed_plora, federation.cohort=10, model.layers=0, seed=0 and 3 more]" in text
    assert "[fed_plora, federation.cohort=60, model.layers=0, seed=0 and 3 more]" in text
    assert text.count("a cohort of 60") == 1
    assert text.count("layers must be at least 1, got 0") == 2


def test_grid_without_problems_is_accepted():
    grid.refuse([])
    with pytest.raises(InputError, match=r"impossible: \[a\] bad; worse\.$"):
        grid.refuse([Problem("a", "bad."), Problem("", "worse")])


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("local.learning_rate=0.003,1e-2", "local.learning_rate", (0.003, 0.01)),
        ("federation.partition=iid,dirichlet(alpha=0.1)", "federation.partition",
         ("iid", "dirichlet(alpha=0.1)")),
        ("federation.partition=['iid','dirichlet(alpha=0.1)']", "federation.partition",
         ("iid", "dirichlet(alpha=0.1)")),
        ('federation.partition=["iid", "shards"]', "federation.partition", ("iid", "shards")),
        ("local.clip=[1.0, null]", "local.clip", (1.0, None)),
        ("local.clip=1.0,None", "local.clip", (1.0, None)),
        ("model.remat=true,false", "model.remat", (True, False)),
        ("federation.ranks=tiers(ranks=[2,4]),fixed(rank=4)", "federation.ranks",
         ("tiers(ranks=[2,4])", "fixed(rank=4)")),
        ("federation.method=replication(inner=','),x", "federation.method",
         ("replication(inner=',')", "x")),
        ("lora.lora_layers=[[0], [0, 1]]", "lora.lora_layers", ([0], [0, 1])),
        (" local.batch = 8 ", "local.batch", (8,)),
    ],
)  # fmt: skip
def test_varied_fields_are_parsed(text, field, values):
    assert parse_vary([text]) == {field: values}


@pytest.mark.parametrize("text", ["local.batch", "local.batch=", "=8", ""])
def test_malformed_varied_field_is_refused(text):
    with pytest.raises(InputError, match="not written as field=value"):
        parse_vary([text])


def test_field_varied_twice_is_refused():
    with pytest.raises(InputError, match=r"local\.batch is varied twice"):
        parse_vary(["local.batch=1", "local.batch=2"])

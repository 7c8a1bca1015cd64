"""Records of older versions keep their former defaults."""

import json

import pytest

from fedjax_lora import InputError, methods
from fedjax_lora.core import registry
from fedjax_lora.core.version import BEFORE_0_3, __version__
from fedjax_lora.runs import config as configs
from fedjax_lora.runs import older_versions, resume
from fedjax_lora.runs.choices import resolve
from fedjax_lora.runs.config import FederationConfig, LoraConfig, RunConfig
from fedjax_lora.runs.config.former_defaults import FORMER_DEFAULTS

OLDER = [{}, {"version": "0.1.0"}, {"version": "0.2.0"}]
older = pytest.mark.parametrize("version", OLDER, ids=["0.1", "0.1.0", "0.2.0"])


def config_of(method: str, *, scale="alpha/R", **federation) -> RunConfig:
    return RunConfig(
        federation=FederationConfig(method=method, **federation), lora=LoraConfig(scale=scale)
    )


def check_config(saved: dict, config: RunConfig, done: int) -> None:
    resume.check_config(saved, config, resolve(config).schedule, done)


@older
@pytest.mark.parametrize(
    ("method", "meant"),
    [
        ("fedrora", "fedrora(largest='signed', first=0.0)"),
        ("fedrora(first=1.0)", "fedrora(first=1.0, largest='signed')"),
        ("fedrora(largest='magnitude', first=0.5)", "fedrora(largest='magnitude', first=0.5)"),
        ("fslora", "fslora(indices='global')"),
        ("fslora(weights='examples')", "fslora(weights='examples', indices='global')"),
        ("lora_fair(penalty=2.0)", "lora_fair(penalty=2.0, relative=False)"),
        ("zero_padding", "zero_padding"),
        ("own_method(x=1)", "own_method(x=1)"),
    ],
)
def test_older_record_pins_its_former_defaults(version, method, meant):
    read = configs.from_record(version | configs.to_dict(config_of(method)))
    assert read == config_of(meant)
    if method in methods.METHODS:  # every option is now the former one
        options = registry.with_defaults(read.federation.method, methods.METHODS, "method")
        assert options == registry.with_defaults(method, methods.METHODS, "method") | (
            FORMER_DEFAULTS.get(method, {})
        )


def test_former_defaults_differ_from_present_ones():
    for name, former in FORMER_DEFAULTS.items():
        present = registry.with_defaults(name, methods.METHODS, "method")
        assert all(present[option] != value for option, value in former.items())


@pytest.mark.parametrize("method", FORMER_DEFAULTS)
def test_records_of_this_version_are_read_as_they_are(method):
    config = config_of(method)
    record = configs.to_record(config)
    assert record["version"] == __version__ not in BEFORE_0_3
    assert configs.from_record(json.loads(json.dumps(record))) == config
    assert configs.from_dict(configs.to_dict(config)) == config


def test_partial_config_file_takes_present_defaults(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"federation": {"method": "fedrora"}}')
    assert configs.load(path).federation.method == "fedrora"
    path.write_text(json.dumps(configs.to_dict(config_of("fedrora"))))  # as version 0.1 wrote it
    assert configs.load(path).federation.method == "fedrora(largest='signed', first=0.0)"


@older
def test_older_run_resumes_with_its_former_defaults(version):
    saved = version | configs.to_dict(config_of("fedrora"))
    with pytest.raises(InputError, match=r"federation.method was .*first=0.0.* cannot become"):
        check_config(saved, config_of("fedrora"), 2)
    check_config(saved, configs.from_record(saved), 2)


CHANGED = {
    "hlora's ratio": (config_of("hlora", scale="alpha/r"), "in the factor of sigma"),
    "raflora's ratio": (config_of("raflora", scale="alpha/sqrt(r)"), "in the factor of sigma"),
    "hetlora's tail": (
        config_of("hetlora(gamma=0.7)", ranks="tiers(ranks=[9, 90])"),
        "exact fraction 0.7",
    ),
    "momentum": (config_of("masked_mean", server_optimizer="sgd(momentum=0.9)"), "leaves alone"),
    "adam": (config_of("fed_plora", server_optimizer="adam"), "leaves alone"),
}
SAME = {
    "alpha/R": config_of("hlora"),
    "sigma in b": config_of("flexlora", scale="alpha/r"),
    "no tail missed": config_of("hetlora", ranks="tiers(ranks=[4, 8, 16, 32, 64])"),
    "no memory": config_of("masked_mean", server_optimizer="sgd(learning_rate=0.5)"),
    "one rank": config_of("fedit", server_optimizer="adam", ranks="fixed(rank=8)"),
    "pinned": configs.from_record(configs.to_dict(config_of("fedrora"))),
}


@pytest.mark.parametrize("case", CHANGED)
def test_older_run_with_a_changed_rule_is_refused(case):
    config, words = CHANGED[case]
    with pytest.raises(InputError) as error:
        check_config(configs.to_dict(config), config, 3)
    assert "begun by version 0.1 of" in str(error.value) and words in str(error.value)
    check_config(configs.to_record(config), config, 3)  # this version's own
    check_config(configs.to_dict(config), config, 0)  # nothing has been computed yet


@pytest.mark.parametrize("case", SAME)
def test_other_older_runs_resume(case):
    assert not list(older_versions.computed_otherwise(SAME[case]))
    check_config({"version": "0.2.0"} | configs.to_dict(SAME[case]), SAME[case], 3)

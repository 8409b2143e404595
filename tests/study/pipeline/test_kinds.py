"""Values in params.yaml are of the kind that the notebook takes, or refused by name."""

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from support import ROOT

from msif.study import params
from msif.study.paths import stage_of
from msif.study.pipeline import kinds, sources

REAL = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
DEFAULTS = {
    "profile": "tiny",
    "seeds": [0],
    "reported_seeds": [0],
    "pretraining": {"epochs": 12, "rate": 3.0e-3},
    "checkpoints": [4, 6],
    "dampings": [{"value": 0.1, "relative": True}],
    "grid": {"damping": [1.0e-3, 10.0]},
    "per_head": False,
    "labels": "gaussian",
    "at_once": None,
    "batch_size": 64,
}
CELL = new_code_cell("made = list(range(3))", metadata={"tags": ["parameters"]})
DEFAULTS |= sources.declared(new_notebook(cells=[CELL]))  # no literal: nothing is known of it


@pytest.fixture(scope="module")
def notebooks():
    """{stage: what its notebook's cell says}."""
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    return {stage_of(x.stem): sources.declared(nbformat.read(x, as_version=4)) for x in paths}


def test_the_studys_own_profiles_hold(notebooks):
    checked = [
        (name, stage)
        for name, sections in REAL.items()
        if name != "profiles"
        for stage, section in sections.items()
        if kinds.check(section, notebooks[stage], name, stage) is None
    ]
    assert len(checked) > 20


def test_what_a_parameter_without_a_default_takes_is_written_down(notebooks):
    for stage, found in notebooks.items():
        nothing = [name for name, x in found.items() if x is None]
        assert all(f"{stage}.{name}" in kinds.KINDS or name in kinds.KINDS for name in nothing)


@pytest.mark.parametrize(
    "section",
    [
        {"seeds": [3, 1], "reported_seeds": [1]},
        {"pretraining": {"rate": 1, "weight_decay": 0.1}},  # a whole number is a number
        {"at_once": 2, "per_head": True, "checkpoints": []},
        {"at_once": None, "labels": "", "made": {"any": ["thing"]}},
        {"dampings": [{"value": 1, "relative": False}, {"value": 0.5}]},
    ],
)
def test_values_of_the_right_kind_pass(section):
    assert kinds.check(section, DEFAULTS, "tiny", "demo") is None


@pytest.mark.parametrize(
    "section, says",
    [
        ({"batch_size": "64"}, "tiny.demo.batch_size is '64'; expected a whole number"),
        ({"batch_size": 2.5}, "tiny.demo.batch_size is 2.5; expected a whole number"),
        ({"batch_size": True}, "tiny.demo.batch_size is True; expected a whole number"),
        ({"batch_size": None}, "tiny.demo.batch_size is None; expected a whole number"),
        ({"batch_size": 0}, "tiny.demo.batch_size is 0; expected at least 1"),
        ({"per_head": "false"}, "tiny.demo.per_head is 'false'; expected true or false"),
        ({"per_head": 0}, "tiny.demo.per_head is 0; expected true or false"),
        ({"labels": False}, "tiny.demo.labels is False; expected text"),
        ({"seeds": 0}, "tiny.demo.seeds is 0; expected a list"),
        ({"seeds": []}, r"tiny.demo.seeds is \[\]; expected at least one entry"),
        ({"seeds": [0, 1, 0]}, r"tiny.demo.seeds has 0 twice: \[0, 1, 0\]"),
        ({"seeds": [0, "1"]}, r"tiny.demo.seeds\[1\] is '1'; expected a whole number"),
        ({"seeds": [-1]}, r"tiny.demo.seeds\[0\] is -1; expected a whole number from 0 on"),
        ({"trak": {"seeds": [1.0]}}, r"tiny.demo.trak.seeds\[0\] is 1.0; expected a whole"),
        ({"seeds": [1], "reported_seeds": [2]}, r"reported_seeds is 2; expected one of seeds"),
        ({"reported_seeds": [2]}, r"reported_seeds is 2; expected one of seeds, \[0\]"),
        ({"checkpoints": [4, 4]}, "tiny.demo.checkpoints has 4 twice"),
        ({"pretraining": {"epochs": "12"}}, "tiny.demo.pretraining.epochs is '12'; expected a"),
        ({"pretraining": {"rate": "x"}}, "tiny.demo.pretraining.rate is 'x'; expected a number"),
        ({"pretraining": 3}, "tiny.demo.pretraining is 3; expected a mapping"),
        ({"pretraining": {"decay": "1e-1"}}, "decay is '1e-1'; expected a number, which YAML"),
        ({"pretraining": {True: 1}}, "tiny.demo.pretraining has the name True; expected text"),
        ({"grid": {"damping": []}}, r"tiny.demo.grid.damping is \[\]; expected at least one"),
        ({"grid": {"damping": ["a"]}}, r"grid.damping\[0\] is 'a'; expected a number"),
        ({"dampings": [{"value": "x"}]}, r"dampings\[0\].value is 'x'; expected a number"),
        ({"dampings": [{"relative": "no"}]}, r"dampings\[0\].relative is 'no'; expected true"),
        ({"at_once": "2"}, "tiny.demo.at_once is '2'; expected a whole number or null"),
        (yaml.safe_load("{rate: .nan}"), "tiny.demo.rate is nan; expected a finite number"),
        (yaml.safe_load("{to: 2024-01-01}"), 'expected no date; write it as text, "2024-01-01"'),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name(section, says):
    with pytest.raises(ValueError, match=says) as error:
        kinds.check(section, DEFAULTS, "tiny", "demo")
    assert str(error.value).startswith("params.yaml: ") and "\n" not in str(error.value)


def test_lists_of_another_length_or_order_are_nobodys_business():
    assert params.differences(DEFAULTS, DEFAULTS | {"checkpoints": [8]})
    assert kinds.check({"checkpoints": [8], "grid": {}}, DEFAULTS, "tiny", "demo") is None

"""Differences are by leaf, and the command that is offered does what it says, or is not offered."""

import shlex

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from support import ROOT, staged

from msif.study import params, paths

TEXT = staged.text(ROOT / "params.yaml")
PARAMS = yaml.safe_load(TEXT)
STAGES = list(PARAMS["tiny"])


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = "profiles: [tiny]\ntiny:\n  demo: &demo {n: 3}\nfull: {demo: {<<: *demo, n: 4}}\n"


@pytest.mark.parametrize(
    "text, says",
    [
        (GOOD + "tiny: {}\n", r"params.yaml, line 5: 'tiny' stands twice here.* in line 2\)"),
        (GOOD.replace("n: 3", "n: 3, n: 4"), "line 3: 'n' stands twice here: remove one"),
        (GOOD + "  demo: 3\n", "params.yaml, line 5: .*in 'demo: 3'"),
        (GOOD + "more: {demo: [1, 2}\n", "params.yaml, line 5: expected ',' or ']'"),
        (GOOD + "more: {demo: [1\n\nx: 1\n", r"line \d: .*in line 5\)"),
        (GOOD + "\tmore: 1\n", "params.yaml, line 5: "),
        (GOOD + "more: *nobody\n", "line 5: found undefined alias"),
        (GOOD + "a: \x07\n", "params.yaml is no YAML"),
        (GOOD + "tag: !!python/object:os.system x\n", "line 5: could not determine a constructor"),
        ("- tiny\n", r"params.yaml holds \['tiny'\]: expected a mapping"),
        ("", "profiles is None; expected a list of those that run"),
        (GOOD.replace("[tiny]", "tiny"), r"profiles is 'tiny'; expected a list.*such as \[tiny\]"),
        (GOOD.replace("[tiny]", "[tiny, tiny]"), "profiles has tiny twice"),
        ("profiles: [tiny]\ntiny:\n  demo:\n", "params.yaml: tiny.demo is empty; expected"),
        (GOOD + "none:\n", "params.yaml: none is empty; expected notebooks' sections, or {} for"),
        (GOOD + "none: 3\n", "params.yaml: none is 3; expected"),
        *(
            (GOOD + f"{name}: {{demo: {{}}}}\n", "a profile cannot be called .*folder of this name")
            for name in ("../../evil", "/evil", "a/b", ".", "by-hand", "benchmarks", "true", "''")
        ),
    ],
)
def test_what_params_cannot_mean_is_refused_with_its_place(study, text, says):
    (study / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        params.section("01_demo", "tiny")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_file_in_another_encoding_is_named_with_its_line(study):
    (study / "params.yaml").write_bytes(GOOD.encode() + "# für\n".encode("latin-1"))
    with pytest.raises(ValueError, match="params.yaml, line 5: this is not UTF-8"):
        params.profiles()
    (study / "params.yaml").write_text(GOOD, "utf-8-sig")  # Windows' editors
    assert params.section("01_demo", "full") == {"n": 4}  # merged, and nothing twice


def test_differences_are_leaves_and_lists_are_leaves():
    ours = {"a": 1, "b": {"c": [1, 2], "d": {"e": 0.5}}, "new": None}
    theirs = {"a": 1.0, "b": {"c": [1], "d": {"e": 0.5}, "old": 3}, "f": {}}
    assert params.differences(ours, theirs) == [
        (("b", "c"), [1, 2], [1]),
        (("b", "old"), params.ABSENT, 3),
        (("f",), params.ABSENT, {}),
        (("new",), None, params.ABSENT),
    ]
    assert params.differences(ours, ours) == []
    assert params.differences({"a": (0, (1,))}, {"a": [0, [1]]}) == []  # YAML has no tuples
    assert params.differences({"a": {}}, {"a": None}) == [(("a",), {}, None)]


@pytest.mark.parametrize("value", [None, "x" * 500, {"a": list(range(300))}, params.ABSENT])
def test_a_value_is_shown_in_one_short_line(value):
    assert len(params.shown(value)) <= 63 and "\n" not in params.shown(value)


def leaves(tree, at=()):
    """[(path, value)] of nested dicts."""
    if not isinstance(tree, dict) or not tree:
        return [(at, tree)]
    return [leaf for key, part in tree.items() for leaf in leaves(part, (*at, key))]


def other(value):
    """A value of the same kind, or of a new one for None, that is hard to write."""
    if value is None:
        return {"of": [1, -2.5e-07], "also": None}
    if isinstance(value, dict):
        return {"a": "b c"}
    if isinstance(value, list):
        return [*value, 2.5e-05, "1e-5", {"a": "b c", "d": [True]}]
    by_kind = {bool: not value, int: -7, float: 1.5e-05, str: "a/b-c.d e"}
    return by_kind[type(value)]


def put(tree, path, value):
    """A copy of nested dicts with one leaf put in."""
    key, *rest = path
    return tree | {key: put(tree[key], rest, value) if rest else value}


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_writes_what_the_notebook_has_and_nothing_else(study, stage):
    """All leaves of a section that it can set, at once, by DVC's own reading of -S."""
    notebook, section = f"01_{stage}", PARAMS["tiny"][stage]
    changed, settable = section, []
    for path, value in leaves(section):
        one = params.differences(put(section, path, other(value)), section)
        if len(params.remedies(notebook, "tiny", one)) == 2:
            changed = put(changed, path, other(value))
            settable.append(path)
    assert settable
    differing = params.differences(changed, section)
    command = shlex.split(params.remedies(notebook, "tiny", differing)[-1].partition(": ")[2])
    assert command[:4] == ["dvc", "exp", "run", "--temp"] and command[-1] == f"{stage}@tiny"
    overrides = command[5:-1:2]
    assert set(command[4:-1:2]) == {"-S"} and len(overrides) == len(settable)
    apply_overrides(study / "params.yaml", overrides)
    written = yaml.safe_load((study / "params.yaml").read_text())
    assert params.differences(written, PARAMS) == [
        (("tiny", stage, *path), *pair) for path, *pair in differing
    ]


def remedies(stage, path, value, profile="tiny"):
    return params.remedies(f"01_{stage}", profile, [(path, value, None)])


@pytest.mark.parametrize(
    "stage, path, value",
    [
        ("fact_tracing", ("grid", "alpha"), [0.1]),  # a mapping that profiles share
        ("exact", ("problems", "MLP, over-fitted", "hessian"), False),  # not a plain key
        ("testbed", ("corpus", "near"), 2),  # a new key
        ("testbed", ("corpus", "held_out"), params.ABSENT),
        ("your_models", ("base",), "it's"),
        ("testbed", ("finetuning", "rate"), 1e-05),  # would be written so, which YAML reads as text
        ("testbed", ("max_length",), float("inf")),
        ("testbed", ("max_length",), object()),
    ],
)
def test_what_the_command_would_not_write_as_meant_is_edited_in_the_file(study, stage, path, value):
    (only,) = remedies(stage, path, value)
    assert only == (
        f"edit tiny.{stage} in params.yaml, then: make study "
        f"(`dvc exp run -S` cannot set {'.'.join(path)})"
    )


def test_profiles_that_do_not_run_or_read_data_are_edited_in_the_file(study):
    edit = "edit stories.testbed in params.yaml, then: make study"
    assert remedies("testbed", ("max_length",), 3, "stories") == [f"{edit} PROFILE=stories"]
    (study / "params.yaml").write_text(TEXT.replace("profiles: [tiny]", "profiles: [stories]"))
    assert remedies("testbed", ("max_length",), 3, "stories") == [edit]


def test_a_stage_is_known_by_its_notebooks_name():
    assert paths.stage_of("03_fact_tracing") == "fact_tracing"

"""Notebooks, params.yaml, dvc.yaml, the modules and the committed reports agree with each other."""

import ast
import re
import sys
from functools import cache

import nbformat
import papermill
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from support import ROOT

from msif.study.pipeline.report import mathml

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "msif").glob("*.py"))
PROFILES = [name for name, section in PARAMS.items() if not isinstance(section, list)]
COMMITTED = ["tiny", "full", "stories", "webnlg"]  # the profiles whose reports are in git

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_profile = pytest.mark.parametrize("profile", PROFILES)


def stage_of(path):
    return path.stem.split("_", 1)[1]


def runs_in(path, profile):
    """Is the notebook part of a profile? It is where the profile has a section for it."""
    return stage_of(path) in PARAMS[profile]


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def test_every_notebook_has_a_stage_and_a_report():
    """A report stage has the profiles of the notebooks that it renders."""
    reports = [name for name in STAGES if name.endswith("report")]
    assert list(STAGES) == [stage_of(path) for path in NOTEBOOKS] + reports + ["index"]
    rendered = {
        notebook: STAGES[name]["matrix"]["profile"]
        for name in reports
        for notebook in STAGES[name]["matrix"]["notebook"]
    }
    assert rendered == {path.stem: STAGES[stage_of(path)]["foreach"] for path in NOTEBOOKS}


@each_notebook
def test_sources_carry_no_outputs(path):
    assert not any(c.outputs or c.execution_count for c in cells(path, "code"))


@each_notebook
def test_cells_have_ids_and_so_equal_runs_have_equal_bytes(path):
    nb = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    assert (nb.nbformat, nb.nbformat_minor) >= (4, 5) and all("id" in c for c in nb.cells)


@each_notebook
def test_every_formula_can_be_drawn_without_network(path):
    for cell in cells(path, "markdown"):
        text = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.S)
        for block, inline in re.findall(r"(?s)\$\$(.+?)\$\$|\$(\S(?:.*?\S)?)\$", text):
            mathml(block or inline)


@each_profile
@each_notebook
def test_parameters_are_those_of_the_notebook(path, profile):
    declared = set(papermill.inspect_notebook(str(path)))
    assert (
        not runs_in(path, profile) or set(PARAMS[profile][stage_of(path)]) | {"profile"} == declared
    )


def leaves(tree):
    """The values in nested dicts and lists."""
    if not isinstance(tree, dict | list):
        return [tree]
    return [
        leaf
        for part in (tree.values() if isinstance(tree, dict) else tree)
        for leaf in leaves(part)
    ]


@each_profile
def test_no_number_is_text(profile):
    """YAML reads 1e-3 as a string; 1.0e-3 is a number."""
    number = re.compile(r"[-+\d.]+(e[-+]?\d+)?")
    assert [v for v in leaves(PARAMS[profile]) if isinstance(v, str) and number.fullmatch(v)] == []


def test_the_profiles_that_run_are_described():
    """Every list of profiles names such that have a section for each notebook of the list."""
    for name in (name for name, value in PARAMS.items() if isinstance(value, list)):
        listed = [path for path in NOTEBOOKS if STAGES[stage_of(path)]["foreach"] == f"${{{name}}}"]
        assert listed and all(
            stage_of(path) in PARAMS[profile] for path in listed for profile in PARAMS[name]
        )


def msif_imports(source):
    """The modules of msif that a piece of Python imports, however it says so, as paths."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["msif" if node.level else "", node.module]))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    paths = {f"msif/{name.split('.')[1]}.py" for name in found if name.startswith("msif.")}
    return {path for path in paths if (ROOT / path).is_file()}


@cache
def imports_of(path):
    return msif_imports((ROOT / path).read_text())


def closure(paths):
    """Modules, everything in msif that they import in turn, and the page templates beside them."""
    found, todo = set(), set(paths)
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= imports_of(path) - found
    return found | {
        page for path in found if (ROOT / (page := path.replace(".py", ".html"))).is_file()
    }


@pytest.mark.parametrize(
    "source",
    [
        "import msif.study.paths",
        "import msif.study.paths as p",
        "from msif import (paths,\n  x)",
        "from msif.study.paths import root",
        "def f():\n    from msif import paths",
        "from . import paths",
    ],
)
def test_no_form_of_import_goes_unseen(source):
    assert msif_imports(source) == {"msif/study/paths.py"}


@each_notebook
def test_a_stage_reruns_when_a_module_it_uses_changes_and_only_then(path):
    python = TransformerManager().transform_cell("\n".join(c.source for c in cells(path, "code")))
    deps = STAGES[stage_of(path)]["do"]["deps"]
    assert {d for d in deps if d.startswith("msif/")} == closure(msif_imports(python))
    assert f"notebooks/{path.name}" in deps


def test_oracles_are_independent_and_arithmetic_and_plots_stand_alone():
    uses = {path.stem: closure(imports_of(f"msif/{path.name}")) for path in MODULES}
    assert not uses.get("exact", set()) & {"msif/core/ekfac.py", "msif/core/influence.py"}
    assert uses.get("metrics", set()) | uses.get("figures", set()) == set()
    assert not any("msif/study/pipeline/run.py" in used for used in uses.values())


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "report"], ids=lambda p: p.stem)
def test_the_library_imports_without_the_study_extra(path):
    """At import, only the dependencies of `pip install msif`, and those that transformers itself has."""
    allowed = {"torch", "transformers", "numpy", "safetensors", "tokenizers", "tqdm", "msif"}
    top = ast.parse(path.read_text()).body
    names = {alias.name for n in top if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= allowed | sys.stdlib_module_names


@pytest.mark.parametrize(
    "path, profile",
    [(path, p) for path in NOTEBOOKS for p in COMMITTED if runs_in(path, p)],
    ids=lambda x: getattr(x, "stem", x),
)
def test_committed_reports_show_the_notebook_as_it_is(path, profile):
    """An edited notebook wants `make study` (and a commit of reports/) before its report can be believed."""
    report = ROOT / "reports" / profile / path.name
    assert report.exists() and report.with_suffix(".html").exists(), (
        f"run: make study PROFILE={profile}"
    )
    shown = nbformat.read(report, as_version=4).cells
    source = nbformat.read(path, as_version=4).cells
    assert [c.source for c in shown if c.id != "injected-parameters"] == [c.source for c in source]
    assert not any(
        o.output_type == "error" for c in shown if c.cell_type == "code" for o in c.outputs
    )

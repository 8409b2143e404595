"""The laws of the house: where files lie, how wide lines are, and what may know of what."""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "msif"
FOLDERS = ("msif", "tests", "benchmarks")
PROJECT = ROOT / "pyproject.toml"
WIDTH = 100
FOREIGN = ("scipy", "pandas", "matplotlib", "datasets", "sklearn", "dvc", "papermill")


def sources(*folders):
    """The Python files of some folders of the checkout."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def place(path, line):
    """How a finding is named: msif/core/layers.py:12."""
    return f"{path.relative_to(ROOT)}:{line}"


# ------------------------------------------------------------------------------------------- files


def test_the_top_of_the_package_has_at_most_six_files():
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_line_is_longer_than_100_characters():
    wide = [
        place(path, number)
        for path in sources(*FOLDERS)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > WIDTH
    ]
    assert not wide


# ------------------------------------------------------------------------------------ private names


def private(name):
    """Does the name start with an underscore, and is it not one of Python's own (__file__)?"""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_module(dotted):
    """Is msif.… a file or a package of the checkout?"""
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def origin(node, package):
    """The module that `from … import` names, from a package if it has dots."""
    if not node.level:
        return node.module
    parents = package.split(".")
    base = parents[: len(parents) - node.level + 1]
    return ".".join(base + [node.module] * bool(node.module))


def foreign_private_names(source, package="msif"):
    """[(line, what is written)]: private names of other msif modules in the source of one.

    Of `from msif.x import _y`, and of `x._y` where x is an imported module of msif."""
    found, modules = [], set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [a for a in node.names if a.name.split(".")[0] == "msif"]
            modules |= {a.asname or a.name for a in names}
            parts = [(a, part) for a in names for part in a.name.split(".")]
            found += [(node.lineno, f"import {a.name}") for a, part in parts if private(part)]
        if not isinstance(node, ast.ImportFrom):
            continue
        module = origin(node, package)
        if module.split(".")[0] != "msif":
            continue
        written = [(module, part) for part in module.split(".")]
        written += [(f"{module}.{a.name}", a.name) for a in node.names]
        found += [(node.lineno, f"import {whole}") for whole, part in written if private(part)]
        modules |= {a.asname or a.name for a in node.names if is_module(f"{module}.{a.name}")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            # `import msif.core.layers` binds msif: what is below it is reached by its dotted name
            if owner in modules or owner.startswith("msif.") and is_module(owner):
                found.append((node.lineno, f"{owner}.{node.attr}"))
    return found


def test_no_private_name_crosses_files():
    found = [
        f"{place(path, line)} {written}"
        for path in sources(*FOLDERS)
        for line, written in foreign_private_names(
            path.read_text("utf-8"), ".".join(path.relative_to(ROOT).parent.parts)
        )
    ]
    assert not found


@pytest.mark.parametrize(
    "source, package",
    [
        ("from msif.core.layers import _layer", "msif.scale"),
        ("from ..core.layers import _layer", "msif.scale"),
        ("from .layers import tracked, _layer as layer", "msif.core"),
        ("def late():\n    from msif.core import layers\n    return layers._layer", "msif.scale"),
        ("from msif.core import layers as rows\nrows._layer(1)", "msif.scale"),
        ("from . import layers\nlayers._layer(1)", "msif.core"),
        ("import msif.core.layers\nmsif.core.layers._layer(1)", "msif.scale"),
        ("import msif.core.layers as rows\nrows._layer(1)", "msif.scale"),
    ],
)
def test_private_names_are_found_however_they_are_written(source, package):
    assert foreign_private_names(source, package)


def test_own_private_names_and_those_of_other_packages_are_let_through():
    assert not foreign_private_names(
        "from torch import _C\nfrom msif.core.layers import Layer, __doc__\n"
        "from msif.core import layers\nself._x, _y, layers.tracked, layers.__file__, Layer._z",
        "msif.scale",
    )


# -------------------------------------------------------------------------------------- signatures


def public_functions(body):
    """Functions, and methods of classes, that have no leading underscore in their names."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not node.name.startswith("_"):
                yield node


def unannotated(function, method):
    """What lacks an annotation in the signature: names of parameters, "return"."""
    arguments = function.args
    positional = arguments.posonlyargs + arguments.args
    static = any(ast.unparse(x) == "staticmethod" for x in function.decorator_list)
    if method and not static:
        positional = positional[1:]  # self or cls
    names = [x.arg for x in positional + arguments.kwonlyargs if x.annotation is None]
    return names + ["return"] * (function.returns is None)


def unannotated_functions(source):
    """[(line, name, what lacks)] of the public functions and methods of a source."""
    tree = ast.parse(source)
    functions = {id(x) for x in tree.body}
    return [
        (x.lineno, x.name, lacking)
        for x in public_functions(tree.body)
        if (lacking := unannotated(x, method=id(x) not in functions))
    ]


def test_public_functions_of_core_and_scale_are_annotated():
    lacking = [
        f"{place(path, line)} {name}: {', '.join(what)}"
        for path in sources("msif/core", "msif/scale")
        for line, name, what in unannotated_functions(path.read_text("utf-8"))
    ]
    assert not lacking


def test_a_missing_annotation_is_found():
    source = """
def whole(x: int, *args, y: int = 0, **kwargs) -> int: ...
def half(x, *, y: int = 0, z=1): ...
def _own(x): ...
class Public:
    def __init__(self, x): ...
    def whole(self, x: int) -> int: ...
    @classmethod
    def made(cls, x) -> int: ...
    @staticmethod
    def loose(x) -> int: ...
class _Private:
    def half(self, x): ...
"""
    found = {name: what for _, name, what in unannotated_functions(source)}
    assert found == {"half": ["x", "z", "return"], "made": ["x"], "loose": ["x"]}


# ----------------------------------------------------------------------------- what an import costs


def loaded(code):
    """Packages outside the standard library that a fresh Python has after running the code."""
    shown = "import json, sys; print(json.dumps([x.split('.')[0] for x in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{shown}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)


def test_importing_msif_loads_none_of_what_the_study_needs():
    found = loaded("import msif")
    assert "msif" in found and not found & set(FOREIGN)


def test_importing_msif_loads_no_more_than_the_engine_needs():
    engine = "import torch, transformers, numpy, safetensors"
    assert loaded(f"{engine}\nimport msif") - loaded(engine) == {"msif"}


# --------------------------------------------------------------------------------------- contracts


def contracts():
    """The contracts of import-linter, as pyproject.toml has them."""
    return tomllib.loads(PROJECT.read_text("utf-8"))["tool"]["importlinter"]["contracts"]


def modules_of(group):
    """The modules of one layer: "a | b" are two."""
    return [x.strip() for x in group.replace(":", "|").split("|")]


def offence(contract):
    """(module, what it must not import) by the contract: the first pair that it forbids."""
    if contract["type"] == "layers":
        upper, lower = (modules_of(contract["layers"][n])[0] for n in (0, -1))
        inside = contract.get("containers", [""])[0]
        return tuple(f"{inside}.{x}".strip(".") for x in (lower, upper))
    if contract["type"] == "forbidden":
        return contract["source_modules"][0], contract["forbidden_modules"][0]
    if contract["type"] == "independence":
        return tuple(contract["modules"][:2])
    raise ValueError(f"no violation is known for a contract of type {contract['type']}")


def file_of(module, root):
    """Where the source of a module lies: its own file, or a package's __init__.py."""
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def lint(folder):
    """import-linter on the package in a folder, without a cache: the finished process."""
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("import-linter is not installed; pip install import-linter")
    return subprocess.run(
        [str(command), "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )


def broken(output, contract):
    """Does import-linter call the contract broken? (It wraps long names.)"""
    return f"{contract['name']} BROKEN" in " ".join(output.split())


def test_the_contracts_between_modules_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("contract", contracts(), ids=lambda x: x["name"])
def test_a_planted_violation_of_each_contract_is_found(tmp_path, contract):
    shutil.copytree(PACKAGE, tmp_path / "msif", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT, tmp_path)
    module, target = offence(contract)
    with file_of(module, tmp_path).open("a") as source:
        source.write(f"\n\ndef _planted():\n    import {target}\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert broken(done.stdout, contract), done.stdout

"""Long work, done once: a folder named by a hash of all it depends on, whole or not there.

A killed run loses the folder it was writing and finds every finished one; a re-executed notebook
finds them all.
"""

import ast
import json
import os
import shutil
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import load_file, save_file

from msif.core import files
from msif.study import paths

PACKAGE = Path(__file__).parents[1]

# The code as this process imports it: what is edited while it runs is not what it computes with.
SOURCES = {x: x.read_text("utf-8") for x in PACKAGE.rglob("[!.]*.py") if x.is_file()}

# They say where long work lies, not what it is.
UNCOUNTED = {"msif.study.paths", "msif.study.scratch"}


def built(kind, key, make):
    """The folder scratch/<kind>-<hash>; `make(folder)` fills it the first time.

    The name says all that the content depends on, see `place`."""
    folder = place(kind, key, make.__module__)
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        _move(partial, folder)
    return folder


def tensors(kind, key, compute):
    """compute() -> {name: tensor}, done once, see `built`."""

    def make(folder):
        found = {name: x.contiguous().clone() for name, x in compute().items()}
        save_file(found, folder / "tensors.safetensors")

    make.__module__ = compute.__module__
    return load_file(built(kind, key, make) / "tensors.safetensors")


def value(kind, key, compute):
    """compute() -> a JSON value, done once, see `built`."""

    def make(folder):
        files.write_json(folder / "value.json", compute())

    make.__module__ = compute.__module__
    return json.loads((built(kind, key, make) / "value.json").read_text("utf-8"))


def place(kind, key, module):
    """The path scratch/<kind>-<hash> of what a module's code makes of `key` (JSON values).

    The hash is of the key, of the versions of torch and transformers, and of the code of the module
    and of all that it imports from msif, so that an edited formula never finds an old result."""
    versions = [version("torch"), version("transformers")]
    return paths.scratch(f"{kind}-{files.sha256_of([key, versions, code_digest(module)])[:16]}")


@cache
def code_digest(module):
    """SHA-256 of the code of a module and of all that it imports from msif, directly or not.

    Of the syntax tree without docstrings, so that prose never makes hours of work stale; of the
    files as they were when this process began, so that a kernel wants a restart after an edit."""
    found, todo = {}, {module}
    while todo:
        name = todo.pop()
        source = source_of(name)
        if not source.is_file() or source.read_text("utf-8") != SOURCES[source]:
            warnings.warn(
                f"{source} was edited after this process had begun; results are kept as those of "
                "the code before: restart it to run the new",
                stacklevel=2,
            )
        tree = ast.parse(SOURCES[source])
        found[name] = ast.unparse(_without_prose(tree))
        todo |= imported(tree) - found.keys() - UNCOUNTED
    return files.sha256_of(found)


def imported(tree):
    """The modules of msif that a syntax tree imports anywhere in it, by their dotted names."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("msif.") and source_of(name) in SOURCES}


def source_of(module):
    """The file of a dotted name of msif, if it is a module; packages have none."""
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _without_prose(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body[:1] = [ast.Pass()] if len(body) == 1 else []
    return tree


def _move(partial, folder):
    try:
        os.replace(partial, folder)
    except OSError:  # another run finished the same work first
        if not folder.exists():
            raise
        shutil.rmtree(partial)


def publish(folder, target):
    """Copy a finished scratch folder to its place in results/, replacing what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)

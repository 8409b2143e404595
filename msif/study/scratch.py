"""Long work, done once: a folder named by a hash of everything it depends on, written whole or not at all.

A killed run loses the folder it was writing and finds every finished one; a re-executed notebook finds them all.
"""
import ast
import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from msif.study import paths

PACKAGE = Path(__file__).parents[1]

# They say where long work lies, not what it is.
UNCOUNTED = {"msif.study.paths", "msif.study.scratch"}


def built(kind, key, make):
    """The folder scratch/<kind>-<hash>; `make(folder)` fills it the first time.

    The hash is of `key` (JSON values), of the versions of torch and transformers, and of the code of make's
    module and of what that imports, so that an edited formula never finds an old result.
    """
    versions = [version("torch"), version("transformers")]
    text = json.dumps([key, versions, code_digest(make.__module__)], sort_keys=True)
    folder = paths.scratch(f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        _move(partial, folder)
    return folder


def code_digest(module):
    """SHA-256 of the code of a module of msif and of all that it imports from msif, directly or not.

    Of the syntax tree without docstrings, so that comments and prose never make hours of work stale."""
    found, todo = {}, {module}
    while todo:
        name = todo.pop()
        tree = ast.parse(source_of(name).read_text("utf-8"))
        found[name] = ast.unparse(_without_prose(tree))
        todo |= imported(tree) - found.keys() - UNCOUNTED
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def imported(tree):
    """The modules of msif that a syntax tree imports anywhere in it, by their dotted names."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.startswith("msif.") and source_of(name).is_file()}


def source_of(module):
    """The file of a dotted name of msif, if it is a module; packages have none."""
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _without_prose(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
            body[:1] = [ast.Pass()] if len(body) == 1 else []
    return tree


def _move(partial, folder):
    try:
        os.replace(partial, folder)
    except OSError:                       # another run finished the same work first
        if not folder.exists():
            raise
        shutil.rmtree(partial)


def publish(folder, target):
    """Copy a finished scratch folder to its place in results/, replacing what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)

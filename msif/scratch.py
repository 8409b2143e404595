"""Long work, done once: a folder named by a hash of everything it depends on, written whole or not at all.

A killed run loses the folder it was writing and finds every finished one; a re-executed notebook finds them all.
"""
import hashlib
import json
import os
import re
import shutil
from importlib.metadata import version
from pathlib import Path

from msif import paths

# Modules whose edits cannot change what long work computes: they run or present it.
PRESENTATION = {"figures", "highlight", "metrics", "paths", "report", "run", "scratch"}


def built(kind, key, make):
    """The folder scratch/<kind>-<hash>; `make(folder)` fills it the first time.

    The hash is of `key` (JSON values), of the versions of torch and transformers, and of the source of make's module and what that imports, so that an edited formula
    never finds an old result.
    """
    versions = [version("torch"), version("transformers")]
    text = json.dumps([key, versions, code_digest(make.__module__.removeprefix("msif."))], sort_keys=True)
    folder = paths.scratch(f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        _move(partial, folder)
    return folder


def code_digest(module):
    """SHA-256 of a module of msif and of all of msif's computing modules that it imports, directly or not."""
    found, todo = {}, {module}
    while todo:
        name = todo.pop()
        found[name] = (Path(__file__).parent / f"{name}.py").read_bytes()
        todo |= _imports(found[name].decode()) - found.keys() - PRESENTATION
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()


def _imports(source):
    whole = re.findall(r"^\s*from msif import (.+)$", source, re.M)
    return {name.strip() for line in whole for name in line.split(",")} | set(re.findall(r"^\s*from msif\.(\w+) import", source, re.M))


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

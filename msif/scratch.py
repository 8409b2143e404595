"""Long work, done once: a folder named by a hash of everything it depends on, written whole or not at all.

A killed run loses the folder it was writing and finds every finished one; a re-executed notebook finds them all.
"""
import hashlib
import json
import os
import shutil
from pathlib import Path

from msif import paths

# Modules whose edits cannot change what long work computes: they run or present it.
PRESENTATION = {"figures", "highlight", "metrics", "paths", "report", "run"}


def code_digest():
    """SHA-256 of the package's computing modules, so that an edited formula never finds an old result."""
    sources = sorted(p for p in Path(__file__).parent.glob("*.py") if p.stem not in PRESENTATION)
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()


def built(kind, key, make):
    """The folder scratch/<kind>-<hash of key and code>; `make(folder)` fills it the first time. key: JSON values."""
    text = json.dumps([key, code_digest()], sort_keys=True)
    folder = paths.scratch(f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        _move(partial, folder)
    return folder


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

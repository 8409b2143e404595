"""What git has, committed or staged: what a test of sources looks at.

A person's edits of notebooks and of params.yaml in the working tree are then nobody's failure.
Without git, or for what it does not have, the files as they are.
"""

import subprocess
from functools import cache

import nbformat

from support import ROOT


def _git(*arguments):
    try:
        command = ["git", "-C", ROOT, *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def text(path):
    """The text of a file of the checkout."""
    found = _git("show", f":./{path.relative_to(ROOT).as_posix()}")
    return path.read_text("utf-8") if found is None else found


def files(pattern):
    """The files of the checkout whose path matches a pattern, such as notebooks/*.ipynb."""
    found = _git("ls-files", "--", pattern)
    return sorted(ROOT.glob(pattern) if not found else map(ROOT.joinpath, found.splitlines()))


def notebook(path):
    """A notebook of the checkout."""
    return nbformat.reads(text(path), as_version=nbformat.NO_CONVERT)

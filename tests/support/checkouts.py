"""A clone of the working tree as it stands, for tests that change it."""

import os
import shutil
import subprocess

import pytest

from support import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A clone of the working tree as it stands, in a folder of its own."""
    index = os.environ | {"GIT_INDEX_FILE": str(tmp_path / "index")}
    who = ["-c", "user.name=msif", "-c", "user.email=msif@localhost"]

    def git(*arguments, folder=ROOT, env=None):
        command = ["git", "-C", folder, *arguments]
        return subprocess.run(command, check=True, env=env, capture_output=True, text=True).stdout

    git("add", "--all", env=index)
    tree = git("write-tree", env=index).strip()
    commit = git(*who, "commit-tree", "-m", "the tree as it stands", tree).strip()
    folder = tmp_path / "study"
    git("clone", "--quiet", "--shared", "--no-checkout", ROOT, folder, folder=tmp_path)
    git("checkout", "--quiet", "--detach", commit, folder=folder)
    yield folder
    shutil.rmtree(folder)

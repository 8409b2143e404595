"""The command line on one's own pair, in the tests' own process."""

import pandas
import pytest

from msif.__main__ import main


def files_of(pair, work):
    named = {name: pair / name for name in ("base", "tuned")}
    named |= {name: pair / f"{name}.jsonl" for name in ("documents", "rows")} | {"folder": work}
    return [x for name, path in named.items() for x in (f"--{name}", str(path))]


def run(*arguments):
    """Exit code of the command in this process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.showwarning", None)  # main replaces it
        return main([str(x) for x in arguments])


def table_of(work):
    [path] = work.glob("scores-*/top.parquet")
    return pandas.read_parquet(path)

"""Tests use no network and one thread; with MSIF_REQUIRE=1 (as in CI), skipped means failed, unless
the reason says that it is optional."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

OPTIONAL = "Skipped: optional: "  # of a package that nothing else needs


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whichever ran before it."""
    import torch

    torch.manual_seed(0)


def required(report):
    """Turn a skip into a failure that says why; a notebook's cell may be tagged `nbval-skip`."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    meant = hasattr(report, "wasxfail") or ".ipynb::" in report.nodeid or OPTIONAL in reason
    if report.skipped and os.environ.get("MSIF_REQUIRE") == "1" and not meant:
        report.outcome, report.longrepr = (
            "failed",
            f"skipped, and MSIF_REQUIRE=1 forbids that: {reason}",
        )
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return required((yield))

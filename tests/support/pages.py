"""README, docs/ and the files that their numbers are of."""

import json

from support import ROOT

REPORTS = ROOT / "reports"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text("utf-8") for path in PAGES}
README = TEXT["README.md"]
FINDINGS = "\n\n".join(TEXT[name] for name in ("findings.md", "prediction.md"))


def report(name, profile="full"):
    return json.loads((REPORTS / profile / f"{name}.metrics.json").read_text())


def benchmark(name):
    return json.loads((REPORTS / "benchmarks" / f"{name}.json").read_text())

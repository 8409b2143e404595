"""One page over all reports: ``python -m msif.study.pipeline.overview`` writes reports/index.html.

First the table of `front`. Then for each notebook its question, its key figure, what it found and
the number, and links to every report of every profile under reports/. Every number comes from a
file that a stage wrote, and every sentence is filled in from these numbers: where one contradicts
the study's hopes, the sentence says so. The page loads nothing; equal reports give equal bytes. How
it looks: overview.html.j2.
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path

from msif.core.extras import need
from msif.study.paths import root
from msif.study.pipeline import front, traced
from msif.study.pipeline.findings import FINDINGS, Finding

jinja2 = need("jinja2")

# Whose numbers head the page, where they have the notebook; the others follow by name.
FIRST = ("full", "tiny")
# Which figure of a notebook is the key figure, counted from 0, where it writes no .png and it is
# not the first.
FIGURES = {"testbed": 1}


@dataclass(frozen=True)
class Report:
    """One executed notebook of one profile.

    finding: None without metrics or without a sentence for them. figure: the bytes of a PNG.
    """

    profile: str
    name: str
    title: str
    question: str
    finding: Finding | None
    figure: bytes | None

    @property
    def page(self):
        """Where it is, from reports/."""
        return f"{self.profile}/{self.name}.html"


def read(folder, profile, name):
    """The `Report` of reports/<profile>/<name>.ipynb.

    Raises ValueError naming a metrics file that lacks what a sentence needs.
    """
    notebook = json.loads((folder / profile / f"{name}.ipynb").read_text("utf-8"))
    start, stage = "".join(notebook["cells"][0]["source"]), name.split("_", 1)[-1]
    title = re.search(r"^# (.+)$", start, re.M)
    question = re.search(r"\*\*Question\.\*\*(.+?)(?:\n\s*\n|\Z)", start, re.S)
    image = folder / profile / f"{stage}.png"
    return Report(
        profile,
        name,
        title=_plain(title) or name,
        question=_plain(question),
        finding=finding_of(folder / profile / f"{stage}.metrics.json", stage, name),
        figure=image.read_bytes() if image.exists() else _image(notebook, FIGURES.get(stage, 0)),
    )


def _plain(found):
    """What a match caught, on one line and without markdown's marks; "" for no match."""
    return " ".join(re.sub(r"[*`]", "", found[1]).split()) if found else ""


def finding_of(metrics, stage, name):
    """The `Finding` of a stage's metrics file; None where it or the stage's sentence is missing."""
    if not metrics.exists() or stage not in FINDINGS:
        return None
    try:
        return FINDINGS[stage](json.loads(metrics.read_text("utf-8")))
    except (KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{metrics}: {type(error).__name__}: {error}; the sentence about {stage} needs what "
            f"the notebook {name} writes there: run it again, or see "
            f"msif/study/pipeline/findings.py"
        ) from error


def _image(notebook, number):
    """A figure of an executed notebook: the one of this number, or the last; None without any."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    found = [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return base64.b64decode("".join(found[min(number, len(found) - 1)])) if found else None


def collect(folder):
    """{notebook: [Report of each profile that has it, the headline's first]}.

    Raises FileNotFoundError where there is none.
    """
    names = sorted(path.name for path in folder.glob("*") if path.is_dir())
    profiles = [p for p in FIRST if p in names] + [p for p in names if p not in FIRST]
    found = {}
    for profile in profiles:
        for path in sorted((folder / profile).glob("[0-9]*_*.ipynb")):
            if path.with_suffix(".html").exists():
                found.setdefault(path.stem, []).append(read(folder, profile, path.stem))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no report: expected <profile>/<notebook>.html and .ipynb in it; "
            f"make some with: make study"
        )
    return dict(sorted(found.items()))


def page(folder):
    """The page over a folder of reports, as HTML."""
    folder = Path(folder)
    found = collect(folder)
    table = traced.rows(folder)
    # The profiles of the notebook that most have come first, in its order.
    widest_first = sorted(found.values(), key=len, reverse=True)
    profiles = list(dict.fromkeys(r.profile for reports in widest_first for r in reports))
    return _template().render(
        front=[_front(row) for row in table],
        answers=front.answers(folder, table),
        notebooks=list(found.values()),
        profiles=profiles,
        explorers=[
            (profile, name)
            for profile in profiles
            for name in ("explorer", "facts")
            if (folder / profile / f"{name}.html").exists()
        ],
        rows=[_row(name, reports, profiles) for name, reports in found.items()],
        benchmarks=[_benchmark(path) for path in sorted(folder.glob("benchmarks/*.md"))],
    )


def _front(row):
    """A line of the front table; cells: (name, number and interval) of each column."""
    return {
        "head": front.HEAD,
        "profile": row.profile,
        "question": row.question,
        "size": row.size,
        "cells": [row.said(column) for column in traced.COLUMNS],
    }


def _row(name, reports, profiles):
    """A notebook's row of the table: its Report of each profile, or None."""
    of = {report.profile: report for report in reports}
    what = next((report.finding.what for report in reports if report.finding), "")
    return {"name": name, "what": what, "reports": [of.get(profile) for profile in profiles]}


def _benchmark(path):
    title = re.search(r"^# (.+)$", path.read_text("utf-8"), re.M)
    return {"file": path.name, "name": path.stem, "title": title[1] if title else ""}


def _template():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = _base64
    environment.filters["minus"] = _minus
    return environment.get_template("overview.html.j2")


def _base64(data):
    return base64.b64encode(data).decode()


def _minus(text):
    """The text with a minus sign before its negative numbers, in place of a hyphen."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def write():
    """Write reports/index.html; returns its path.

    Raises ValueError and FileNotFoundError as `page` does, before it writes.
    """
    path = root() / "reports" / "index.html"
    path.write_text(page(path.parent), encoding="utf-8", newline="\n")
    return path


def main():
    """The command line, which takes nothing."""
    print(write())


if __name__ == "__main__":
    main()

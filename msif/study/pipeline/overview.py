"""One page over all reports: ``python -m msif.study.pipeline.overview`` writes reports/index.html.

For each notebook its question, its key figure, what it found and the number, and links to every report of every profile under
reports/. Every number comes from a file that a stage wrote, and every sentence is filled in from these numbers: where one
contradicts the study's hopes, the sentence says so. The page loads nothing; equal reports give equal bytes.
"""

import base64
import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from msif.study.paths import root
from msif.study.pipeline.findings import FINDINGS

FIRST = (
    "full",
    "tiny",
)  # whose numbers head the page, where they have the notebook; the others follow by name
FIGURES = {
    "testbed": 1
}  # which figure of a notebook is the key figure, counted from 0, where it writes no .png and it is not the first
TITLE = "Which pre-training documents made a fine-tuned model say so?"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5a6373; --page: #fbfbf9; --card: #ffffff; --line: #dcdfe4; --link: #0b57a4; --mark: #0b6b4f }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaf0; --soft: #a3adbd; --page: #14171c; --card: #1c2128; --line: #363d48; --link: #8ec1ff; --mark: #6fd6b0 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
       font: 1.0625rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word }
a { color: var(--link) } a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
h1 { font-size: 1.9rem; line-height: 1.2 } h2 { margin: 0 0 .3rem; font-size: 1.3rem; line-height: 1.3 }
article { margin: 1.5rem 0; padding: 1.2rem 1.3rem; border: 1px solid var(--line); border-radius: .6rem; background: var(--card) }
.question { margin: 0 0 1rem; color: var(--soft) } .number { display: block; font-size: 2.1rem; font-weight: 650; line-height: 1.2; color: var(--mark) }
.what { color: var(--soft) } .claim { margin: .6rem 0 1rem }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; padding: .5rem; border-radius: .4rem; background: #ffffff }
figure { margin: 1rem 0 } .links { margin: 0; font-size: .95rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .95rem } caption { text-align: left; color: var(--soft); padding-bottom: .5rem }
th, td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top } td { white-space: nowrap }
.skip { position: absolute; left: -99rem } .skip:focus { position: static }
"""


@dataclass(frozen=True)
class Report:
    """One executed notebook of one profile. finding: (number, what it counts, claim), or None without metrics or without a sentence for them."""

    profile: str
    name: str
    title: str
    question: str
    finding: tuple | None
    figure: bytes | None

    @property
    def page(self):
        return f"{self.profile}/{self.name}.html"


def read(folder, profile, name):
    """The `Report` of reports/<profile>/<name>.ipynb. Raises ValueError naming a metrics file that lacks what a sentence needs."""
    notebook = json.loads((folder / profile / f"{name}.ipynb").read_text("utf-8"))
    start, stage = "".join(notebook["cells"][0]["source"]), name.split("_", 1)[-1]
    title = re.search(r"^# (.+)$", start, re.M)
    question = re.search(r"\*\*Question\.\*\*(.+?)(?:\n\s*\n|\Z)", start, re.S)
    plain = lambda found: " ".join(re.sub(r"[*`]", "", found[1]).split()) if found else ""
    metrics, image = folder / profile / f"{stage}.metrics.json", folder / profile / f"{stage}.png"
    finding = None
    if metrics.exists() and stage in FINDINGS:
        try:
            finding = FINDINGS[stage](json.loads(metrics.read_text("utf-8")))
        except (KeyError, TypeError, StopIteration) as error:
            raise ValueError(
                f"{metrics}: {type(error).__name__}: {error}; the sentence about {stage} needs what the notebook {name} "
                f"writes there: run it again, or see msif/study/pipeline/findings.py"
            ) from error
    return Report(
        profile,
        name,
        plain(title) or name,
        plain(question),
        finding,
        image.read_bytes() if image.exists() else _image(notebook, FIGURES.get(stage, 0)),
    )


def _image(notebook, number):
    """A figure of an executed notebook, as PNG: the one of this number, or the last; None where there is none."""
    outputs = (output for cell in notebook["cells"] for output in cell.get("outputs", []))
    found = [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    return base64.b64decode("".join(found[min(number, len(found) - 1)])) if found else None


def collect(folder):
    """{notebook: [Report of each profile that has it, the headline's first]}. Raises FileNotFoundError where there is none."""
    profiles = sorted(
        (p.name for p in folder.glob("*") if p.is_dir()),
        key=lambda p: (FIRST.index(p) if p in FIRST else len(FIRST), p),
    )
    found = {}
    for profile in profiles:
        for path in sorted((folder / profile).glob("[0-9]*_*.ipynb")):
            if path.with_suffix(".html").exists():
                found.setdefault(path.stem, []).append(read(folder, profile, path.stem))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no report: expected <profile>/<notebook>.html and .ipynb in it; make some with: make study"
        )
    return dict(sorted(found.items()))


def page(folder):
    """The page over a folder of reports, as HTML."""
    folder = Path(folder)
    found = collect(folder)
    profiles = list(
        dict.fromkeys(
            report.profile
            for reports in sorted(found.values(), key=len, reverse=True)
            for report in reports
        )
    )
    explorers = [p for p in profiles if (folder / p / "explorer.html").exists()]
    body = [
        f'<a class="skip" href="#reports">Skip to the reports</a><header><h1>{TITLE}</h1>',
        "<p>What each notebook of this study asks, and what it found. Numbers are read from the files that the notebooks wrote; each "
        "links to the whole report.</p>",
        _explorers(explorers),
        '</header><main id="reports">',
        *(_article(reports) for reports in found.values()),
        _table(found, profiles),
        _benchmarks(folder),
        "</main>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(filter(None, body))
        + "</body></html>\n"
    )


def _explorers(profiles):
    links = ", ".join(f'<a href="{p}/explorer.html">{escape(p)}</a>' for p in profiles)
    return (
        f"<p><strong>Influence explorer</strong>, to look at single answers and their documents: {links}</p>"
        if links
        else ""
    )


def _article(reports):
    first, name = reports[0], reports[0].name
    number, what, claim = (
        re.sub(r"(?<!\w)-(?=\d)", "−", text) for text in first.finding or ("", "", "")
    )
    parts = [
        f'<article id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title"><a href="{first.page}">{escape(first.title)}</a></h2>',
        f'<p class="question">{escape(first.question)}</p>' if first.question else "",
    ]
    if first.finding:
        parts.append(
            f'<p><span class="number">{escape(number)}</span> <span class="what">{escape(what)}</span></p><p class="claim">{escape(claim)}</p>'
        )
    if first.figure:
        alt = f"Key figure of the report, profile {first.profile}. {claim}".strip()
        parts.append(
            f'<figure><img loading="lazy" alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(first.figure).decode()}"></figure>'
        )
    links = " · ".join(f'<a href="{r.page}">{escape(r.profile)}</a>' for r in reports)
    parts.append(
        f'<p class="links">Profile {escape(first.profile)}. Reports: {links}</p></article>'
    )
    return "\n".join(filter(None, parts))


def _table(found, profiles):
    head = "".join(f'<th scope="col">{escape(p)}</th>' for p in profiles)
    rows = []
    for name, reports in found.items():
        of = {r.profile: r for r in reports}
        cells = "".join(
            f'<td><a href="{of[p].page}">{escape(of[p].finding[0]) if of[p].finding else "report"}</a></td>'
            if p in of
            else "<td>–</td>"
            for p in profiles
        )
        what = next((r.finding[1] for r in reports if r.finding), "")
        rows.append(
            f'<tr><th scope="row">{escape(name)}<br><small class="what">{escape(what)}</small></th>{cells}</tr>'
        )
    return (
        f'<article aria-labelledby="profiles"><h2 id="profiles">Every profile</h2><div class="wide" tabindex="0" role="region" aria-labelledby="profiles"><table>'
        f'<caption>One key number a report; each links to it.</caption><thead><tr><th scope="col">notebook</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></article>"
    )


def _benchmarks(folder):
    rows = []
    for path in sorted(folder.glob("benchmarks/*.md")):
        title = re.search(r"^# (.+)$", path.read_text("utf-8"), re.M)
        rows.append(
            f'<li><a href="benchmarks/{escape(path.name)}">{escape(path.stem)}</a>{f": {escape(title[1])}" if title else ""}</li>'
        )
    return (
        f'<article aria-labelledby="benchmarks"><h2 id="benchmarks">Cost and precision</h2><ul>{"".join(rows)}</ul></article>'
        if rows
        else ""
    )


def write():
    """Write reports/index.html; returns its path. Raises ValueError and FileNotFoundError as `page` does, before it writes."""
    path = root() / "reports" / "index.html"
    path.write_text(page(path.parent), encoding="utf-8", newline="\n")
    return path


if __name__ == "__main__":
    print(write())

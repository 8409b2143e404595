"""docs/claims.md: every number that is quoted (`phrases`), and what it rests on.

`python tests/support/claims.py` writes it; `test_quoted_numbers.py` holds the pages to the phrases,
and that page to what is made here.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from support import cards
from support.pages import FINDINGS
from support.phrases import of_answers, of_table, readme
from support.phrases_of_findings import findings
from support.quoted import REPORTS
from support.quoted_tables import cells, tables

PAGE = REPORTS.parent / "docs" / "claims.md"

HEAD = """# Claims: what is quoted, and what it rests on

A line for every number of README, of the cards of `reports/index.html` (profile `full`) and of
[findings](findings.md) and [prediction](prediction.md): its 95 % interval in brackets, or ± one
standard error, – where the record has neither; over how many worlds it is a mean (corpora, and
models that give scores); its file; its key there, behind −1 × where the page turns the sign.
Shares and their differences are of 1, also where a page says % or points. An end of an interval,
and an error, has a line, whose key says so, only where its number is not quoted beside it.
**With one corpus and one model, an error is over questions or halves alone, and says nothing of
other worlds.** An interval over several models is by Student's t.

`python tests/support/claims.py` writes this page, and `tests/study/pipeline/test_quoted_numbers.py`
holds it, and the pages, to the files.
"""
TITLES = "| claim | value | interval or error | corpora, models | file in `reports/` | key |"


def line(claim, number):
    """A line of the page."""
    value = f"{number:3}" if isinstance(number.value, float) else f"{number}"
    worlds = f"{number.corpora}, {number.models}"
    key = ": ".join(filter(None, (number.key.replace("|", "∣"), number.part)))
    return f"| {claim} | {value} | {number.error} | {worlds} | `{number.file}` | {key} |"


def page(text):
    """docs/claims.md. text: that of both pages, for the lines of its tables."""
    spoken = {
        "README and index: the table": of_table(),
        "README and index: below the table": _spoken(of_answers()),
        "README": _spoken(readme()),
        "Index": [
            (stage, n) for stage in cards.STAGES for said in cards.said(stage) for n in alone(said)
        ],
        "Findings": _spoken(findings()),
        "Findings: its tables": [
            (f"{table.about}{cell}: {title}", number)
            for table in tables()
            for titles, found in [cells(text, table)]
            for cell, _ in found
            for title, number in zip(titles, table.row(table.records.get(cell, cell)), strict=True)
            if number.value is not None
        ],
    }
    parts = [HEAD]
    for title, found in spoken.items():
        lines = "\n".join(line(*x) for x in found)
        parts.append(f"## {title}\n\n{TITLES}\n|---|---|---|---|---|---|\n{lines}\n")
    return "\n".join(parts)


def _spoken(phrases):
    return [(f"“{x}”", n) for x in phrases for n in alone(x.numbers)]


def alone(numbers):
    """Those of a phrase's numbers that have a line of their own: no end or error of another."""
    whole = [(n.file, n.key) for n in numbers if not n.part]
    return [n for n in numbers if not n.part or (n.file, n.key) not in whole]


if __name__ == "__main__":
    PAGE.write_text(page(FINDINGS), "utf-8")

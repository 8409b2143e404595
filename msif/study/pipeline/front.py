"""The front table: influence by one curvature and by two, the best rival and text search.

    python -m msif.study.pipeline.front            print it, as README has it
    python -m msif.study.pipeline.front --write    put it into README, and what the second stage
                                                   adds into docs/findings.md, between their marks

`traced` has the numbers and says what they are.
"""

import argparse
import re
import textwrap

from msif.core.files import write_text
from msif.study.paths import root
from msif.study.pipeline.traced import (
    ALONE,
    COLUMNS,
    QUESTIONS,
    difference,
    differences,
    read,
    rows,
    value,
)

HEAD = ("profile, question", "models (questions)", *COLUMNS)
MARKS = "<!-- front table -->", "<!-- end of the front table -->"
ADDED = "<!-- second stage -->", "<!-- end of the second stage -->"


def second_stage(folder, found=None):
    """Where the second stage does not help, as the records have it: on which lines multi-stage
    influence is not surely above pre-training alone, and above single-stage."""
    found = rows(folder) if found is None else found

    def unsure(column, which):
        return [x for x in differences(folder, found, column, which) if not x.low > 0]

    parts = []
    if over := unsure(ALONE, "over"):
        what = "over checkpoints, fine-tuning's curvature adds nothing sure on"
        parts.append(f"{what} {_lines(over, numbers=True)}")
    if one := unsure(ALONE, "one"):
        what = "at one checkpoint it adds nothing sure on"
        parts.append(f"{what} {_lines(one)}")
    if single := unsure("single-stage", "one"):
        what = "at one checkpoint multi-stage is not surely above single-stage on"
        parts.append(f"{what} {_lines(single)}")
    return (
        f"Where the second stage does not help: {'; '.join(parts) or 'nowhere in this table'}. "
        f"Sure: the 95 % interval of the paired difference is above 0.{_missing(folder, found)}"
    )


def _missing(folder, found):
    """The lines whose difference nobody recorded."""
    known = [x.row for which in ("one", "over") for x in differences(folder, found, ALONE, which)]
    rest = [f"{row.profile}, {QUESTIONS[row.condition]}" for row in found if row not in known]
    return f" Not recorded: {_listed(rest)}." if rest else ""


def _lines(found, numbers=False):
    """Lines of the table by profile: "full (plain, same words) and stories (plain)"."""
    profiles = {}
    for x in found:
        said = f" {x}" if numbers else ""
        profiles.setdefault(x.row.profile, []).append(f"{QUESTIONS[x.row.condition]}{said}")
    return _listed([f"{name} ({', '.join(each)})" for name, each in profiles.items()])


def _listed(words):
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def trust(folder, found=None):
    """Should one trust it on a model of one's own? What the records of the first profile with a
    plain line say; "" without."""
    found = rows(folder) if found is None else found
    at = next((row for row in found if row.condition == "plain"), None)
    exact, lds = (
        read(folder / at.profile / f"{x}.metrics.json") if at else {}
        for x in ("exact", "retraining")
    )
    problems = exact.get("two_stages", {})
    if not problems or not lds:
        return ""
    of, models = lds["lds"], max(int(name.split("_")[-2]) for name in lds["lds"])
    return (
        "Should I trust it on my model? As a list of documents to read first, where text search "
        "does not do as well; not for the order of all documents, nor for sizes. On "
        f"{at.profile} the documents that state the fact have an MRR of "
        f"{at.cells['multi-stage'].one.mean:.2f}. Over all documents, on the {len(problems)} "
        "problems of notebook 04, the order has a Spearman of "
        f"{_range(problems, 'EK-FAC', 'spearman')} with that of exact influence (dot product of "
        f"gradients {_range(problems, 'gradient dot', 'spearman')}), the sizes a Pearson of "
        f"{_range(problems, 'EK-FAC', 'pearson')} ({_range(problems, 'gradient dot', 'pearson')}). "
        "With what retraining does, on one corpus, scores of one model have a rank correlation of "
        f"{of['multi_stage_normalised_1_models']:.2f}, BM25 {of['bm25_raw_1_models']:.2f}, "
        f"counting the sentences that state the fact "
        f"{of[f'statements_raw_{models}_models']:.2f}; noise allows {lds['ceiling']:.2f}. All of "
        "it is of small models."
    )


def _range(problems, method, metric):
    """A method's least and greatest number over the problems of notebook 04, without products."""
    found = [at[f"{method}, 0 products"][metric] for at in problems.values()]
    low, high = (f"{round(x, 2) + 0:.2f}".replace("-", "−") for x in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def markdown(folder):
    """The table, its sentence and the answer about trust, as README has them."""
    found = rows(folder)
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in found:
        cells = [_joined(*row.said(column)) for column in COLUMNS]
        lines.append([f"`{row.profile}`, {QUESTIONS[row.condition]}", row.size, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(_wrapped, filter(None, answers(folder, found)))])


def answers(folder, found):
    """What stands below the table: (what it is about, the rest) of each; [] without a table."""
    if not found:
        return []
    both = second_stage(folder, found), trust(folder, found)
    return [re.fullmatch(r"(.+?[:?]) (.+)", text).groups() for text in both if text]


def _wrapped(answer):
    return textwrap.fill("**{}** {}".format(*answer), 108, break_on_hyphens=False)


def _joined(name, one, over):
    return " ".join(filter(None, (name, one, f"({over})" if over else "")))


def added(folder):
    """What fine-tuning's curvature adds on each line, by form, at one checkpoint and over several,
    as docs/findings.md has it: multi-stage influence less that with T₂ := I."""
    titles = "what T₂ adds", "one checkpoint, raw", "normalised", "over checkpoints, raw"
    lines = [(*titles, "normalised"), ["---"] * 5]
    for row in rows(folder):
        records = read(folder / row.profile / "fact_tracing.json")
        cells = [
            _added(folder, row, records, end, form)
            for end in ("", "_trajectory")
            for form in ("raw", "normalised")
        ]
        lines.append([f"{row.profile}, {QUESTIONS[row.condition]}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _added(folder, row, records, end, form):
    names = f"multi_stage{end}", f"pretraining_only{end}"
    both = [value(records, row.condition, name, form) for name in names]
    found = difference(folder, row, *both) if all(both) else None
    return str(found) if found else "–"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put both into the pages")
    folder = root() / "reports"
    made = markdown(folder)
    if not parser.parse_args().write:
        print(made)
        return
    _put(root() / "README.md", MARKS, made)
    _put(root() / "docs/findings.md", ADDED, added(folder))


def _put(page, marks, made):
    start, end = map(re.escape, marks)
    inside = re.compile(f"(?<={start}\n).*?(?={end})", re.S)
    write_text(page, inside.sub(lambda _: f"{made}\n", page.read_text("utf-8"), count=1))


if __name__ == "__main__":
    main()

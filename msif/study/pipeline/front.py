"""The front table: influence by one curvature and by two, the best rival and text search.

    python -m msif.study.pipeline.front            print it, as README has it
    python -m msif.study.pipeline.front --write    put it into README, and what the second stage
                                                   adds into docs/findings.md, between their marks

`traced` has the numbers and says what they are.
"""

import argparse
import re
import textwrap
from statistics import fmean

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


# What multi-stage influence is held against: a column, over checkpoints or at one.
AGAINST = ((ALONE, True), (ALONE, False), ("single-stage", True), ("single-stage", False))


def second_stage(folder, found=None):
    """Where the second stage does not help, as the records have it: on which lines multi-stage
    influence is not surely above pre-training alone, and above single-stage."""
    found = rows(folder) if found is None else found
    parts, missing, compared = [], {}, False
    for column, over in AGAINST:
        where = f"{column} {'over checkpoints' if over else 'at one checkpoint'} on"
        known = differences(folder, [row for row in found if row.over == over], column)
        compared |= any(x for _, x in known)
        level = [(row, x) for row, x in known if x and x.low <= 0 <= x.high]
        if len(level) == sum(x is not None for _, x in known) > 1:
            parts.append(f"not surely above {where} any line recorded")
        elif level:
            parts.append(f"not surely above {where} {_lines(level)}")
        if less := [(row, x) for row, x in known if x and x.high < 0]:
            parts.append(f"surely below {where} {_lines(less, numbers=True)}")
        rest = {(row.profile, row.condition): (row, x) for row, x in known if not x}
        missing[column] = missing.get(column, {}) | rest
    if not compared:
        return f"Where two stages do not help: nobody recorded it.{_missing(missing)}"
    return (
        f"Where two stages do not help: multi-stage is "
        f"{'; '.join(parts) or 'surely above both wherever that is recorded'}. "
        f"Sure: by the 95 % interval of the paired difference.{_missing(missing)}"
    )


def _missing(rest):
    """The lines whose difference nobody recorded, at one checkpoint or over several; rest: {column:
    {line: (row, None)}}."""
    said = [f"against {column} on {_lines(x.values())}" for column, x in rest.items() if x]
    return f" Not recorded: {'; '.join(said)}." if said else ""


def _lines(found, numbers=False):
    """Lines of the table by profile: "full (plain, same words) and stories (plain)"."""
    profiles = {}
    for row, x in found:
        said = f" {x}" if numbers else ""
        question = row.question.removesuffix(", over checkpoints")
        profiles.setdefault(row.profile, []).append(f"{question}{said}")
    return _listed([f"{name} ({', '.join(each)})" for name, each in profiles.items()])


def _listed(words):
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def trust(folder, found=None):
    """Should one trust it on a model of one's own? What the records of the first profile say that
    has a line among the same words; "" without."""
    found = rows(folder) if found is None else found
    same = [row for row in found if row.condition == "matched" and row.cells["multi-stage"]]
    same = [row for row in same if row.profile == same[0].profile]
    at = same[0] if same and not same[0].over else None
    exact, lds = (
        read(folder / at.profile / f"{x}.metrics.json") if at else {}
        for x in ("exact", "retraining")
    )
    problems = exact.get("two_stages", {})
    if not problems or not lds:
        return ""
    least = at_less_damping(folder / at.profile, exact["damping"])
    of, models = lds["lds"], max(int(name.split("_")[-2]) for name in lds["lds"])
    return (
        "Should I trust it on my model? As a list of documents to read first, where text search "
        f"cannot tell them apart: {_first(folder, same)}. Not for the order of all documents, nor "
        f"for sizes: on the {len(problems)} problems of notebook 04, at damping "
        f"{exact['damping']:g}{least}, the order has a Spearman of "
        f"{_range(problems, 'EK-FAC', 'spearman')} with that of exact influence (dot product of "
        f"gradients {_range(problems, 'gradient dot', 'spearman')}), the sizes a Pearson of "
        f"{_range(problems, 'EK-FAC', 'pearson')} ({_range(problems, 'gradient dot', 'pearson')}). "
        "With what retraining changed, on one corpus, one model's scores have a rank correlation "
        "of "
        f"{of['multi_stage_normalised_1_models']:.2f}, BM25 {of['bm25_raw_1_models']:.2f}, "
        f"counting the sentences that state the fact "
        f"{of[f'statements_raw_{models}_models']:.2f}; noise allows at most {lds['ceiling']:.2f}. "
        "All models are small."
    )


def _first(folder, same):
    """Which documents come first among those of the same words; same: the rows of one profile or
    more."""
    profile, condition = same[0].profile, same[0].condition
    found = {row.over: row.cells["multi-stage"] for row in same if row.profile == profile}
    ours, along = found[False], found.get(True)
    over = f", over checkpoints {along.mean:.2f}" if along else ""
    rule = value(read(folder / profile / "fact_tracing.json"), condition, "word_order")
    beside = f" (a rule of word order alone: {rule.mean:.2f})" if rule else ""
    return (
        f"on {profile}, of two sentences of the same words the one that states the fact is ahead "
        f"in {ours.mean:.2f} of the pairs{over}{beside}"
    )


def at_less_damping(folder, damping):
    """EK-FAC's order at the least damping that notebook 04 tried, where that is less than this."""
    found = {}
    for r in read(folder / "exact.json") or []:
        if (r["method"], r["stages"], r["products"]) == ("EK-FAC", 2, 0):
            found.setdefault(r["damping"], {}).setdefault(r["problem"], []).append(r["spearman"])
    if not found or min(found) >= damping:
        return ""
    low, high = (f"{pick(map(fmean, found[min(found)].values())):.2f}" for pick in (min, max))
    return f" (at {min(found):g} less: {low} to {high})"


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
        cells = [" ".join(filter(None, row.said(column))) for column in COLUMNS]
        lines.append([f"`{row.profile}`, {row.question}", row.size, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(_wrapped, filter(None, answers(folder, found)))])


def answers(folder, found):
    """What stands below the table: (what it is about, the rest) of each; [] without a table."""
    if not found:
        return []
    both = second_stage(folder, found), trust(folder, found)
    return [re.fullmatch(r"(.+?[:?]) (.+)", text).groups() for text in both if text]


def _wrapped(answer):
    return textwrap.fill("**{}** {}".format(*answer), 110, break_on_hyphens=False)


def added(folder):
    """What fine-tuning's curvature adds on each line, by form, at one checkpoint and over several,
    as docs/findings.md has it: multi-stage influence less that with T₂ := I."""
    titles = "what it adds", "one checkpoint, raw", "normalised", "over checkpoints, raw"
    lines = [(*titles, "normalised"), ["---"] * 5]
    for row in (row for row in rows(folder) if row.condition in QUESTIONS and not row.over):
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

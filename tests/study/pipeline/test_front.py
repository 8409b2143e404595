"""The front table where it is read: README, the index; what the second stage adds, in findings."""

import re

from support.pages import README, REPORTS, TEXT
from support.traced_records import record, reports, world

from msif.study.pipeline import front, overview, traced


def test_the_readme_has_the_table_as_it_is_made_from_the_reports():
    start, end = front.MARKS
    kept = README.split(f"{start}\n")[1].split(f"\n{end}")[0]
    assert kept == front.markdown(REPORTS), "python -m msif.study.pipeline.front --write"


def test_the_index_has_the_table_line_by_line():
    page, found = overview.page(REPORTS), traced.rows(REPORTS)
    table = re.search(r'<table class="front".*?</table>', page, re.S)[0]
    lines = re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]
    shown = [
        [
            " ".join(re.sub(r"<.*?>", " ", cell).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", x, re.S)
        ]
        for x in lines
    ]
    expected = [
        [f"{row.profile}, {row.question}", row.size]
        + [" ".join(filter(None, row.said(column))) for column in traced.COLUMNS]
        for row in found
    ]
    assert shown == expected
    for about, rest in front.answers(REPORTS, found):
        assert about in page and rest.replace("'", "&#39;") in page


def test_the_command_prints_it_and_writes_it_where_the_marks_are(tmp_path, monkeypatch, capsys):
    reports(tmp_path / "reports", world())
    (tmp_path / "dvc.yaml").touch()
    start, end = front.MARKS
    (tmp_path / "README.md").write_text(f"before\n{start}\nold\n{end}\nafter\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/findings.md").write_text("\n".join(["a", *front.ADDED, "b"]))
    monkeypatch.chdir(tmp_path)
    made = front.markdown(tmp_path / "reports")
    monkeypatch.setattr("sys.argv", ["front"])
    front.main()
    assert capsys.readouterr().out == f"{made}\n"
    monkeypatch.setattr("sys.argv", ["front", "--write"])
    front.main()
    assert (tmp_path / "README.md").read_text() == f"before\n{start}\n{made}\n{end}\nafter\n"
    added, (start, end) = front.added(tmp_path / "reports"), front.ADDED
    assert (tmp_path / "docs/findings.md").read_text() == f"a\n{start}\n{added}\n{end}\nb"


def test_what_the_second_stage_adds_is_by_form_and_the_findings_have_it(tmp_path):
    records = [*world(), record("pretraining_only", 0.9)]
    table = front.added(reports(tmp_path, records, low=0.01)).splitlines()
    assert table[2] == (
        "| full, plain | – | +0.050 [+0.010, +0.200] | – | +0.050 [+0.010, +0.200] |"
    )
    start, end = front.ADDED
    kept = TEXT["findings.md"].split(f"{start}\n")[1].split(f"\n{end}")[0]
    assert kept == front.added(REPORTS), "python -m msif.study.pipeline.front --write"

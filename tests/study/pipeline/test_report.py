"""Reports are read in a browser without network, and equal notebooks give equal pages."""

import base64
import json
import subprocess
import sys
from types import SimpleNamespace

import bs4
import nbformat
import pytest
from IPython.core.formatters import DisplayFormatter
from IPython.core.pylabtools import select_figure_formats
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from support import staged

from msif.study import figures
from msif.study.pipeline.report import elsewhere, in_short, mathml, publish, render, to_html

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
MARKDOWN = r"""# Score of $\theta_{ft}$

Inline $s = -g^\top H^{-1} g * a * b_1 * c_2$, not $5 or $6, nor `$x_i$`; but $a < b$.

$$
\begin{aligned}
 u &= H^{-1} \nabla f \\
 s &= -g^\top u
\end{aligned}
$$

## A figure
"""


def page(markdown=MARKDOWN, html="<b>bold</b>"):
    outputs = [
        new_output("display_data", data) for data in ({"image/png": PNG}, {"text/html": html})
    ]
    cells = [new_markdown_cell(markdown, id="a"), new_code_cell("1", id="b", outputs=outputs)]
    return new_notebook(cells=cells)


def test_a_page_loads_nothing_and_runs_nothing():
    html = to_html(page(), "demo")
    assert elsewhere(html) == [] and "<script" not in html
    assert (
        f"data:image/png;base64,{PNG}" in html
        and "<b>bold</b>" in html
        and "<title>demo</title>" in html
    )


def test_code_is_folded_and_what_it_shows_is_not():
    html = to_html(page(), "demo")
    folded = html.split('<details class="code">')[1].split("</details>")[0]
    assert html.count("<details") == html.count("</details>") == 1
    assert "jp-InputArea" in folded and PNG not in folded and "<b>bold</b>" not in folded


def test_formulas_become_mathml_and_prices_and_code_do_not():
    html = to_html(page(), "demo")
    assert html.count('<math display="inline">') == 3 and html.count('<math display="block">') == 1
    assert "not $5 or $6, nor <code>$x_i$</code>" in html
    assert "<em>" not in html  # no asterisk or underscore of a formula was taken for emphasis
    assert r"\theta" not in html and r"\begin" not in html and "<mtable" in html


def shown(figure):
    """What a notebook keeps of a figure that the inline backend shows."""
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    select_figure_formats(shell, {"png"}, bbox_inches="tight")
    data, metadata = shell.display_formatter.format(figure)
    figures.plt.close(figure)
    return new_output("display_data", data, metadata=metadata)


def untitled():
    figure, ax = figures.plt.subplots()
    ax.plot([1])
    return figure


def alts(*outputs):
    """The alternative texts of a page of two sections, the outputs in the second."""
    sections = [new_markdown_cell(f"## {name}\n\nText.") for name in ("First", "Second?")]
    cells = [*sections, *(new_code_cell("1", outputs=[x]) for x in outputs)]
    html = to_html(new_notebook(cells=cells), "demo")
    return [image.get("alt") for image in bs4.BeautifulSoup(html, "html.parser").select("img")]


def test_the_alternative_text_of_a_figure_is_its_finding():
    one = figures.shares(["a"], [0.5], [0.1], 'Half of "a" < b,\n& no more', "share")
    many = figures.losses([[2, 1]], [[1, 0.5]], "Both stages learn")
    assert alts(shown(one), shown(many)) == ['Half of "a" < b, & no more', "Both stages learn"]


def test_the_alternative_text_of_a_figure_without_a_finding_is_its_place(caplog):
    """As in notebooks that ran before figures brought it."""
    older = new_output("display_data", {"image/png": PNG})
    place = "in the section “Second?”"
    assert alts(older, shown(untitled())) == [f"Figure 1, {place}", f"Figure 2, {place}"]
    assert caplog.text == ""


@pytest.mark.parametrize("path", staged.files("reports/full/*.ipynb"), ids=lambda p: p.stem)
def test_every_image_of_a_committed_report_would_say_what_it_is(path):
    soup = bs4.BeautifulSoup(to_html(staged.notebook(path), path.stem), "html.parser")
    found = [image.get("alt") for image in soup.select("img")]
    assert len(set(found)) == len(found) and all(found)
    assert not any("No description" in alt for alt in found)


def test_equal_notebooks_give_equal_bytes():
    assert to_html(page(), "demo") == to_html(page(), "demo")


@pytest.mark.parametrize(
    "html",
    [
        '<img src="https://x.org/a.png">',
        "<script src='//x.org/a.js'></script>",
        "<script>import('https://x.org/a.js')</script>",
        '<link rel="stylesheet" href="http://x.org/a.css">',
        '<style>@import "https://x.org/a.css"</style>',
        "<style>p {background: url(https://x.org/a.png)}</style>",
    ],
)
def test_an_output_that_needs_the_network_is_refused(html):
    with pytest.raises(ValueError, match=r"demo: the page would load .*x\.org"):
        to_html(page(html=html), "demo")


def test_a_link_to_follow_is_no_load():
    assert elsewhere(to_html(page(markdown="[paper](https://x.org)"), "demo")) == []


@pytest.mark.parametrize("latex", [r"\nosuchcommand{x}", "{", r"a & b"])
def test_a_formula_that_cannot_be_drawn_is_named(latex):
    with pytest.raises(ValueError) as error:
        mathml(latex)
    assert repr(latex) in str(error.value)


def test_a_profile_without_a_run_says_what_to_run(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="make study PROFILE=tiny"):
        render("tiny")


def test_what_readers_open_is_a_copy_of_what_the_run_made_and_nothing_older(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "results" / "tiny"
    (made / "notebooks").mkdir(parents=True)
    nbformat.write(page(), made / "notebooks" / "01_demo.ipynb")
    (made / "reports").mkdir()
    (made / "reports" / "demo.metrics.json").write_text("{}")
    old = tmp_path / "reports" / "tiny" / "02_gone.html"
    old.parent.mkdir(parents=True)
    old.touch()
    render("tiny")
    publish("tiny")
    there = {path.name for path in old.parent.iterdir()}
    assert there == {"01_demo.ipynb", "01_demo.html", "demo.metrics.json"}
    assert 'href="tiny/01_demo.html"' in (tmp_path / "reports" / "index.html").read_text()


def test_a_page_begins_with_its_finding_where_it_does_not_say_it_itself(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    numbers = {"exact_match": {"finetuned": 0.81, "pretrained": 0.02, "chance": 0.1}}
    (tmp_path / "results/tiny/reports").mkdir(parents=True)
    (tmp_path / "results/tiny/reports/testbed.metrics.json").write_text(json.dumps(numbers))
    first, second, *rest = in_short(page(), "tiny", "01_testbed").cells
    assert first.source == MARKDOWN and len(rest) == 1
    assert second.source.startswith("## In short\n\nOf facts that fine-tuning never mentions, 81%")
    own = page(f"{MARKDOWN}\n## In short\n\nIts own.")
    for nb, name in ((own, "01_testbed"), (page(), "02_factors")):  # said; nothing known
        assert in_short(nb, "tiny", name).cells[0].source == nb.cells[0].source
        assert len(nb.cells) == 2


def test_the_command_renders_what_has_run(tmp_path):
    """As `msif study report` does it, in processes of its own; `msif study index` after it."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("profiles: [tiny]\ntiny: {testbed: {}}\n")
    made = tmp_path / "results" / "tiny" / "notebooks"
    made.mkdir(parents=True)
    for number in (1, 2):
        nbformat.write(page(), made / f"0{number}_demo.ipynb")
    for command, said in ((["report", "tiny"], "tiny"), (["index"], "index.html")):
        done = subprocess.run(
            [sys.executable, "-m", "msif", "study", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert (tmp_path / "reports" / "tiny" / "02_demo.html").exists()

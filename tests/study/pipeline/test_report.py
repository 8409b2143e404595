"""Reports are read in a browser without network, and equal notebooks give equal pages."""

import base64
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from msif.study.pipeline.report import elsewhere, mathml, publish, render, to_html

PNG = base64.b64encode(b"\x89PNG\r\n").decode()
MARKDOWN = r"""# Score of $\theta_{ft}$

Inline $s = -g^\top H^{-1} g * a * b_1 * c_2$, not $5 or $6, nor `$x_i$`; but $a < b$.

$$
\begin{aligned}
 u &= H^{-1} \nabla f \\
 s &= -g^\top u
\end{aligned}
$$
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

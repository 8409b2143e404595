"""Render a profile's executed notebooks for reading: ``python -m msif.study.pipeline.report tiny``.

Pages go to results/<profile>/pages/, and all that a reader wants is copied to reports/<profile>/.
A page needs no network: figures are embedded, no script is loaded, and LaTeX in markdown is MathML,
which browsers draw by themselves. Equal notebooks give equal bytes.
"""

import argparse
import re
import shutil
from concurrent.futures import ProcessPoolExecutor

from msif.core.extras import need
from msif.core.files import write_text
from msif.study.params import known, profiles
from msif.study.paths import published, results
from msif.study.pipeline import overview

jinja2, latex2mathml = need("jinja2"), need("latex2mathml.converter")
nbconvert, markdown = need("nbconvert"), need("nbconvert.filters.markdown_mistune")

# nbconvert's page, less the three blocks that load JavaScript from elsewhere; code is folded.
# MathML leaves it to CSS to align columns. Images get their `alternatives`.
PAGE = """{% extends "lab/index.html.j2" %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>
main { max-width: 70rem; margin: auto }
details.code > summary { cursor: pointer; font-size: small; opacity: 0.6 }
math[display="block"] { margin: 1em 0; max-width: 100%; overflow-x: auto }
mtd[columnalign="right"] { text-align: right; padding-right: 0 }
mtd[columnalign="left"] { text-align: left; padding-left: 0.2em }
</style>{% endblock %}
{% block input_group %}<details class="code"><summary>code</summary>
{{ super() }}</details>{% endblock %}
{% block data_png scoped %}{% set alt = output | get_metadata("alt", "image/png") | escape_html %}
{{- super() | replace("<img ", '<img alt="' ~ alt ~ '" ', 1) }}{% endblock %}
"""


def mathml(latex, display="inline"):
    """MathML of a LaTeX formula, on one line.

    Raises ValueError when a command in it would be shown as it stands."""
    try:
        latex = latex.replace("{aligned}", "{split}")  # latex2mathml knows it by that name only
        found = latex2mathml.convert(" ".join(latex.split()), display=display)
    except Exception as error:  # its errors share no base class and carry no text
        raise ValueError(f"formula {latex!r} is no valid LaTeX: {type(error).__name__}") from error
    unknown = re.search(r"\\[A-Za-z]*|<mi>&</mi>", found)
    if unknown:
        raise ValueError(
            f"formula {latex!r}: latex2mathml does not know {unknown[0]}; write it another way"
        )
    return found.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")  # HTML needs none


class Renderer(markdown.IPythonRenderer):
    """nbconvert's markdown, with formulas drawn by the browser in place of MathJax."""

    def inline_math(self, body):
        """$…$."""
        if body != body.strip():  # as in pandoc: "between $5 and $6" is no formula
            return f"${self.text(body)}$"
        return mathml(body)

    def block_math(self, body):
        """$$…$$."""
        return mathml(body, display="block")

    def latex_environment(self, name, body):
        """An environment outside of dollars."""
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", display="block")


def elsewhere(html):
    """What a page would load over the network, as strings; links to follow do not count."""
    soup = need("bs4").BeautifulSoup(html, features="html.parser")
    sources = [tag.get("src") or tag.get("href") for tag in soup.select("[src], link[href]")]
    code = "\n".join(tag.get_text() for tag in soup.select("style, script"))
    return [x for x in sources if re.match(r"(https?:)?//", x)] + re.findall(
        r"""(?:\burl\(|@import|\bimport\()\s*["']?(?:https?:)?//[^"')\s]*""", code
    )


def alternatives(nb, resources):
    """An nbconvert preprocessor: a PNG without an alternative text gets its place as one.

    Figures bring their finding (`figures.described`); those of older runs bring nothing."""
    section, number = resources["metadata"]["name"], 0
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            section = [section, *re.findall(r"^#+ (.+)$", cell.source, re.M)][-1]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                number += 1
                image = output.metadata.setdefault("image/png", {})
                image["alt"] = image.get("alt") or f"Figure {number}, in the section “{section}”"
    return nb, resources


def in_short(nb, profile, name):
    """The notebook with its finding below its question, as the index says it; as it is where it
    says it itself, or has none."""
    stage = name.split("_", 1)[-1]
    said = any(re.search("^## In short", cell.source, re.M) for cell in nb.cells)
    metrics = results(profile, "reports", f"{stage}.metrics.json")
    if not said and (found := overview.finding_of(metrics, stage, name)):
        cell = need("nbformat.v4").new_markdown_cell(f"## In short\n\n{found.claim}", id="in-short")
        nb.cells.insert(1, cell)
    return nb


def to_html(nb, title):
    """One self-contained HTML page of a notebook.

    Raises ValueError if it would load anything over the network."""
    exporter = nbconvert.HTMLExporter(
        extra_loaders=[jinja2.DictLoader({"page": PAGE})], template_file="page"
    )
    exporter.register_preprocessor(alternatives, enabled=True)
    exporter.register_filter(
        "markdown2html", markdown.MarkdownWithMath(Renderer(escape=False)).render
    )
    html, _ = exporter.from_notebook_node(nb, {"metadata": {"name": title}})
    if found := elsewhere(html):
        raise ValueError(f"{title}: the page would load {found[:5]}; embed it, to be read offline")
    return html


def render(profile):
    """Write results/<profile>/pages/<notebook>.html of each notebook that the profile has run.

    Raises FileNotFoundError, saying what to run, where there is none."""
    executed = sorted(results(profile, "notebooks").glob("*.ipynb"))
    if not executed:
        missing = results(profile, "notebooks")
        raise FileNotFoundError(f"{missing} has no notebook; run: make study PROFILE={profile}")
    with ProcessPoolExecutor() as pool:
        list(pool.map(_page, executed, [profile] * len(executed)))


def _page(path, profile):
    nb = in_short(need("nbformat").read(path, as_version=4), profile, path.stem)
    html = to_html(nb, f"{path.stem} · {profile}")
    write_text(results(profile, "pages", f"{path.stem}.html"), html)


def publish(profile):
    """Make reports/<profile>/ of the executed notebooks, their pages, numbers and figures."""
    target = published(profile)
    shutil.rmtree(target, ignore_errors=True)
    for part in ("notebooks", "pages", "reports"):
        files = (x for x in results(profile, part).glob("*") if x.name != ".gitignore")
        for source in files:
            shutil.copyfile(source, published(profile, source.name))
    overview.write()


def main():
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("profile", help="section of params.yaml")
    profile = parser.parse_args().profile
    try:
        render(known(profile, "profile", profiles()))
        publish(profile)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"msif.study.pipeline.report: {error}\n")
    print(published(profile))


if __name__ == "__main__":
    main()

"""Notebooks in notebooks/ as people edit them: what their parameters say, how they are saved."""

import ast
import copy
import re
from pathlib import Path

from msif.core.extras import need
from msif.study import params
from msif.study.paths import by_hand, notebooks, root, stage_of


class _Written(str):
    """What the parameters' cell has in place of a literal; its repr is the source itself."""

    __repr__ = str.__str__


def declared(nb):
    """{name: value} as the cell tagged `parameters` assigns them; source text where no literal.

    Nothing is executed. {} where there is no such cell, or it does not parse."""
    cells = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
    try:
        body = ast.parse(cells[0].source).body if cells else []
    except SyntaxError:
        return {}
    named = [x for x in body if isinstance(x, ast.Assign) and isinstance(x.targets[0], ast.Name)]
    return {x.targets[0].id: _value(x.value) for x in named}


def defaults(notebook):
    """What `declared` finds in a notebook of the study."""
    return declared(_read(root() / "notebooks" / f"{notebook}.ipynb"))


def edited(notebook):
    """What to tell of a notebook whose cell differs from the profile it names: a line, or none.

    The pipeline runs what params.yaml says, whatever the cell says."""
    found = defaults(notebook)
    profile, stage = str(found.get("profile")), stage_of(notebook)
    section = params.profiles().get(profile, {}).get(stage)
    if section is None:
        return []
    given = {name: found[name] for name in section if name in found}
    differing = params.differences(given, section)
    if not differing:
        return []
    changes = "; ".join(
        f"{params.dotted(path)} = {params.shown(value)}, there {params.shown(theirs)}"
        for path, value, theirs in differing
    )
    lasting = "; ".join(params.remedies(notebook, profile, differing))
    return [
        f"{notebook}: this run takes params.yaml, {profile}.{stage}, not what the notebook's cell "
        f"says: {changes}. To keep that: {lasting}"
    ]


def before_save(model, path, contents_manager, **_):
    """A pre_save_hook of Jupyter's server: notebooks of the study are saved without outputs.

    Nor with execution counts or what editors note in metadata, so that a save without an edit
    leaves the file as it was. A copy with the outputs goes to where runs by hand write. Copies and
    other notebooks are their owner's, and saved as they are."""
    file = (Path(contents_manager.root_dir) / path).resolve()
    folder = file.parent
    ours = folder.name == "notebooks" and (folder.parent / "dvc.yaml").is_file()
    if model["type"] != "notebook" or not ours or file.stem not in notebooks(folder):
        return
    nb = need("nbformat").from_dict(model["content"])
    if any(cell.get("outputs") for cell in nb.cells):
        _keep(copy.deepcopy(nb), file, contents_manager)
    model["content"] = cleaned(nb)


def cleaned(nb):
    """A notebook as the study stores it: no outputs, no counts, and the tags of cells alone."""
    found = copy.deepcopy(nb)
    kernel, language = (found.metadata.get(x, {}) for x in ("kernelspec", "language_info"))
    found.metadata = {
        "kernelspec": kernel,
        "language_info": {"name": language.get("name", "python")},
    }
    for cell in found.cells:
        cell.metadata = {key: x for key, x in cell.metadata.items() if key == "tags"}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return found


def _keep(nb, file, contents_manager):
    """Write a copy with outputs, trusted where its reader has trusted it."""
    profile = str(declared(nb).get("profile"))
    named = profile if re.fullmatch(r"\w[\w-]*", profile) else "unnamed"
    target = by_hand(named, file.stem, top=file.parents[1]) / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    contents_manager.check_and_sign(nb, str(target))
    need("nbformat").write(nb, target)


def _read(path):
    return need("nbformat").read(path, as_version=4)


def _value(node):
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _Written(ast.unparse(node))

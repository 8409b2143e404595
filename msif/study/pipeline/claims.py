"""What the reports of profile `tiny` claim on every machine, kept in tests/study/claims/.

    python -m msif.study.pipeline.claims           do the executed notebooks print what they claim?
    python -m msif.study.pipeline.claims --write   keep what they print now as the claims

A claim is the output of a cell tagged `nbval-check-output`: an ordering, or a number with room for
the last digits of training, which differ between processors. All other outputs are left out.
"""

import argparse
import copy

from msif.core.extras import need
from msif.study.paths import results, root
from msif.study.pipeline.profiles import notebooks

CHECKED = "nbval-check-output"
PROFILE = "tiny"


def folder():
    """Where the claims are: one notebook each, with the outputs of its checked cells alone."""
    return root() / "tests" / "study" / "claims"


def claimed(notebook):
    """A copy of an executed notebook with no outputs but those of its checked cells."""
    found = copy.deepcopy(notebook)
    for cell in found.cells:
        if cell.cell_type == "code" and CHECKED not in cell.metadata.get("tags", []):
            cell.outputs = []
    return found


def differences():
    """["notebook, cell id: what is claimed, what was printed"] wherever the two differ.

    Raises ValueError unless there are claims of every notebook."""
    kept = sorted(folder().glob("*.ipynb"))
    if [path.stem for path in kept] != notebooks():
        there = ", ".join(path.stem for path in kept) or "nothing"
        raise ValueError(f"{folder()} has {there}; expected one for each notebook: use --write")
    found = []
    for path in kept:
        executed = claimed(_read(results(PROFILE, "notebooks", path.name)))
        for cell, now in zip(_read(path).cells, executed.cells, strict=True):
            if _printed(cell) != _printed(now):
                claim = f"claimed\n{_printed(cell)}\nprinted\n{_printed(now)}"
                found.append(f"{path.stem}, cell {cell.id}: {claim}")
    return found


def write():
    """Keep what the executed notebooks of `tiny` print now."""
    folder().mkdir(parents=True, exist_ok=True)
    for path in sorted(results(PROFILE, "notebooks", "x").parent.glob("*.ipynb")):
        need("nbformat").write(claimed(_read(path)), folder() / path.name)


def _read(path):
    return need("nbformat").read(path, as_version=4)


def _printed(cell):
    outputs = cell.get("outputs", [])
    return "".join(x.get("text") or x.get("data", {}).get("text/plain", "") for x in outputs)


def main():
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--write", action="store_true", help="keep what they print now")
    if parser.parse_args().write:
        write()
        return
    try:
        found = differences()
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"msif.study.pipeline.claims: {error}\n")
    if found:
        parser.exit(1, "\n".join(found) + "\n")


if __name__ == "__main__":
    main()

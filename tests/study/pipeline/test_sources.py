"""A saved notebook is clean and nothing is lost; what its cell says otherwise is told."""

import shutil

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from support import ROOT, staged
from traitlets.config.loader import PyFileConfigLoader

from msif.study.pipeline import sources, study

PARAMS = """profiles: [tiny]
tiny: {demo: {n: 3, pair: {rate: 0.1}}, other: {}}
mine: {demo: {n: 3}}
"""
CELL = "profile = 'tiny'\nn = 3  # how many\npair = {'rate': 0.1}"


def stored(cell=CELL):
    """A notebook as the study stores it."""
    cells = [
        new_markdown_cell("# Demo", id="0"),
        new_code_cell(cell, id="1", metadata={"tags": ["parameters"]}),
        new_code_cell("print(n)", id="2"),
    ]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=about)


def executed(cell=CELL):
    """The same after a run, with what editors leave in metadata."""
    nb = stored(cell)
    nb.metadata.language_info |= {"version": "3.13.0", "file_extension": ".py"}
    nb.metadata["widgets"] = {}
    nb.cells[0].metadata["jp-MarkdownHeadingCollapsed"] = True
    nb.cells[1].metadata["editable"] = True
    nb.cells[2].metadata |= {"execution": {"iopub.status.busy": "2026"}, "scrolled": True}
    nb.cells[2].metadata["trusted"] = True
    nb.cells[2].execution_count = 7
    nb.cells[2].outputs = [new_output("stream", text="3\n")]
    return nb


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "dvc.yaml").write_text("vars:\n  - runs:\n      demo: [tiny]\nstages: {}\n")
    (tmp_path / "params.yaml").write_text(PARAMS)
    nbformat.write(stored(), tmp_path / "notebooks" / "01_demo.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def save(folder, tmp_path, monkeypatch):
    """Save through Jupyter's own contents manager, which is set up by the study's file."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    config = PyFileConfigLoader("jupyter_server_config.py", path=str(ROOT)).load_config()

    def saved(nb, path, root="."):
        manager = FileContentsManager(root_dir=str(folder / root), config=config)
        manager.save({"type": "notebook", "format": "json", "content": nb}, path)
        return (folder / root / path).read_bytes()

    return saved


KEPT = "results/by-hand/tiny/01_demo/01_demo.ipynb"


@pytest.mark.parametrize("root", [".", "notebooks"])  # where JupyterLab was started
def test_saved_outputs_leave_the_source_as_it_was_and_are_kept_elsewhere(folder, save, root):
    before = (folder / "notebooks/01_demo.ipynb").read_bytes()
    path = "notebooks/01_demo.ipynb" if root == "." else "01_demo.ipynb"
    assert save(executed(), path, root) == before
    kept = nbformat.read(folder / KEPT, as_version=4)
    assert kept.cells[2].outputs[0].text == "3\n" and kept.cells[2].execution_count == 7


def test_an_edit_is_saved_and_a_save_before_the_next_run_does_not_lose_the_last_ones_outputs(
    folder, save
):
    save(executed(), "notebooks/01_demo.ipynb")
    edit = CELL.replace("n = 3", "n = 4")
    save(stored(edit), "notebooks/01_demo.ipynb")
    assert nbformat.read(folder / "notebooks/01_demo.ipynb", 4).cells[1].source == edit
    assert nbformat.read(folder / KEPT, 4).cells[2].outputs


@pytest.mark.parametrize(
    "cell, name", [("mine", "mine"), ("../../../escaped", "unnamed"), ("' + x + '", "unnamed")]
)
def test_the_copy_goes_to_the_profile_that_the_cell_names(
    folder, save, cell, name, tmp_path_factory, monkeypatch
):
    """Wherever the server was started."""
    monkeypatch.chdir(tmp_path_factory.mktemp("home"))
    save(executed(CELL.replace("tiny", cell)), "notebooks/01_demo.ipynb")
    assert (folder / f"results/by-hand/{name}/01_demo/01_demo.ipynb").is_file()
    assert [x.name for x in (folder / "results/by-hand").iterdir()] == [name]
    assert [x.name for x in (folder / "results").iterdir()] == ["by-hand"]


@pytest.mark.parametrize(
    "path",
    ["notebooks/01_demo-Copy1.ipynb", "notebooks/mine.ipynb", "01_demo.ipynb", "a/01_demo.ipynb"],
)
def test_copies_and_notebooks_elsewhere_are_saved_with_their_outputs(folder, save, path):
    (folder / "a").mkdir()
    nbformat.write(stored(), folder / path)
    assert b'"3\\n"' in save(executed(), path)
    assert not (folder / "results").exists()


def test_other_files_are_left_alone(folder):
    manager = FileContentsManager(root_dir=str(folder))
    manager.register_pre_save_hook(sources.before_save)
    manager.save({"type": "file", "format": "text", "content": "1"}, "notebooks/01_demo.txt")
    assert (folder / "notebooks/01_demo.txt").read_text() == "1"


@pytest.mark.parametrize("path", staged.files("notebooks/*.ipynb"), ids=lambda p: p.stem)
def test_the_studys_notebooks_are_stored_as_they_are_saved(folder, save, path):
    (folder / "notebooks" / path.name).write_text(staged.text(path), "utf-8")
    nb = staged.notebook(path)
    assert save(nb, f"notebooks/{path.name}").decode() == staged.text(path)


def test_the_studys_environment_reads_the_studys_configuration(tmp_path):
    """The Makefile links it to where the environment's Jupyter looks, wherever that starts."""
    recipe = staged.text(ROOT / "Makefile")
    assert "ln -sf ../../../jupyter_server_config.py $(VENV)/etc/jupyter/" in recipe
    link = tmp_path / ".venv" / "etc" / "jupyter" / "jupyter_server_config.py"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../../jupyter_server_config.py")
    shutil.copy(ROOT / "jupyter_server_config.py", tmp_path)
    loaded = PyFileConfigLoader(link.name, path=str(link.parent)).load_config()
    assert loaded.ContentsManager.pre_save_hook is sources.before_save


def test_parameters_are_read_without_running_them():
    cell = "n = 3\npair = {'rate': 1.0e-5}\nrest = [2] * 2\nraise SystemExit\nimport nothing"
    found = sources.declared(stored(cell))
    assert found == {"n": 3, "pair": {"rate": 1e-5}, "rest": "[2] * 2"}
    assert repr(found["rest"]) == "[2] * 2"
    assert sources.declared(stored("n = ")) == {} == sources.declared(new_notebook())


def edit(folder, old, new):
    nbformat.write(stored(CELL.replace(old, new)), folder / "notebooks" / "01_demo.ipynb")


def test_a_cell_that_says_what_params_yaml_says_is_not_spoken_of(folder):
    assert sources.edited("01_demo") == []
    edit(folder, "# how many", "# so many")
    assert sources.edited("01_demo") == []


def test_the_study_says_which_cells_it_does_not_follow(folder, monkeypatch, capsys):
    edit(folder, "0.1", "0.2")
    (folder / "notebooks" / "Untitled.ipynb").write_text("{}")
    monkeypatch.setattr(study, "reproduce", lambda chosen, record: [])
    monkeypatch.setattr("sys.argv", ["study"])
    study.main()
    assert capsys.readouterr().out.splitlines()[0] == (
        "01_demo: this run takes params.yaml, tiny.demo, not what the notebook's cell says: "
        "pair.rate = 0.2, there 0.1. To keep that: edit tiny.demo in params.yaml, then: make "
        "study; or, beside the study: dvc exp run --temp -S tiny.demo.pair.rate=0.2 demo@tiny"
    )


@pytest.mark.parametrize("cell", ["profile = 'tyni'\nn = 9", "n = 9", "profile = ", "profile = []"])
def test_a_cell_that_names_no_profile_is_its_readers(folder, cell):
    nbformat.write(stored(cell), folder / "notebooks" / "01_demo.ipynb")
    assert sources.edited("01_demo") == []

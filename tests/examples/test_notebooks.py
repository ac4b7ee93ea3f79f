"""The notebooks of `examples` run, and what is committed of them is small and names no machine."""

from __future__ import annotations

import json
import re
import socket

import pytest

pytest.importorskip("nbclient")

import nbformat
from nbclient import NotebookClient

from converter.errors import RequirementError
from tests.examples.conftest import EXAMPLES, import_example

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_BYTES = 400_000
TRAINED, VALIDATED = 7, 3  # photographs of each person; a batch has 32
SMALL = {"EPOCHS": 1, "TFLITE": False}


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """The photographs as the notebooks fetch them, and only some of each person."""
    folder = tmp_path_factory.mktemp("notebooks") / "work" / "people"
    try:
        import_example("photographs").fetch_photographs(folder)
    except RequirementError as error:
        if "is another one" in str(error):
            raise
        pytest.skip(str(error))
    assert [len(list(folder.glob(f"{part}/*/*.jpg"))) for part in ("train", "val")] == [93, 25]
    for person in folder.glob("*/*"):
        for number, file in enumerate(sorted(person.iterdir())):
            if number >= (TRAINED if person.parent.name == "train" else VALIDATED):
                file.unlink()
    return folder


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, people, monkeypatch):
    """On fewer photographs, with smaller settings; the cells themselves assert what has to hold."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, 4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    values = {name: value for name, value in SMALL.items() if f"{name} = " in parameters.source}
    parameters.source = "\n".join(
        [parameters.source, *(f"{name} = {value}" for name, value in values.items())]
    )
    folder = people.parents[1]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    expected = {
        "1_photograph_to_match": ", the same person\n",
        "2_evaluate": f"{5 * (TRAINED + VALIDATED)} faces, 1,225 pairs, 225 of the same person",
        "3_fine_tune_and_export": f"{5 * TRAINED} faces to train on, {5 * VALIDATED} to validate on",
    }
    assert expected[path.stem] in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(home|root|tmp|Users|usr)/", text)
    assert f'"{socket.gethostname()}"' not in text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert "execution" not in cell["metadata"]  # the times of its run
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"]
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]

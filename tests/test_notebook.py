# SPDX-License-Identifier: Apache-2.0
"""The notebook: without outputs in the repository, and executed from its first cell to its last as a reader would."""

from __future__ import annotations

import json

import pytest

from conftest import ROOT

NOTEBOOK = ROOT / "inference.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the notebook machinery
def test_the_notebook_runs_and_shows_what_it_promises(tmp_path) -> None:
    for package in ("ipykernel", "matplotlib"):
        pytest.importorskip(package)
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for name in ("helpers", "models", "builder.py"):  # its engines go to a place of their own
        (tmp_path / name).symlink_to(ROOT / name)
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    questions, passage, candidates, precisions, own = pages

    assert not [output for output in outputs if output.get("name") == "stderr" or output["output_type"] == "error"]
    rows = [row.split("</td>") for row in questions.split("<tr>")[2:]]
    answers = [(_text(row[2]), _text(row[4])) for row in rows]
    assert len(answers) == 8
    assert all(found == expected for found, expected in answers)
    assert passage.count("<mark ") == 8
    assert "1961 to 1972" in candidates
    assert [name for name in ("FP32", "FP16", "INT8") if f">{name}<" in precisions] == ["FP32", "FP16", "INT8"]
    assert precisions.count("8 of 8") >= 1
    assert precisions.count("John F. Kennedy") == 3
    assert own.count("<mark ") == 1
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def _text(cell: str) -> str:
    """Return the text of a cell without its tags."""
    return cell.replace("</mark>", "").rsplit(">", 1)[1]

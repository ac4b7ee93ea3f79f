"""The table of faces in both formats: what it gives, and what it refuses by column and row."""

from __future__ import annotations

import pytest

from converter.errors import SourceError
from faces.face_table import read_table

CSV = """\ufeffimage_path,person_name,bbox,split_type,label
a.png,"Lind, Ana","[1, 2, 3, 4]",train,0
sub/b.png,Bo,"[5, 6, 7, 8]",val,1

"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png", "crop.png"):
        (tmp_path / name).touch()
    path = tmp_path / "faces.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


def test_the_seed_projects_form_is_read(table, tmp_path):
    read = read_table(table)
    assert list(read.columns) == ["image_path", "person_name", "bbox", "split_type", "label"]
    assert read.column("person_name") == ["Lind, Ana", "Bo"]
    assert read.column("bbox") == ["[1, 2, 3, 4]", "[5, 6, 7, 8]"]
    assert read.files() == [tmp_path / "a.png", tmp_path / "sub/b.png"]


def test_crops_go_before_images(table, tmp_path):
    table.write_text("image_path,crop_path\nnone.png,crop.png\n")
    assert read_table(table).files() == [tmp_path / "crop.png"]


def test_paths_start_at_the_table_or_here(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "sub")
    table.write_text(f"image_path\nb.png\n{tmp_path / 'a.png'}\n")
    assert [path.resolve() for path in read_table(table).files()] == [
        tmp_path / "sub/b.png",
        tmp_path / "a.png",
    ]


def test_parquet_is_read_like_csv(table, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"image_path": ["a.png", None], "person_name": ["Ana", "Bo"], "label": [0, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet")
    assert read.column("label") == ["0", "1"]
    with pytest.raises(SourceError, match="row 2 has no image_path"):
        read.files()


def test_missing_columns_and_files_are_named(table, tmp_path):
    read = read_table(table)
    with pytest.raises(
        SourceError, match=r"it has no column score; its columns are image_path, person_name, bbox"
    ):
        read.column("score")
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError) as caught:
        read.files()
    assert str(caught.value) == (
        f"{table}: 1 file of its column image_path cannot be found: {tmp_path / 'a.png'}. Relative paths "
        "start at the table's folder, or at the current one."
    )


def test_spaces_at_the_ends_and_empty_cells_are_no_names(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / " a.png").touch()
    (tmp_path / "t.csv").write_text("image_path,person_name,note\n a.png, Ana ,  \n")
    read = read_table(tmp_path / "t.csv")
    assert (read.column("person_name"), read.texts("note")) == (["Ana"], [""])
    assert read.files() == [tmp_path / " a.png"]  # a file's name may begin with a space
    columns = {"image_path": [" a.png"] * 2, "person_name": ["Ana", "\t"], "label": [0.0, float("nan")]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    for name in ("person_name", "label"):
        with pytest.raises(SourceError, match=f"row 2 has no {name}. Fill it in, or remove the row"):
            read_table(tmp_path / "t.parquet").column(name)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_two_columns_of_one_name_are_refused(ending, tmp_path):
    path = tmp_path / f"t.{ending}"
    if ending == "csv":
        path.write_text("image_path,label, label\na.png,0,1\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        columns = [pyarrow.array(values) for values in (["a.png"], [0], [1])]
        table = pyarrow.Table.from_arrays(columns, names=["image_path", "label", "label"])
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    with pytest.raises(SourceError, match=r"it has more than one column label. Remove or rename all but one"):
        read_table(path)

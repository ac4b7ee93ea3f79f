"""`facenet-port align`: crops, table, what is listed, runs that go on, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from converter.errors import RequirementError
from facenet_port import main
from faces.align import run
from faces.align.journal import NAME, Journal
from faces.align.result import AlignedPhotograph, AlignOptions
from faces.align.rows import split_people
from faces.align.run import align
from faces.backends.export_cache import CachedExport
from faces.backends.facts import BackendFacts
from faces.crops import crop_face
from faces.face_table import read_table
from faces.processes import Processes
from tests.faces.align.conftest import ONE, content, picture, write

SEED_COLUMNS = ["image_path", "person_name", "bbox", "split_type", "label"]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "photos", "Ana/1.png", "Ana/2.png", "Bo/1.png")
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "crops"


def test_crops_and_table(detector, folder, out):
    result = align(folder, out)
    assert result.exit_code == 0
    table = read_table(out / "faces.csv")
    assert list(table.columns) == [*SEED_COLUMNS, "landmarks", "score", "crop_path"]
    assert table.columns["person_name"] == ["Ana", "Ana", "Bo"]
    assert table.columns["bbox"] == ["[40.0, 30.0, 82.0, 76.0]"] * 3
    assert table.columns["label"] == ["0", "0", "1"]
    assert table.columns["split_type"] == ["", "", ""]
    assert table.columns["score"] == ["0.999"] * 3
    assert json.loads(table.columns["landmarks"][0]) == [[41.5, 32.25]] * 5
    images = [(out / path).resolve() for path in table.columns["image_path"]]
    assert images == [folder / name for name in ("Ana/1.png", "Ana/2.png", "Bo/1.png")]
    for crop, image in zip(table.files(), images, strict=True):
        pixels = np.asarray(Image.open(image))
        assert np.array_equal(np.asarray(Image.open(crop)), crop_face(pixels, (40, 30, 82, 76), "scaled"))


def test_parquet_has_the_same_rows(detector, folder, out, tmp_path):
    align(folder, out, table="parquet")
    align(folder, tmp_path / "other")
    parquet, csv = read_table(out / "faces.parquet"), read_table(tmp_path / "other/faces.csv")
    assert list(parquet.columns) == list(csv.columns)
    for name in csv.columns:
        assert [str(value) for value in parquet.columns[name]] == csv.columns[name]
    assert parquet.columns["bbox"][0] == [40.0, 30.0, 82.0, 76.0]


def test_the_table_of_the_other_format_is_kept_up_to_date(detector, folder, out):
    align(folder, out)
    write(folder, "Cy/1.png")
    align(folder, out, table="parquet")
    for name in ("faces.csv", "faces.parquet"):
        assert read_table(out / name).columns["person_name"] == ["Ana", "Ana", "Bo", "Cy"]
    (out / "faces.csv").write_text("crop_path\nmine.png\n")
    with pytest.raises(run.UsageError, match=r"faces.csv: it was changed since align wrote it"):
        align(folder, out, table="parquet")


def test_the_folder_of_a_person_may_be_a_link(detector, folder, out):
    (folder.parent / "elsewhere").mkdir()
    (folder / "Bo/1.png").rename(folder.parent / "elsewhere/1.png")
    (folder.parent / "elsewhere/notes.txt").touch()
    (folder / "Cy").symlink_to(folder.parent / "elsewhere")
    result = align(folder, out)
    assert read_table(out / "faces.csv").columns["person_name"] == ["Ana", "Ana", "Cy"]
    assert result.others == ("Cy/notes.txt",)


def test_photographs_without_people(detector, tmp_path, out):
    write(tmp_path / "photos", "a.png")
    align(tmp_path / "photos", out)
    table = read_table(out / "faces.csv")
    assert (table.columns["person_name"], table.columns["label"]) == ([""], [""])
    assert (out / "a.png").is_file()


def test_folders_of_splits_are_known(detector, tmp_path, out):
    write(tmp_path / "photos", "train/Ana/1.png", "val/Ana/1.png", "Test/Bo/1.png", "Bo/1.png")
    align(tmp_path / "photos", out)
    table = read_table(out / "faces.csv")
    assert table.columns["person_name"] == ["Bo", "Bo", "Ana", "Ana"]
    assert table.columns["split_type"] == ["", "test", "train", "val"]


def test_people_of_one_name_at_several_places_stay_apart(detector, tmp_path, out):
    write(tmp_path / "photos", "2020/Ana/1.png", "2021/Ana/1.png", "2021/val/Ana/2.png", "Val/Bo/1.png")
    assert align(tmp_path / "photos", out).exit_code == 0
    table = read_table(out / "faces.csv")
    assert table.columns["person_name"] == ["2020/Ana", "2021/Ana", "2021/Ana", "Bo"]
    assert table.columns["label"] == ["0", "1", "1", "2"]
    assert len(set(table.columns["crop_path"])) == 4


def test_a_split_divides_people(detector, tmp_path, out):
    write(tmp_path / "photos", *(f"{person}/{number}.png" for person in "abcde" for number in range(3)))
    align(tmp_path / "photos", out, split=0.8, seed=3)
    table = read_table(out / "faces.csv")
    parts = {
        person: {
            part
            for part, name in zip(table.columns["split_type"], table.columns["person_name"], strict=True)
            if name == person
        }
        for person in "abcde"
    }
    assert {person: part for person, (part,) in parts.items()} == split_people(0.8, "edcba", 3)
    assert len({frozenset(split_people(0.8, "abcde", seed).items()) for seed in range(20)}) == 5
    assert list(split_people(0.8, "abcde", 1).values()).count("train") == 4
    for share in (0.01, 0.99):
        assert set(split_people(share, "ab", 0).values()) == {"train", "val"}


def test_adding_a_person_moves_at_most_one_other():
    people = [f"person {number}" for number in range(100)]
    before, moved = split_people(0.8, people[:50], 1), []
    assert list(before.values()).count("train") == 40
    for count in range(51, 101):
        after = split_people(0.8, people[:count], 1)
        assert list(after.values()).count("train") == round(0.8 * count)
        moved.append(sum(after[person] != part for person, part in before.items()))
        before = after
    assert max(moved) == 1
    assert 0 in moved


def test_a_split_needs_two_people_with_a_face(detector, folder, out, capsys):
    picture().save(folder / "Bo/1.png")
    assert main(["align", str(folder), str(out), "--split", "0.8"]) == 2
    assert "--split divides people, and fewer than two have a face here" in capsys.readouterr().err
    assert not (out / "faces.csv").exists()
    assert align(folder, out).earlier == 3


def test_a_person_may_have_the_name_of_a_split(detector, tmp_path, out):
    write(tmp_path / "photos", "Val/1.png", "Ana/1.png", "in/train/1.png", "in/test/2.png")
    align(tmp_path / "photos", out)
    table = read_table(out / "faces.csv")
    assert table.columns["person_name"] == ["Ana", "Val", "in/test", "in/train"]
    assert table.columns["split_type"] == ["", "", "test", "train"]


def test_a_photograph_in_two_peoples_folders_is_doubtful(detector, folder, out, capsys):
    (folder / "Bo/copy.png").write_bytes((folder / "Ana/1.png").read_bytes())
    (folder / "Ana/3.png").write_bytes((folder / "Ana/2.png").read_bytes())
    for _ in range(2):  # the second run takes it from the journal
        result = align(folder, out)
        doubts = {item.name: [doubt.text for doubt in item.doubts] for item in result.photographs}
        assert {name: texts for name, texts in doubts.items() if texts} == {
            "Ana/1.png": ["the same as Bo/copy.png"],
            "Bo/copy.png": ["the same as Ana/1.png"],
        }
    main(["align", str(folder), str(out)])
    assert "doubt  2 with a copy in another person's folder: --report" in capsys.readouterr().out


def test_every_face_or_the_chosen_one(detector, tmp_path, out):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture((5, 5, 30, 30, 240), (60, 50, 44, 44, 250), size=(160, 120)).save(folder / "two.png")
    result = align(folder, out)
    assert [bool(face.crop) for face in result.photographs[0].faces] == [True, False]
    assert [doubt.text for doubt in result.photographs[0].doubts] == ["2 faces"]
    align(folder, tmp_path / "all", options=AlignOptions(all_faces=True))
    table = read_table(tmp_path / "all/faces.csv")
    assert table.columns["crop_path"] == ["two_0.png", "two_1.png"]  # as facenet names them
    assert table.columns["bbox"] == ["[60.0, 50.0, 104.0, 94.0]", "[5.0, 5.0, 35.0, 35.0]"]


def test_photographs_of_one_name_have_a_crop_each(detector, tmp_path, out):
    write(tmp_path / "photos", "a.png", "a.gif", "a.bmp", "a-2.png")
    align(tmp_path / "photos", out)
    names = read_table(out / "faces.csv").columns["crop_path"]
    assert sorted(names) == sorted({*names}) == ["a-2.png", "a-3.png", "a-4.png", "a.png"]
    assert all((out / name).is_file() for name in names)


def test_the_orientation_of_a_photograph_is_applied(detector, tmp_path, out):
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # it has to be turned by 90 degrees, clockwise
    upright = picture(ONE)
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    upright.save(folder / "upright.png")
    align(folder, out)
    first, second = (np.asarray(Image.open(out / f"{name}.png")) for name in ("turned", "upright"))
    assert np.array_equal(first, second)


def test_what_has_no_crop_is_listed_and_the_rest_goes_on(detector, folder, out, tmp_path, capsys):
    picture().save(folder / "Bo/nobody.png")
    (folder / "Bo/page.jpg").write_text("<!doctype html>")
    Image.new("RGB", (1, 1)).save(folder / "one.bmp")
    (folder / "notes.txt").touch()
    for stray in (".DS_Store", "Ana/._1.png", "Thumbs.db", "Ana/1.png.part"):
        (folder / stray).touch()
    assert main(["align", str(folder), str(out), "--json", str(tmp_path / "a.json")]) == 3
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"3 crops of 160x160 from 6 photographs of 2 people in {out}",
        f"table  {out}/faces.csv",
        "none   Bo/nobody.png: no face",
        "none   one.bmp: no face",
        "other  1 file not searched: notes.txt",
    ]
    assert printed.err == (
        f"facenet-port align: {folder}/Bo/page.jpg: this is a web page, not the file itself. Google Drive "
        "sends one when it asks for a confirmation or when its quota is used up. Open the link in a browser "
        "and save the file itself.\n"
    )
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["without_face"] == ["Bo/nobody.png", "one.bmp"]
    assert list(result["unreadable"]) == ["Bo/page.jpg"]
    assert result["others"] == ["notes.txt"]
    assert result["photographs"][0]["faces"][0]["crop"] == "Ana/1.png"
    assert sorted(content(out)) == ["Ana/1.png", "Ana/2.png", "Bo/1.png", NAME, "faces.csv"]
    (folder / "Bo/page.jpg").unlink()
    assert main(["align", str(folder), str(out), "--quiet"]) == 1
    assert capsys.readouterr().out == ""


def test_a_file_name_that_no_table_can_hold_is_listed(detector, folder, out):
    (folder / "Ana/1.png").rename(folder / "Ana/\udcff.png")
    result = align(folder, out)
    assert [photograph.problem for photograph in result.unreadable] == [
        "no table can hold its name, which is not UTF-8. Rename it."
    ]
    assert result.crops == 2


def test_100_megapixels_are_listed(detector, folder, out, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    picture(size=(60, 50)).save(folder / "Ana/2.png")
    result = align(folder, out)
    assert [photograph.name for photograph in result.unreadable] == ["Ana/1.png", "Bo/1.png"]
    assert "more than the 5,000 pixels that Pillow takes" in result.unreadable[0].problem


class Stopped(KeyboardInterrupt):
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(detector, folder, out, tmp_path, monkeypatch):
    write(folder, "Cy/1.png", "Cy/2.png")
    picture().save(folder / "Ana/3.png")
    align(folder, tmp_path / "whole", workers=1)
    detector.seen.clear()
    monkeypatch.setattr(run, "_BATCH", 2)

    def stop(done, total):
        assert total == 6
        if done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        align(folder, out, progress=stop)
    assert len(detector.seen) == 4
    assert not (out / "faces.csv").exists()
    with (out / NAME).open("ab") as journal:  # a line that the process was killed in
        journal.write(b'{"photograph": {"name": "Cy/1.p')
    (out / "Bo/1.png").unlink()  # a crop that did not appear before the machine stopped
    result = align(folder, out, workers=3)
    assert len(detector.seen) == 7
    assert result.earlier == 3
    expected = content(tmp_path / "whole")
    made = content(out)
    del expected[NAME], made[NAME]
    assert made == expected


def test_new_photographs_are_added_and_repaired_ones_read_again(detector, folder, out):
    (folder / "Ana/2.png").write_bytes(b"")
    assert align(folder, out).exit_code == 3
    detector.seen.clear()
    write(folder, "Ana/2.png", "Cy/1.png")
    result = align(folder, out)
    assert (result.exit_code, result.crops, result.earlier, len(detector.seen)) == (0, 4, 2, 2)


def test_a_copy_of_the_photographs_is_the_same(detector, folder, out):
    align(folder, out)
    (folder / "Ana/1.png").touch()
    detector.seen.clear()
    assert align(folder, out).earlier == 3
    assert not detector.seen


def test_changed_photographs_are_refused(detector, folder, out):
    align(folder, out)
    before = content(out)
    picture(size=(50, 50)).save(folder / "Ana/1.png")
    (folder / "Bo/1.png").unlink()
    with pytest.raises(run.UsageError) as caught:
        align(folder, out)
    assert str(caught.value) == (
        f"{out}: it has crops of 2 photographs that changed since or cannot be found in {folder}: Ana/1.png, "
        "Bo/1.png. Give a new folder."
    )
    assert content(out) == before


def test_other_options_are_refused(detector, folder, out, capsys):
    align(folder, out)
    before = content(out)
    assert (
        main(["align", str(folder), str(out), "--crop", "facenet", "--thresholds", "0.5", "0.7", "0.7"]) == 2
    )
    assert capsys.readouterr().err == (
        f"facenet-port align: error: {out}: it was made with crop scaled, not facenet, thresholds 0.6 0.7 "
        "0.7, not 0.5 0.7 0.7. Give a new folder.\n"
    )
    assert content(out) == before


def test_a_table_that_was_edited_is_kept(detector, folder, out):
    align(folder, out)
    align(folder, out, split=0.5)  # its own table is replaced
    (out / "faces.csv").write_text((out / "faces.csv").read_text().replace("Ana", "Anna"))
    before = content(out)
    with pytest.raises(run.UsageError, match=r"faces.csv: it was changed since align wrote it. Rename it to"):
        align(folder, out)
    assert content(out) == before


def test_a_file_beside_the_crops_is_kept(detector, folder, out):
    align(folder, out)
    (out / "Cy").mkdir()
    (out / "Cy/1.png").write_bytes(b"mine")
    write(folder, "Cy/1.png")
    align(folder, out)
    assert (out / "Cy/1.png").read_bytes() == b"mine"
    assert (out / "Cy/1-2.png").is_file()


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (
            lambda root: (root / "out").mkdir() or (root / "out/a").touch(),
            ("photos", "out"),
            "holds no crops",
        ),
        (lambda root: (root / "out").touch(), ("photos", "out"), "holds no crops of `facenet-port align`"),
        (lambda root: None, ("photos", "photos/out"), "its crops would be taken for photographs"),
        (lambda root: None, ("photos", "photos"), "its crops would be taken for photographs"),
        (lambda root: (root / "file").touch(), ("photos", "file/new/out"), "is a file, not a folder. Give a"),
        (lambda root: None, ("none", "out"), "there is no such folder. Give a folder of photographs"),
        (
            lambda root: (root / "a.jpg").touch(),
            ("a.jpg", "out"),
            "this is a file. Give a folder of photographs",
        ),
        (lambda root: (root / "empty").mkdir(), ("empty", "out"), "it holds no photographs"),
        (lambda root: write(root, "flat/a.png"), ("flat", "out", "--split", "0.5"), "--split divides people"),
    ],
)
def test_what_cannot_be_aligned_is_refused_before_anything_is_written(
    detector, folder, tmp_path, prepare, arguments, message, capsys
):
    prepare(tmp_path)
    before = content(tmp_path)
    first, second, *options = arguments
    assert main(["align", str(tmp_path / first), str(tmp_path / second), *options]) in (2, 3)
    assert message in capsys.readouterr().err
    assert content(tmp_path) == before


def test_two_runs_do_not_write_to_one_folder(detector, folder, out):
    options = AlignOptions("scaled", False, 20, (0.6, 0.7, 0.7), 0.709)
    with Journal(out, options) as journal:
        journal.begin()
        with pytest.raises(run.UsageError, match="another run is writing to it"):
            align(folder, out)


def test_nothing_is_written_without_the_detectors_weights(folder, out, monkeypatch):
    def fail(**options):
        raise RequirementError("no weights")

    monkeypatch.setattr(run, "FaceDetector", fail)
    with pytest.raises(RequirementError):
        align(folder, out)
    assert not out.exists()


def test_an_occupied_folder_is_refused_before_the_detector_is_loaded(folder, out, monkeypatch, capsys):
    def fail(**options):
        raise RequirementError("no weights")

    monkeypatch.setattr(run, "FaceDetector", fail)
    out.mkdir()
    (out / "notes.txt").touch()
    assert main(["align", str(folder), str(out), "--offline"]) == 2
    assert "it exists and holds no crops of `facenet-port align`" in capsys.readouterr().err


@pytest.fixture
def runtimes(detector, monkeypatch):
    """The detector, whose default is ONNX Runtime; it records the runtimes that it was loaded in."""
    detector.loaded = []

    def load(*, backend, **options):
        detector.backend = BackendFacts(backend or "onnxruntime")
        detector.loaded.append(backend)
        return detector

    monkeypatch.setattr(run, "FaceDetector", load)
    return detector


def _first_process_killed(out):
    (out / NAME).rename(out / "align-1.jsonl")


def _first_line_cut_off(out):
    _first_process_killed(out)
    (out / NAME).write_bytes((out / "align-1.jsonl").read_bytes()[:30])


def _without_runtime(out):
    journal = (out / NAME).read_text()
    (out / NAME).write_text(journal.replace(', "backend": "torch"', "", 1))
    assert journal != (out / NAME).read_text()


@pytest.mark.parametrize("change", [_first_process_killed, _first_line_cut_off, _without_runtime])
def test_a_folder_goes_on_in_the_runtime_that_any_journal_names(change, runtimes, folder, out):
    align(folder, out, options=AlignOptions(backend="torch"))
    change(out)
    write(folder, "Cy/1.png")
    result = align(folder, out)
    assert (result.exit_code, result.crops, result.earlier) == (0, 4, 3)
    assert runtimes.loaded == ["torch", "torch"]


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("missing", [30, 6, 1])
def test_a_journal_whose_only_line_was_cut_off_is_begun_again(missing, backend, runtimes, folder, out):
    with Journal(out, AlignOptions(backend=backend)) as journal:
        journal.begin()
    line = (out / NAME).read_text()
    (out / NAME).write_text(line[:-missing])
    assert align(folder, out).crops == 3


def test_advice_on_a_runtime_that_a_folder_was_begun_with(runtimes, folder, out, monkeypatch, capsys):
    def fail(**options):
        return CachedExport(folder, "", {"here": 1.0}).check("here", "P-Net gives results", float)

    def refuse(*options):
        code = main(["align", str(folder), str(out), *options])
        message = " ".join(capsys.readouterr().err.split())
        assert f"{out}: it was begun with the detector in onnxruntime" in message
        assert "--backend" not in message
        assert message.lower().endswith("give a new folder.")
        return code

    align(folder, out)
    write(folder, "Cy/1.png")
    monkeypatch.setattr(run, "check_device", lambda device: None)
    assert refuse("--device", "cuda") == 2
    monkeypatch.setattr(run, "FaceDetector", fail)
    assert refuse() == refuse("--backend", "onnxruntime") == 1


@pytest.mark.parametrize("content", ["{}\n", "mine", "[]\n", "\0"])
def test_a_damaged_journal_is_named(detector, folder, out, content):
    align(folder, out)
    (out / NAME).write_text(content)
    with pytest.raises(run.SourceError, match=rf"{NAME}: it is damaged. Give a new folder"):
        align(folder, out)
    assert (out / NAME).read_text() == content


@pytest.mark.parametrize("value", ["0", "1", "x", "nan"])
def test_a_share_is_between_0_and_1(value, capsys):
    with pytest.raises(SystemExit):
        main(["align", "a", "b", "--split", value])
    assert "is not a share between 0 and 1" in capsys.readouterr().err


def test_the_journal_is_that_of_all_processes(folder, out):
    """What is done again counts, and what another process adds; a run holds the files of its processes."""
    two = [Processes(number, 2) for number in range(2)]
    first, again = AlignedPhotograph("a.png", problem="it is broken"), AlignedPhotograph("a.png", width=7)
    with Journal(out, AlignOptions(), two[1]) as journal:
        journal.begin()
        journal.add([(first, None)])
    with Journal(out, AlignOptions(), two[0]) as one, Journal(out, AlignOptions(), two[1]) as other:
        assert one.done == other.done == {"a.png": first}
        one.begin()
        one.add([(again, None)])
        other.add([(AlignedPhotograph("b.png"), None)])
        one.read_all()
        other.read_all()
        assert one.done == other.done == {"a.png": again, "b.png": AlignedPhotograph("b.png")}
    with Journal(out, AlignOptions(), two[1]), pytest.raises(run.UsageError, match="another run is writing"):
        Journal(out, AlignOptions())  # the first process was killed, the second not
    with Journal(out, AlignOptions()) as journal:
        assert journal.done["a.png"] == again

"""Lists of pairs: those of LFW in their forms, pairs that are missing, and lists of another set."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from converter.errors import SourceError
from faces.crops import FaceImage
from faces.evaluate.measure import Settings, measure
from faces.evaluate.pairs import FoundPairs, all_pairs, draw_pairs, find_images, read_pairs
from tests.faces.evaluate.original import load_original

PAIRS = """2\t2
Abel_Pacheco\t1\t4
Akhmed_Zakayev\t1\t3
Abel_Pacheco\t2\tAkhmed_Zakayev\t10
Akhmed_Zakayev\t3\tAbel_Pacheco\t1
Abel_Pacheco\t1\t2
Akhmed_Zakayev\t1\t10
Abel_Pacheco\t4\tAkhmed_Zakayev\t1
Akhmed_Zakayev\t3\tAbel_Pacheco\t2
"""
IMAGES = {"Abel_Pacheco": (1, 2, 4), "Akhmed_Zakayev": (1, 3, 10)}


@pytest.fixture
def lfw(tmp_path):
    """A folder in the form of lfw, some of whose files are .png, and its pairs.txt."""
    for person, numbers in IMAGES.items():
        (tmp_path / "lfw" / person).mkdir(parents=True)
        for number in numbers:
            ending = "png" if number == 3 else "jpg"
            (tmp_path / "lfw" / person / f"{person}_{number:04d}.{ending}").touch()
    (tmp_path / "pairs.txt").write_text(PAIRS)
    return tmp_path


@pytest.mark.real
def test_pairs_and_files_are_the_originals(lfw):
    original = load_original()
    pairs = [line.split() for line in PAIRS.splitlines()[1:]]
    paths, same = original.get_paths(str(lfw / "lfw"), pairs)
    found = find_images(read_pairs(lfw / "pairs.txt"), lfw / "lfw")
    assert [str(found.images[place].file) for place in found.pairs.first] == paths[0::2]
    assert [str(found.images[place].file) for place in found.pairs.second] == paths[1::2]
    assert found.pairs.same.tolist() == same
    assert found.skipped == 0
    assert len(found.images) == 6  # each once


def test_the_forms_of_a_list(lfw):
    listed = read_pairs(lfw / "pairs.txt")
    assert (listed.folds, listed.stated, len(listed.pairs)) == (2, 8, 8)
    dev = lfw / "pairsDevTest.txt"
    dev.write_bytes(b"\xef\xbb\xbf1\r\nAbel_Pacheco 1 2\r\n\r\nAbel_Pacheco 1 Akhmed_Zakayev 3\r\n")
    listed = read_pairs(dev)
    assert (listed.folds, listed.stated, len(listed.pairs)) == (1, 2, 2)
    assert [pair.same for pair in listed.pairs] == [True, False]
    assert listed.pairs[1].second.stem == "Akhmed_Zakayev/Akhmed_Zakayev_0003"


def test_pairs_whose_files_are_missing_are_skipped_and_counted(lfw):
    (lfw / "lfw" / "Abel_Pacheco" / "Abel_Pacheco_0004.jpg").unlink()
    found = find_images(read_pairs(lfw / "pairs.txt"), lfw / "lfw")
    assert found.skipped == 2
    assert len(found.pairs) == 6
    assert found.pairs.same.tolist() == [True, False, False, True, True, False]
    assert len(found.images) == 5


def test_pairs_of_images_without_a_face_are_skipped_and_counted():
    images = tuple(FaceImage(Path(f"{name}.jpg")) for name in "abcd")
    found = FoundPairs(images, all_pairs(["x", "y", "x", "y"]), skipped=3)
    kept = found.keep(np.array([True, False, True, True]))
    assert [image.file.stem for image in kept.images] == ["a", "c", "d"]
    named = zip(kept.pairs.first, kept.pairs.second, kept.pairs.same, strict=True)
    assert [(int(first), int(second), bool(same)) for first, second, same in named] == [
        (0, 1, True),
        (0, 2, False),
        (1, 2, False),
    ]
    assert kept.skipped == 3 + 3
    assert kept.notes == ("1 photograph shows no face, b.jpg first",)
    assert found.keep(np.ones(4, np.bool_)) is found


def test_a_list_that_was_cut_off_is_told(lfw):
    (lfw / "pairs.txt").write_text("\n".join(PAIRS.splitlines()[:-2]))
    found = find_images(read_pairs(lfw / "pairs.txt"), lfw / "lfw")
    assert found.notes == ("the first line of pairs.txt states 8 pairs, it lists 6",)


def test_a_list_of_another_set_is_refused(lfw):
    (lfw / "pairs.txt").write_text("1 1\nSomebody_Else 1 2\nSomebody_Else 1 Abel_Pacheco 1\n")
    with pytest.raises(SourceError) as caught:
        find_images(read_pairs(lfw / "pairs.txt"), lfw / "lfw")
    assert str(caught.value) == (
        f"{lfw / 'lfw'}: it has both images of none of the 2 pairs in pairs.txt, such as "
        "Somebody_Else/Somebody_Else_0001.jpg. Give the folder of the set that the list belongs to."
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "this is not a list of pairs"),
        (b"\x89PNG\xff\xfe", "this is not a list of pairs"),
        (b"10 300\n", "it lists no pairs"),
        (b"Abel_Pacheco 1 4\n", "line 1 is 'Abel_Pacheco 1 4', not a count of folds"),
        (b"0 300\nA 1 2\n", "line 1 is '0 300', not a count of folds"),
        (b"10 300\nA 1 2\nA 1\n", "line 3 is 'A 1', not a pair"),
        (b"10 300\nA 1 2 B 3\n", "line 2 is 'A 1 2 B 3', not a pair"),
        (b"10 300\nA 1 B x\n", "line 2 is 'A 1 B x', not a pair"),
        ("10 300\nA ² 1\n".encode(), "line 2 is 'A ² 1', not a pair"),
    ],
)
def test_what_is_no_list_is_told_by_line(content, problem, tmp_path):
    (tmp_path / "pairs.txt").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_pairs(tmp_path / "pairs.txt")
    assert str(caught.value).startswith(f"{tmp_path / 'pairs.txt'}: {problem}. Its first line is a count")


def test_names_with_spaces_are_read_between_tabs(tmp_path):
    (tmp_path / "pairs.txt").write_text("1\nAnna Lind\t1\t2\nAnna Lind\t1\tJo Ek\t2\n")
    pairs = read_pairs(tmp_path / "pairs.txt").pairs
    assert pairs[1].second.stem == "Jo Ek/Jo Ek_0002"
    (tmp_path / "pairs.txt").write_text("1\t\nAnna Lind\t1\t2\t\nAnna Lind\t1\tJo Ek\t2 \t \n")
    assert read_pairs(tmp_path / "pairs.txt").pairs == pairs
    with pytest.raises(
        SourceError, match=r"none.txt: the file cannot be read .* Check its name and its permissions"
    ):
        read_pairs(tmp_path / "none.txt")


def test_all_pairs_are_the_combinations_in_order():
    people = ["b", "a", "b", "c", "a"]
    pairs = all_pairs(people)
    expected = list(combinations(range(5), 2))
    assert list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    assert pairs.same.tolist() == [people[first] == people[second] for first, second in expected]
    assert np.count_nonzero(pairs.same) == 2


def test_pairs_that_are_drawn_are_of_both_kinds_and_each_is_as_likely():
    people = np.repeat(["a", "b", "c", "d"], [1, 2, 4, 30]).tolist()
    drawn_from = np.random.default_rng(0).permutation(people).tolist()
    pairs = draw_pairs(drawn_from, 600)
    chosen = zip(pairs.first[pairs.same], pairs.second[pairs.same], strict=True)
    same = [(int(first), int(second)) for first, second in chosen]
    assert (len(same), 150 < len(pairs) <= 600) == (300, True)
    assert (pairs.first != pairs.second).all()
    # 1 + 6 + 435 pairs of one person, each in either order: a share of 435 / 442 is of d.
    of_d = sum(drawn_from[first] == "d" for first, _ in same)
    assert 300 * 435 / 442 - 8 <= of_d <= 300
    assert len({tuple(sorted(pair)) for pair in same}) > 200
    assert len(draw_pairs(drawn_from, 37 * 36 // 2)) == 37 * 36 // 2
    assert not draw_pairs([str(number) for number in range(40)], 100).same.any()
    assert draw_pairs(["a"] * 40, 100).same.all()


def test_drawn_pairs_estimate_the_equal_error_rate_of_all():
    drawn = np.random.default_rng(1)
    people = drawn.integers(0, 20, 400)
    values = drawn.normal(size=(20, 16))[people] + 1.2 * drawn.normal(size=(400, 16))
    rows, names = (
        (values / np.linalg.norm(values, axis=1)[:, None]).astype(np.float32),
        people.astype(str).tolist(),
    )
    whole = measure(rows, all_pairs(names), Settings(folds=1)).eer
    estimate = measure(rows, draw_pairs(names, 20_000), Settings(folds=1)).eer
    assert whole > 0.05
    assert abs(estimate - whole) < 0.01  # three standard deviations of 10,000 pairs of each kind

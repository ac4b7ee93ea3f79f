"""Pairs of images: the lists of Labeled Faces in the Wild, and all pairs of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.counts import counted
from converter.errors import SourceError
from converter.formats.limits import read_whole
from faces.crops import FaceImage
from faces.evaluate.protocol import Flags, Pairs

_EXAMPLE = "Its first line is a count, such as 10 300; the others are NAME N M or NAME N NAME M"
_MOST_BYTES = 256 << 20  # the lists of LFW have 0.2 MB
_ENDINGS = (".jpg", ".png")  # in this order, as in the original


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image of a list: the person, and the number of the image among the person's."""

    person: str
    number: int

    @property
    def stem(self) -> str:
        """The path in the folder of the set, without its ending: `Name/Name_0001`."""
        return f"{self.person}/{self.person}_{self.number:04d}"


@dataclass(frozen=True, slots=True)
class NamedPair:
    """A pair of a list."""

    first: NamedImage
    second: NamedImage
    same: bool


@dataclass(frozen=True, slots=True)
class PairsList:
    """A list of pairs.

    Attributes:
        path: Its file.
        folds: The number of folds that its first line states; 1 if it states the number of pairs alone, as in
            pairsDevTrain.txt and pairsDevTest.txt.
        pairs: The pairs, as listed.
        stated: The number of pairs that the first line states.
    """

    path: Path
    folds: int
    pairs: tuple[NamedPair, ...]
    stated: int


@dataclass(frozen=True, slots=True)
class FoundPairs:
    """The pairs whose images exist.

    Attributes:
        images: The images, in the order of first use.
        pairs: The pairs, by places among `images`.
        skipped: The number of pairs of which a file is missing, or shows no face.
        notes: Sentences on pairs that the list states and does not have, on photographs without a face, and
            on names that differ in case alone.
    """

    images: tuple[FaceImage, ...]
    pairs: Pairs
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def name_pair(self, place: int) -> str:
        """Name the images of a pair."""
        first, second = self.images[self.pairs.first[place]], self.images[self.pairs.second[place]]
        return f"{first.file.name} and {second.file.name}"

    def keep(self, shown: Flags) -> FoundPairs:
        """Leave out images that show no face, and the pairs that they stand in.

        Args:
            shown: Whether each image shows one.
        """
        if shown.all():
            return self
        places = np.cumsum(shown) - 1
        kept = shown[self.pairs.first] & shown[self.pairs.second]
        pairs = Pairs(places[self.pairs.first[kept]], places[self.pairs.second[kept]], self.pairs.same[kept])
        faceless = [
            image.file.name for image, is_shown in zip(self.images, shown, strict=True) if not is_shown
        ]
        verb = "show" if len(faceless) > 1 else "shows"
        note = f"{counted(len(faceless), 'photograph')} {verb} no face, {faceless[0]} first"
        return FoundPairs(
            tuple(image for image, is_shown in zip(self.images, shown, strict=True) if is_shown),
            pairs,
            self.skipped + int(np.count_nonzero(~kept)),
            (*self.notes, note),
        )


def read_pairs(path: Path) -> PairsList:
    """Read a list such as pairs.txt, pairsDevTrain.txt or pairsDevTest.txt.

    Raises:
        SourceError: The file cannot be read, or a line is none of such a list.
    """
    content = read_whole(path, _MOST_BYTES, "this is larger than any list of pairs")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        lines = []
    if not lines:
        raise SourceError(path, "this is not a list of pairs", next_step=_EXAMPLE)
    counts = lines[0].split()
    if len(counts) not in (1, 2) or not all(map(_is_count, counts)):
        raise SourceError(path, f"line 1 is {lines[0]!r:.60}, not a count of folds", next_step=_EXAMPLE)
    pairs = [_parse(path, number, line.strip()) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not pairs:
        raise SourceError(path, "it lists no pairs", next_step=_EXAMPLE)
    folds = int(counts[0]) if len(counts) == 2 else 1
    return PairsList(path, folds, tuple(pairs), 2 * folds * int(counts[-1]))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:12]) > 0 and len(text) < 10


def _parse(path: Path, number: int, line: str) -> NamedPair:
    """Parse a line: tabs separate its fields if there are any, otherwise spaces."""
    fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
    same = len(fields) == 3
    first, second = fields[:2], ([fields[0], fields[2]] if same else fields[2:])
    if len(fields) not in (3, 4) or not (_is_count(first[1]) and _is_count(second[1])):
        raise SourceError(path, f"line {number} is {line!r:.60}, not a pair", next_step=_EXAMPLE)
    return NamedPair(NamedImage(first[0], int(first[1])), NamedImage(second[0], int(second[1])), same)


def find_images(listed: PairsList, folder: Path) -> FoundPairs:
    """Find the files of a list's pairs: `FOLDER/Name/Name_0001.jpg`, or .png.

    Args:
        listed: The list.
        folder: The folder of the set, such as lfw, lfw_funneled or lfw-deepfunneled, or of its crops.

    Returns:
        The pairs of which both files exist, as listed.

    Raises:
        SourceError: No pair has both files.
    """
    files = {
        image: _find(folder, image)
        for image in dict.fromkeys(image for pair in listed.pairs for image in (pair.first, pair.second))
    }
    kept = [pair for pair in listed.pairs if files[pair.first] and files[pair.second]]
    if not kept:
        first = listed.pairs[0].first
        raise SourceError(
            folder,
            f"it has both images of none of the {len(listed.pairs):,} pairs in {listed.path.name}, such as "
            f"{first.stem}.jpg",
            next_step="Give the folder of the set that the list belongs to",
        )
    places = {
        image: place
        for place, image in enumerate(
            dict.fromkeys(image for pair in kept for image in (pair.first, pair.second))
        )
    }
    pairs = Pairs(
        np.array([places[pair.first] for pair in kept]),
        np.array([places[pair.second] for pair in kept]),
        np.array([pair.same for pair in kept]),
    )
    images = tuple(FaceImage(file) for image in places if (file := files[image]) is not None)
    notes: tuple[str, ...] = ()
    if listed.stated != len(listed.pairs):
        notes = (
            f"the first line of {listed.path.name} states {counted(listed.stated, 'pair')}, it lists "
            f"{len(listed.pairs):,}",
        )
    return FoundPairs(images, pairs, len(listed.pairs) - len(kept), notes)


def _find(folder: Path, image: NamedImage) -> Path | None:
    candidates = (folder / f"{image.stem}{ending}" for ending in _ENDINGS)
    return next((path for path in candidates if path.is_file()), None)


def pair_all(source: Path, images: Sequence[FaceImage], people: Sequence[str]) -> FoundPairs:
    """Pair all images of a source.

    Args:
        source: The table or embeddings.
        images: The images.
        people: The person of each.

    Raises:
        SourceError: There is one image, or one is listed twice.
    """
    if len(people) < 2:
        raise SourceError(source, "one face makes no pair", next_step="Give a table with more faces")
    image, count = Counter(images).most_common(1)[0]
    if count > 1:
        problem = f"it lists the face of {image.file} {counted(count, 'time')}"
        raise SourceError(source, problem, next_step="Remove all rows of it but one")
    spellings: dict[str, str] = {}
    notes = [
        f"{spellings[name.casefold()]} and {name} count as two people"
        for name in dict.fromkeys(people)
        if spellings.setdefault(name.casefold(), name) != name
    ]
    return FoundPairs(tuple(images), all_pairs(people), notes=tuple(notes))


def all_pairs(people: Sequence[str]) -> Pairs:
    """Pair each image with every later one: the first with the others, then the second, and so on.

    Args:
        people: The person of each image.
    """
    first, second = np.triu_indices(len(people), 1)
    _, person = np.unique(np.array(people, dtype=object).astype(str), return_inverse=True)
    return Pairs(first, second, person[first] == person[second])


def draw_pairs(people: Sequence[str], most: int) -> Pairs:
    """Pair all images, or draw pairs of them with seed 0 where all would be too many.

    `most` / 2 of the drawn pairs show one person, and at most as many show two people. The pairs of a kind
    are drawn with equal probability. So the rates of each kind, and with them the equal error rate, are
    estimates of those of all pairs.

    Args:
        people: The person of each image.
        most: The largest number of pairs.
    """
    count = len(people)
    if count * (count - 1) // 2 <= most:
        return all_pairs(people)
    drawn, half = np.random.default_rng(0), most // 2
    _, person, images = np.unique(
        np.array(people, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    first, second = drawn.integers(0, count, (2, most))
    different = np.flatnonzero(person[first] != person[second])[:half]
    first, second = first[different], second[different]
    others = images[person] - 1
    if others.any():
        order, begins = np.argsort(person, kind="stable"), np.cumsum(images) - images
        places = np.argsort(order)  # of each image, among the images sorted by person
        one = drawn.choice(count, half, p=others / others.sum())
        begin, own = begins[person[one]], images[person[one]]
        another = order[begin + (places[one] - begin + drawn.integers(1, own)) % own]
        first, second = np.concatenate([first, one]), np.concatenate([second, another])
    return Pairs(first, second, person[first] == person[second])

"""The names of a source's tensors: the one rule for prefixes, and what --ignore leaves out.

The rule. A prefix is what stands before a network's name, up to a `.` in a state_dict and up to a `/`
elsewhere. If the network's tensors stand under one prefix, such as `module.` or `import/`, it is taken off.
A name outside the prefix is not the network's.
"""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError, UsageError
from converter.formats.source import Naming, TensorInfo, TensorSource
from converter.free_names import save_line
from converter.keras_layer_map import keras_names
from converter.layer_map import BOTTLENECK_SCOPES, ConvertedRow, Variant, table
from converter.mtcnn_layer_map import NETWORKS, find_network, names_of
from converter.plan import AVERAGE, TRAINING_STATE, MappingError, Problem

COUNTER = "num_batches_tracked"
"""The last part of a key that carries no information: PyTorch before 0.4.1 had none."""

_COUNTER_INFO = TensorInfo(np.dtype(np.int64), ())
_ANY_NETWORKS = (f"{BOTTLENECK_SCOPES[-1]}/", "Logits/")
"""What names of facenet's other networks end in too, so that they alone show no prefix."""

_OPTIONAL = re.compile(rf"^(Logits/|logits\.|Bottleneck/)|/gamma$|{COUNTER}$|{AVERAGE}$")
"""What a network may lack: such names under another prefix are extras."""

_MOST_PARTS = 8  # of a name of the network
_MOST_PATTERNS = 4  # that a message suggests


def separator(naming: Naming) -> str:
    """The character between the parts of a name."""
    return "." if naming == "pytorch" else "/"


@cache
def known_names(naming: Naming) -> frozenset[str]:
    """Every name that a tensor of the network may have, moving averages included."""
    if naming == "keras":
        return frozenset(keras_names())
    if naming == "pytorch":
        return frozenset(row.key for row in table(Variant(num_classes=1)))
    variables = {
        row.variable
        for scope in BOTTLENECK_SCOPES
        for row in table(Variant(num_classes=1, gamma=True, bottleneck_scope=scope))
        if isinstance(row, ConvertedRow)
    }
    return frozenset(variables | {f"{name}/{AVERAGE}" for name in variables})


@cache
def mtcnn_names(naming: Naming) -> frozenset[str]:
    """Every name that a tensor of a network of MTCNN may have."""
    return frozenset().union(*(names_of(network, naming) for network in NETWORKS))


def find_prefix(names: Collection[str], naming: Naming) -> str:
    """Find the prefix of a network's names by the rule above; empty without one.

    Args:
        names: The names of all tensors of a file.
        naming: Their kind.

    Raises:
        UsageError: The names of two networks stand under two prefixes.
    """
    groups = _group(names, naming, known_names(naming))
    groups = {p: ends for p, ends in groups.items() if not all(e.startswith(_ANY_NETWORKS) for e in ends)}
    if not groups:
        return _mtcnn_prefix(names, naming)
    first, *others = sorted(groups, key=lambda prefix: len(groups[prefix]), reverse=True)
    # A few names outside the prefix are listed as unexpected. Half a network or more is a second one, unless
    # it is the other half of this one.
    doubled = others and not set(groups[first]).isdisjoint(groups[others[0]])
    if doubled and 2 * len(groups[others[0]]) >= len(groups[first]):
        second = others[0]
        options = [f"--ignore {glob.escape(prefix) + '*'!r}" for prefix in (first, second) if prefix]
        raise UsageError(
            f"it holds two networks, under {first!r} and {second!r}. Leave one of them out: "
            f"{' or '.join(options)}"
        )
    return first


def _group(names: Iterable[str], naming: Naming, known: Collection[str]) -> dict[str, list[str]]:
    """Group the names that end in a known name by what stands before it: prefix to known names."""
    mark = separator(naming)
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.rsplit(mark, _MOST_PARTS)
        for index in range(len(parts)):
            if (end := mark.join(parts[index:])) in known:
                groups.setdefault(mark.join([*parts[:index], ""]), []).append(end)
                break
    return groups


def _mtcnn_prefix(names: Collection[str], naming: Naming) -> str:
    """The prefix of a network of MTCNN; empty without one.

    Raises:
        UsageError: Several networks of MTCNN stand under prefixes of their own.
    """
    groups = _group(names, naming, mtcnn_names(naming))
    prefixes = [prefix for prefix, ends in groups.items() if find_network(ends, naming) is not None]
    if len(prefixes) > 1:
        others = " ".join(f"--ignore {glob.escape(prefix) + '*'!r}" for prefix in prefixes[1:])
        raise UsageError(
            f"it holds {len(prefixes)} networks of MTCNN, under {', '.join(map(repr, prefixes))}. Take one "
            f"and leave the others out, such as with {others}"
        )
    return prefixes[0] if prefixes else ""


def network_name(name: str, prefix: str) -> str:
    """Take the prefix off a name; add a remark to a name outside it, so that it cannot be the network's."""
    if name.startswith(prefix):
        return name.removeprefix(prefix)
    return name if name in TRAINING_STATE else f"{name} (not under {prefix!r})"


class NetworkTensors(TensorSource):
    """An open source under the network's names: without the prefix, and without what --ignore leaves out.

    A name outside the prefix is followed by a remark, so that it is not taken for a name of the network. A
    batch counter of one element is an int64 scalar, whatever it is in the file: PyTorch loads it like that.

    Args:
        source: The open source, which stays the caller's to close.
        ignore: Shell patterns of tensors to leave out, for the names as they are in the file.

    Attributes:
        source: The open source.
        prefix: The prefix that was taken off, such as `module.`; empty without one.
        ignored: Name in the file of each tensor left out, to the pattern that it matches.

    Raises:
        UsageError: The source holds two networks, or a pattern would take a tensor that the network needs.
    """

    def __init__(self, source: TensorSource, ignore: Sequence[str] = ()) -> None:
        if isinstance(ignore, str):
            raise UsageError(f"ignore is a list of patterns, not a string: ignore=[{ignore!r}]")
        self.source = source
        self.path, self.format, self.naming, self.files = (
            source.path,
            source.format,
            source.naming,
            source.files,
        )
        self.key, self.beside, self.notes = source.key, source.beside, source.notes
        self.ignored = {
            name: pattern
            for name in source.info
            if (pattern := next((each for each in ignore if fnmatchcase(name, each)), None)) is not None
        }
        kept = [name for name in source.info if name not in self.ignored]
        try:
            self.prefix = find_prefix(kept, self.naming)
            self._check_needed(kept)
            self._refuse_mixed_prefixes(kept)
        except UsageError as error:
            raise UsageError(f"{self.path}: {error}") from None
        self._names = {network_name(name, self.prefix): name for name in kept}
        self.info = {
            name: _COUNTER_INFO if self._is_counter(name) else source.info[original]
            for name, original in self._names.items()
        }

    def _refuse_mixed_prefixes(self, kept: Sequence[str]) -> None:
        """Refuse a file in which the names of one network begin differently."""
        groups = _group(kept, self.naming, known_names(self.naming))
        own = groups.pop(self.prefix, [])
        others = {prefix: set(names) - set(own) for prefix, names in groups.items()}
        others = {prefix: names for prefix, names in others.items() if not all(map(_OPTIONAL.search, names))}
        if not own or not others:
            return
        example = next(
            prefix + name for prefix in others for name in groups[prefix] if name in others[prefix]
        )
        counts = {self.prefix: len(own)} | {prefix: len(names) for prefix, names in others.items()}
        stated = [f"{n} under {prefix!r}" if prefix else f"{n} under none" for prefix, n in counts.items()]
        next_step = "Save the network again, with one prefix or none"
        if self.naming == "pytorch":
            without = "".join(f".removeprefix({prefix!r})" for prefix in counts if prefix)
            next_step += f": {save_line(f'{{k{without}: v for k, v in state_dict.items()}}')}"
        problem = f"the network's names have different prefixes: {' and '.join(stated)}, such as {example!r}"
        raise SourceError(self.path, problem, next_step=next_step)

    def _check_needed(self, kept: Sequence[str]) -> None:
        """Check that --ignore leaves the network whole; averages and batch counters are not needed."""
        known = known_names(self.naming)
        is_left = any(network_name(name, self.prefix) in known for name in kept)
        prefix = self.prefix if is_left else find_prefix(list(self.source.info), self.naming)
        needed = [
            name
            for name in self.ignored
            if network_name(name, prefix) in known and not name.endswith((AVERAGE, COUNTER))
        ]
        if needed:
            others = f" and {len(needed) - 1} more" if len(needed) > 1 else ""
            raise UsageError(
                f"--ignore {self.ignored[needed[0]]!r} would leave out {needed[0]!r}{others}, which the "
                "network needs. Give a narrower pattern."
            )

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read and check one tensor, as the source does.

        Raises:
            KeyError: There is no tensor of this name.
            SourceError: The tensor is corrupt.
        """
        array = self.source[self._names[name]]
        return array.reshape(()).astype(_COUNTER_INFO.dtype) if self._is_counter(name) else array

    def _is_counter(self, name: str) -> bool:
        """Return whether a tensor is a batch counter, which may be of any dtype, and of shape (1,)."""
        is_of_pytorch = self.naming == "pytorch" and name.endswith(f".{COUNTER}")
        return is_of_pytorch and self.source.info[self._names[name]].size == 1

    def original(self, name: str) -> str:
        """The name in the file of a tensor; of a missing one, the name that it would have."""
        is_known = name in known_names(self.naming) or name in mtcnn_names(self.naming)
        return self._names.get(name) or (self.prefix if is_known else "") + name

    @property
    def statements(self) -> tuple[str, ...]:
        """A sentence for everything that was done to find the network's tensors in the file."""
        said = list(self.notes)
        if self.key:
            beside = f"; the other entries are not read: {_listed(self.beside)}" if self.beside else ""
            said.append(f"the state_dict under {self.key!r} is used{beside}")
        if self.prefix:
            said.append(f"the names of the network begin with {self.prefix!r}, which is taken off")
        for pattern, count in Counter(self.ignored.values()).items():
            tensors = "1 tensor is" if count == 1 else f"{count} tensors are"
            said.append(f"{tensors} left out by --ignore {pattern!r}")
        lacks_counters = not any(name.endswith(f".{COUNTER}") for name in self.info)
        if self.naming == "pytorch" and lacks_counters and find_network(self.info, self.naming) is None:
            said.append(f"there is no {COUNTER}, which carries no information")
        return tuple(said)

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Turn the names in a MappingError into those of the file, and add the file and advice."""
        try:
            yield
        except MappingError as error:
            problems = [
                Problem(problem.kind, self.original(problem.name), problem.detail)
                for problem in error.problems
            ]
            hint, kinds = "", {problem.kind for problem in problems}
            if kinds == {"missing"} and len(problems) < len(self.source.info):  # most of the network is there
                hint = "Every tensor of the network is needed: save the whole network again."
            if kinds == {"unexpected"}:
                hint = advise_to_ignore([problem.name for problem in problems], self.source.info, self.naming)
            raise error.named(self.path, problems, hint) from None

    def close(self) -> None:
        """Close the source."""
        self.source.close()


def check_ignore(ignore: Sequence[str], *sources: NetworkTensors) -> None:
    """Check that every pattern of --ignore matches a tensor of one of the sources.

    Raises:
        UsageError: A pattern matches none.
    """
    for pattern in ignore:
        names = [name for source in sources for name in source.source.info]
        if not any(fnmatchcase(name, pattern) for name in names):
            files = " or ".join(str(source.path) for source in sources)
            raise UsageError(
                f"--ignore {pattern!r} matches no tensor of {files}. Give a name as the file has it, such as "
                f"{names[0]!r}; * stands for any text."
            )


def advise_to_ignore(unexpected: Collection[str], names: Iterable[str], naming: Naming) -> str:
    """Advise to leave out the tensors of a file that the network does not have.

    Args:
        unexpected: Their names in the file.
        names: The names of all tensors of the file.
        naming: Their kind.
    """
    patterns = _patterns(unexpected, set(names) - set(unexpected), separator(naming))
    options = " ".join(f"--ignore {pattern!r}" for pattern in patterns[:_MOST_PATTERNS])
    more = " ..." if len(patterns) > _MOST_PATTERNS else ""
    advice = "To leave out what the network does not have, give --ignore PATTERN (may be repeated)"
    return f"{advice}: {options}{more}"


def _patterns(unexpected: Collection[str], needed: Collection[str], mark: str) -> list[str]:
    """Find patterns that take the unexpected names and no other; a whole scope where possible."""
    scopes = {name[: index + 1] for name in needed for index, each in enumerate(name) if each == mark}
    patterns: dict[str, None] = {}
    for name in unexpected:
        ends = [index + 1 for index, each in enumerate(name) if each == mark]
        scope = next((name[:end] for end in ends if name[:end] not in scopes), None)
        patterns[glob.escape(name) if scope is None else f"{glob.escape(scope)}*"] = None
    return list(patterns)


def _listed(names: Sequence[str]) -> str:
    most = 6
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:most]) + more

"""The configuration of a training: fields with defaults and ranges, as a TOML file and as options."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.errors import SourceError, UsageError
from converter.formats.limits import is_utf_8, read_whole
from faces.options import DEFAULT_MODEL

_MOST_BYTES = 1 << 20


def _field(
    default: Any,
    about: str,
    *,
    group: str = "",
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> Any:
    """Declare a field.

    Args:
        default: Its default, whose type is the field's.
        about: What it is, for the file and the help.
        group: The heading of the fields that start here.
        choices: The values of a text; empty for any text.
        least: The smallest number.
        most: The largest number.
        above: A number that it has to exceed.
    """
    facts = {"about": about, "group": group, "choices": choices, "least": least, "most": most, "above": above}
    return field(default=default, metadata=facts)


class FieldError(UsageError):
    """A field has a value that cannot be used; the message begins with its name and its option.

    Attributes:
        name: The field.

    Args:
        name: The field.
        problem: What is wrong, and the next step: sentences.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{with_option(name)}: {problem}")
        self.name = name


def with_option(name: str) -> str:
    """Name a field and the option that sets it, for a message: `batch_size (--batch-size)`."""
    return f"{name} ({_option(name)})"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The configuration of a training. The fields are those of the file; `FIELDS` explains each.

    Raises:
        FieldError: A value is outside its range, or two values exclude each other.
    """

    task: str = _field(
        "classifier",
        "a network that names the people of the data, or embeddings by triplets",
        group="Task",
        choices=("classifier", "triplet"),
    )
    data: str = _field(
        "", "the folder that `facenet-port align` has written, a folder of crops, or a table", group="Data"
    )
    train_split: str = _field("train", "the split_type of the faces to train on")
    validation_split: str = _field("val", "the split_type of the faces to validate on")
    validation_share: float = _field(
        0.0,
        "the share of each person's faces to validate on, for data without a split_type; 0 for none",
        least=0,
        most=0.9,
    )
    standardisation: str = _field(
        "",
        "the standardisation of the images; empty takes that of the weights, or fixed without weights",
        choices=("", "fixed", "per-image"),
    )
    workers: int = _field(0, "processes that read images; 0 reads them in the training process", least=0)
    output: str = _field("run", "the folder of the run: a new one", group="Output")
    checkpoint_steps: int = _field(100, "steps from one checkpoint to the next", least=1)
    weights: str = _field(
        DEFAULT_MODEL,
        "the weights to start from: a published model, a file, or none to start from random ones",
        group="Network",
    )
    embedding_size: int = _field(
        0, "numbers of an embedding; 0 takes that of the weights, or 512 without weights", least=0
    )
    freeze_batch_norm: bool = _field(
        True,
        "keep the statistics and biases of BatchNorm as they are; without weights they are always trained",
    )
    head: str = _field(
        "softmax",
        "the classifier's loss: softmax alone, with the centre loss, or ArcFace",
        group="Classifier",
        choices=("softmax", "centre", "arcface"),
    )
    label_smoothing: float = _field(0.0, "share of the target that all people get alike", least=0, most=0.99)
    dropout: float = _field(
        0.6, "share of the features that dropout zeroes; triplets have none, as facenet's", least=0, most=0.99
    )
    head_epochs: int = _field(3, "first epochs, in which the head alone is trained", least=0)
    last_epochs: int = _field(
        3, "next epochs, in which the last blocks are trained as well; then the whole network", least=0
    )
    centre_factor: float = _field(0.01, "factor on the centre loss", least=0)
    centre_rate: float = _field(0.05, "share of the way that a centre moves to its faces", least=0, most=1)
    arcface_margin: float = _field(28.6, "angle that ArcFace adds, in degrees", least=0, most=90)
    arcface_scale: float = _field(64.0, "factor on ArcFace's cosines", above=0)
    people_per_batch: int = _field(5, "people in a batch", group="Triplets", least=2)
    faces_per_person: int = _field(6, "faces of each of them", least=2)
    selection: str = _field(
        "semi-hard",
        "the negatives: one of those within the margin, as facenet draws it, or the nearest",
        choices=("semi-hard", "batch-hard"),
    )
    margin: float = _field(0.2, "margin between squared distances", above=0)
    trained_blocks: str = _field(
        "last",
        "what triplets train: the last blocks, or the whole network; without weights always all",
        choices=("last", "all"),
    )
    epochs: int = _field(8, "passes over the faces", group="Optimiser", least=1)
    batch_size: int = _field(32, "faces of a step of the classifier, of all processes together", least=1)
    accumulate: int = _field(1, "batches whose gradients make one step of the optimiser", least=1)
    optimiser: str = _field(
        "adamw", "the published models had tensorflow-adam", choices=("adamw", "sgd", "tensorflow-adam")
    )
    learning_rate: float = _field(1e-5, "learning rate of the network", least=0)
    head_learning_rate: float = _field(1e-3, "learning rate of the classifier's head", least=0)
    schedule: str = _field("cosine", "the learning rates over time", choices=("constant", "step", "cosine"))
    warmup_steps: int = _field(0, "first steps, in which the learning rates grow from zero", least=0)
    step_epochs: int = _field(5, "epochs from one fall of the step schedule to the next", least=1)
    step_factor: float = _field(0.1, "factor of each fall", above=0, most=1)
    weight_decay: float = _field(5e-4, "weight decay of the kernels; biases and BatchNorm have none", least=0)
    momentum: float = _field(0.9, "momentum of sgd", least=0, most=0.999)
    adam_epsilon: float = _field(
        0.0, "epsilon of Adam; 0 takes 0.1 for tensorflow-adam and 1e-8 for adamw", least=0
    )
    clip_norm: float = _field(0.0, "largest norm of all gradients together; 0 for no limit", least=0)
    precision: str = _field("no", "mixed precision", choices=("no", "fp16", "bf16"))
    mirror: bool = _field(True, "mirror every other image, at random", group="Augmentation")
    random_crop: bool = _field(False, "cut 160x160 pixels at random out of crops of 182x182")
    rotation: float = _field(
        0.0, "largest rotation, in degrees to either side; facenet's is 10", least=0, most=180
    )
    seed: int = _field(0, "seed of everything that is random", group="Run", least=0, most=(1 << 63) - 1)
    device: str = _field("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))

    def __post_init__(self) -> None:
        for name, declared in FIELDS.items():
            _check(name, declared, getattr(self, name))
        if not self.data:
            raise FieldError("data", "give the folder or table of faces, as `--data crops` or in the file.")
        for name in ("data", "weights", "output"):
            if not is_utf_8(Path(getattr(self, name))):
                raise FieldError(name, "the path is not UTF-8, which TOML needs. Rename it.")
        if not self.output:
            raise FieldError("output", "give the folder of the run.")
        if self.task == "triplet" and self.accumulate > 1:
            raise FieldError(
                "accumulate",
                "triplets are selected within a batch, which sums over batches do not enlarge. Give more "
                f"{with_option('people_per_batch')}, or 1.",
            )

    @property
    def from_nothing(self) -> bool:
        """True if the weights are random at the start."""
        return self.weights == "none"

    @property
    def unused(self) -> tuple[str, ...]:
        """The fields of the other task that have been changed from their defaults, without effect."""
        other = "Triplets" if self.task == "classifier" else "Classifier"
        group, names = "", []
        for name, declared in FIELDS.items():
            group = declared.metadata["group"] or group
            of_classifier = name in ("batch_size", "head_learning_rate") and other == "Classifier"
            if (group == other or of_classifier) and getattr(self, name) != declared.default:
                names.append(name)
        return tuple(names)


FIELDS: Mapping[str, dataclasses.Field[Any]] = {
    declared.name: declared for declared in dataclasses.fields(TrainConfig)
}
"""Name of each field to its declaration."""


def _check(name: str, declared: Any, value: Any) -> None:
    facts, expected = declared.metadata, type(declared.default)
    if type(value) is not expected:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        if _is_table(value):
            usual = f"{name} = {_toml(_example(name, declared))}"
            raise FieldError(name, f"a table is not {words[expected]}. Write `{usual}`, without headings.")
        raise FieldError(name, f"{value!r} is not {words[expected]}.")
    if facts["choices"] and value not in facts["choices"]:
        close = difflib.get_close_matches(value, facts["choices"], n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise FieldError(name, f"{value!r} is none of {', '.join(filter(None, facts['choices']))}.{hint}")
    if expected in (int, float) and not (
        facts["least"] <= value <= facts["most"] and value > facts["above"] and abs(value) < math.inf
    ):
        raise FieldError(name, f"{value!r} is out of range: {_range(facts)}.")


def _is_table(value: Any) -> bool:
    """Return True if a value of TOML is a table, or an array of tables."""
    tables = value if isinstance(value, list) else [value]
    return bool(tables) and all(isinstance(table, dict) for table in tables)


def _range(facts: Mapping[str, Any]) -> str:
    lower = f"above {facts['above']:g}" if facts["above"] > -math.inf else f"{facts['least']:g} or above"
    return lower if facts["most"] == math.inf else f"{lower}, at most {facts['most']:g}"


def read_config(
    path: str | Path | None, options: Mapping[str, Any] | None = None, *, complete: bool = False
) -> TrainConfig:
    """Read a configuration, of which options replace fields.

    Args:
        path: The TOML file; None takes the defaults.
        options: Name of a field to its value.
        complete: Whether the file has to hold every field, as that of a run does.

    Raises:
        SourceError: The file cannot be read, or is not TOML.
        UsageError: A field is unknown or missing, or a value is not one of its field.
    """
    fields: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            fields = tomllib.loads(read_whole(path, _MOST_BYTES, "it is larger than 1 MB").decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            step = "`facenet-port train --print-config` prints a complete one"
            raise SourceError(path, f"this is not TOML ({error})", next_step=step) from error
    for name, value in fields.items():
        if name not in FIELDS and _is_table(value):
            raise UsageError(f"{path}: [{name}]: the fields stand without headings. Remove this line.")
    missing = [name for name in FIELDS if complete and name not in fields]
    if missing:
        raise UsageError(f"{path}: the field {missing[0]} is missing.")
    fields |= options or {}
    unknown = [name for name in fields if name not in FIELDS]
    if unknown:
        close = difflib.get_close_matches(unknown[0], FIELDS, n=1)
        hint = (
            f"Did you mean {close[0]}?" if close else "`facenet-port train --print-config` lists the fields."
        )
        raise UsageError(f"{'' if path is None else f'{path}: '}there is no field {unknown[0]}. {hint}")
    try:
        return TrainConfig(**{name: _widen(name, value) for name, value in fields.items()})
    except FieldError as error:
        if path is None or error.name in (options or {}):
            raise
        raise UsageError(f"{path}: {error}") from error


def _widen(name: str, value: Any) -> Any:
    """Take a whole number for a number, as people write 1 for 1.0."""
    is_number = type(value) is int and type(FIELDS[name].default) is float
    return float(value) if is_number else value


def format_config(config: TrainConfig | None = None) -> str:
    """Write a configuration as TOML, complete, each field with a comment.

    Args:
        config: The configuration; None gives the defaults, with the place of the data.
    """
    lines: list[str] = []
    for name, declared in FIELDS.items():
        facts = declared.metadata
        if facts["group"]:
            lines += ["", f"# {facts['group']}"] if lines else [f"# {facts['group']}"]
        value = getattr(config, name) if config is not None else declared.default or _example(name, declared)
        limits = _limits(facts)
        lines.append(f"{name} = {_toml(value)}  # {facts['about']}{f' ({limits})' if limits else ''}")
    return "\n".join(lines) + "\n"


def _example(name: str, declared: dataclasses.Field[Any]) -> Any:
    return "crops" if name == "data" else declared.default


def _limits(facts: Mapping[str, Any]) -> str:
    if facts["choices"]:
        return ", ".join(filter(None, facts["choices"]))
    return "" if facts["least"] == facts["above"] == -math.inf else _range(facts)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(letter):04x}" if ord(letter) < 32 or letter in '"\\\x7f' else letter for letter in value
        )
        return f'"{escaped}"'
    return repr(value)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field; without it the field has no value among the parsed arguments."""
    groups: dict[str, Any] = {}
    group: Any = parser
    for name, declared in FIELDS.items():
        facts = declared.metadata
        if facts["group"]:
            group = groups.setdefault(facts["group"], parser.add_argument_group(facts["group"].lower()))
        shown = (
            "" if declared.default in ("", 0) and not facts["choices"] else f" (default: {declared.default})"
        )
        about: dict[str, Any] = {"help": f"{facts['about']}{shown}", "default": argparse.SUPPRESS}
        option = _option(name)
        kind = type(declared.default)
        if kind is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **about)
        else:
            group.add_argument(option, metavar=_metavar(declared), type=kind, **about)


def _metavar(declared: dataclasses.Field[Any]) -> str:
    if declared.metadata["choices"]:
        return "|".join(filter(None, declared.metadata["choices"]))
    return {int: "N", float: "X", str: "TEXT"}[type(declared.default)]

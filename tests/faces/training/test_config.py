"""The configuration: complete when it is printed, exact about ranges, and the same as file and as options."""

from __future__ import annotations

import argparse
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from converter.errors import SourceError, UsageError
from faces.training.__main__ import main
from faces.training.config import FIELDS, TrainConfig, add_options, format_config, read_config


def test_the_printed_configuration_is_complete_and_holds_the_defaults(capsys):
    assert main(["--print-config"]) == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed) == asdict(TrainConfig(data="crops"))
    assert all("  # " in line for line in printed.splitlines() if "=" in line.partition("#")[0])


def test_a_file_gives_what_was_written(tmp_path):
    config = TrainConfig(data='a"b\\c\n', epochs=3, mirror=False, learning_rate=1e-4, task="triplet")
    (tmp_path / "config.toml").write_text(format_config(config))
    assert read_config(tmp_path / "config.toml") == config


def test_every_field_is_an_option_that_replaces_the_file(tmp_path):
    parser = argparse.ArgumentParser()
    add_options(parser)
    assert vars(parser.parse_args([])) == {}
    options = {f"--{name.replace('_', '-')}" for name in FIELDS}
    assert options <= set(parser._option_string_actions)
    arguments = parser.parse_args(["--epochs", "5", "--no-mirror", "--learning-rate", "0.5"])
    path = tmp_path / "config.toml"
    path.write_text('data = "crops"\nepochs = 2\nmargin = 1\n')
    expected = TrainConfig(data="crops", margin=1.0, epochs=5, mirror=False, learning_rate=0.5)
    assert read_config(path, vars(arguments)) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("epoch = 3", "there is no field epoch. Did you mean epochs?"),
        ("xyzzy = 3", "there is no field xyzzy. `facenet-port train --print-config` lists the fields."),
        ("epochs = 0", "epochs (--epochs): 0 is out of range: 1 or above."),
        ("epochs = 1.5", "epochs (--epochs): 1.5 is not a whole number."),
        ("mirror = 1", "mirror (--mirror): 1 is not true or false."),
        ("margin = 0", "margin (--margin): 0.0 is out of range: above 0."),
        ("learning_rate = nan", "learning_rate (--learning-rate): nan is out of range: 0 or above."),
        ("learning_rate = inf", "learning_rate (--learning-rate): inf is out of range: 0 or above."),
        ("dropout = 1", "dropout (--dropout): 1.0 is out of range: 0 or above, at most 0.99."),
        (
            'optimiser = "adam"',
            "optimiser (--optimiser): 'adam' is none of adamw, sgd, tensorflow-adam. Did you mean adamw?",
        ),
        ("seed = true", "seed (--seed): True is not a whole number."),
        (
            "warmup_steps = {a = 1}",
            "warmup_steps (--warmup-steps): a table is not a whole number. Write `warmup_steps = 0`, "
            "without headings.",
        ),
        (
            "epochs.a = 3",
            "epochs (--epochs): a table is not a whole number. Write `epochs = 8`, without headings.",
        ),
        (
            "[[optimiser]]\nepochs = 3",
            'optimiser (--optimiser): a table is not a text. Write `optimiser = "adamw"`, without headings.',
        ),
        ("seed = []", "seed (--seed): [] is not a whole number."),
        ("[Optimiser]\nepochs = 3", "[Optimiser]: the fields stand without headings. Remove this line."),
        ("[[Optimiser]]\nepochs = 3", "[Optimiser]: the fields stand without headings. Remove this line."),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path, capsys, line, message):
    path = tmp_path / "config.toml"
    path.write_text(f'data = "crops"\n{line}\n')
    assert main([str(path)]) == 2
    assert capsys.readouterr().err == f"python -m faces.training: error: {path}: {message}\n"


def test_what_is_no_configuration_is_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match="give the folder or table of faces"):
        read_config(None)
    (tmp_path / "config.toml").write_bytes(b"\xff = 1")
    with pytest.raises(SourceError, match="this is not TOML"):
        read_config(tmp_path / "config.toml")
    with pytest.raises(
        UsageError, match=r"accumulate \(--accumulate\): triplets are selected within a batch"
    ):
        replace(TrainConfig(data="crops"), task="triplet", accumulate=2)
    with pytest.raises(UsageError, match=r"data \(--data\): the path is not UTF-8"):
        TrainConfig(data="crops\udcff")
    (tmp_path / "config.toml").write_text('data = "crops"')
    with pytest.raises(UsageError, match=r"^epochs \(--epochs\): 0 is out of"):  # an option, not the file
        read_config(tmp_path / "config.toml", {"epochs": 0})
    assert main([str(tmp_path / "nothing.toml")]) == 3
    assert "nothing.toml" in capsys.readouterr().err


def test_changed_fields_of_the_other_task_have_no_effect():
    assert TrainConfig(data="crops").unused == TrainConfig(data="crops", task="triplet").unused == ()
    changes = {"dropout": 0.5, "head": "arcface", "batch_size": 6, "head_learning_rate": 0.1}
    changes |= {"margin": 0.3, "trained_blocks": "all", "people_per_batch": 3, "epochs": 2, "rotation": 5.0}
    changed = TrainConfig(data="crops", **changes)
    assert changed.unused == ("people_per_batch", "margin", "trained_blocks")
    of_classifier = ("head", "dropout", "batch_size", "head_learning_rate")
    assert replace(changed, task="triplet").unused == of_classifier


def test_the_page_lists_every_field_with_its_default():
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`, `--([\w-]+)` \| (.*?) \| (.*?)(?:: .*)? \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == list(FIELDS)
    for name, option, default, _ in rows:
        value = FIELDS[name].default
        assert option == name.replace("_", "-")
        assert default == (str(value).lower() if isinstance(value, bool) else str(value)), name

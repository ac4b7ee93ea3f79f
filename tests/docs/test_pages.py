"""What the pages say is true: their blocks run, and show what the pages show; their options exist."""

import contextlib
import io
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import facenet_port
from checks.core.builtin_checkpoint import MODEL_NAME
from tests.docs.blocks import Block, read_blocks, stable
from tests.support.first_images import (
    AUDIT_TAKES_FROM,
    TAKEN_FROM,
    five_small_images_of_noise,
    keep_first_images,
    noise_audited,
)
from tests.support.main_job import COMMAND, MainJob, user_environment
from tests.support.shared_tensorflow import shared_tensorflow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(page, block) for page in PAGES for block in read_blocks(page)]
# The page that explains the options of each command.
EXPLAINED = {
    "convert": "convert.md",
    "list": "models.md",
    "compare": "compare.md",
    "audit": "audit.md",
    "gradients": "training.md",
    "train": "training.md",
    "predict": "training.md",
    "controls": "proof.md",
    "face-controls": "proof.md",
    "detect": "faces.md",
    "align": "faces.md",
    "embed": "faces.md",
    "match": "faces.md",
    "identify": "faces.md",
    "cluster": "faces.md",
    "evaluate": "faces.md",
    "export": "deploy.md",
    "benchmark": "benchmarks.md",
}
PYTEST = "python -m pytest "
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """An empty folder for each page, in which its blocks run one after another."""
    return {page: tmp_path_factory.mktemp(page.stem) for page in PAGES}


@pytest.fixture(scope="module")
def environment(main_job: MainJob, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment: a home whose cache holds the built-in checkpoint, and `facenet-port` to call."""
    home = tmp_path_factory.mktemp("home")
    cache = home / ".cache" / "facenet-port"
    cache.mkdir(parents=True)
    (cache / MODEL_NAME).symlink_to(main_job.checkpoint)
    return user_environment(home)


def _name(value: object) -> str:
    return value.name if isinstance(value, Path) else f"line-{value.line}" if isinstance(value, Block) else ""


def _run_as_a_user(block: Block, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a block in a shell or an interpreter of its own; return its exit code and output."""
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
    result = subprocess.run(
        [*program, block.code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return result.returncode, result.stdout


def _run_here(
    block: Block, folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str]:
    """Run Python, pytest or calls of `facenet-port` in this process, which has PyTorch and TensorFlow."""
    monkeypatch.chdir(folder)
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exit_code = 0
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
        if block.language == "python":
            exec(compile(block.code, "block", "exec"), {"__name__": "__main__"})
        if block.code.startswith(PYTEST):
            exit_code = pytest.main(block.code.removeprefix(PYTEST).split())
        for words in block.commands:
            exit_code = exit_code or facenet_port.main(
                [re.sub("^~/", f"{environment['HOME']}/", word) for word in words[1:]]
            )
    return exit_code, printed.getvalue()


def _runs_here(page: Path, block: Block) -> bool:
    """Whether a block needs no process of its own, as README's have."""
    if page.name == "README.md":
        return False
    return block.language == "python" or bool(block.commands) or block.code.startswith(PYTEST)


@pytest.fixture(scope="module")
def one_tensorflow(environment: dict[str, str]) -> Iterator[None]:
    """One set of graphs for the pages' comparisons with the built-in checkpoint, and fewer images."""
    with shared_tensorflow(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TAKEN_FROM, five_small_images_of_noise)
        for name in AUDIT_TAKES_FROM:
            patch.setattr(name, noise_audited)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("one_tensorflow")
@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=_name)
def test_a_block_runs_and_shows_what_the_page_shows(
    page: Path,
    block: Block,
    folders: dict[Path, Path],
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    main_job: MainJob,
) -> None:
    if block.not_run:
        pytest.skip(f"{page.name}, line {block.line}: {block.not_run}")
    if block.file:
        (folders[page] / block.file).write_text(block.code)
        return
    if block.commands == [COMMAND]:
        exit_code, output = 0, main_job.screen  # the fixture fails unless the exit code is 0
    elif _runs_here(page, block):
        exit_code, output = _run_here(block, folders[page], environment, monkeypatch)
    else:
        exit_code, output = _run_as_a_user(block, folders[page], environment)
    assert exit_code == block.exit_code, output
    output = output.replace(environment["HOME"], "~")
    actual = {stable(line) for line in output.splitlines()}
    expected = {stable(line) for line in block.output.splitlines()} - {"", "..."}
    assert expected <= actual, f"the page shows {sorted(expected - actual)}, the output is\n{output}"
    if "--save-activations" in block.code:  # the blocks that read the file then take half as long
        keep_first_images(folders[page] / "activations.h5")


def test_a_line_that_is_no_output_of_the_command_is_noticed() -> None:
    shown = "holds  tensors  492 converted, 1.3e-06 apart"
    assert stable(shown) == stable("holds tensors 492 converted, 1.4e-06 apart")
    assert stable(shown) != stable(shown.replace("492", "491"))
    assert stable(shown) != stable(shown.replace("holds", "FAILS"))


def test_comments_above_a_block_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- exit code: 1 -->\n```bash\nfalse\n```\n\n```text\nno\n```\n"
        "<!-- not run: takes an hour -->\n\n```python\npass\n```\n"
        "<!-- not checked: a sum -->\n```text\n7\n```\n"
    )
    assert read_blocks(page) == [
        Block(2, "bash", "false\n", "", 1, output="no\n"),
        Block(11, "python", "pass\n", "takes an hour", 0),
    ]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Command to its options, as its `--help` lists them."""
    return {command: set(OPTION.findall(_help(command, "--help"))) - {"--help"} for command in EXPLAINED}


def test_every_command_has_its_page() -> None:
    commands = _help("--help").partition("commands:")[2].partition("examples:")[0]
    listed = re.findall(r"^  ([a-z-]+)", commands, re.MULTILINE)
    assert sorted(listed) == sorted(EXPLAINED)


@pytest.mark.parametrize("command", EXPLAINED)
def test_every_option_of_a_command_is_explained(command: str, options: dict[str, set[str]]) -> None:
    common = {"--json", "--quiet", "--debug"}
    page = ROOT / "docs" / EXPLAINED[command]
    missing = options[command] - common - set(OPTION.findall(page.read_text(encoding="utf-8")))
    assert not missing, f"{page.name} does not name {sorted(missing)}"


def test_every_option_that_a_page_gives_to_a_command_exists(options: dict[str, set[str]]) -> None:
    for page, block in BLOCKS:
        for line in block.code.replace("\\\n", " ").splitlines():
            command = re.match(r"facenet-port ([\w-]+)", line)
            if command and block.language == "bash":
                unknown = set(OPTION.findall(line)) - options[command[1]]
                assert not unknown, f"{page.name}, line {block.line}: {command[1]} has no {sorted(unknown)}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=_name)
def test_files_and_functions_that_a_page_names_exist(page: Path) -> None:
    for name in re.findall(r"`([\w./]+)`", page.read_text(encoding="utf-8")):
        package, separator, _ = name.replace("/", ".").partition(".")
        if not separator or package not in (
            "converter",
            "reference",
            "facenet_tf",
            "checks",
            "faces",
            "tests",
        ):
            continue
        assert (ROOT / name).exists() or _exists(name), f"{page.name} names {name}"


def _exists(dotted: str) -> bool:
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError, ValueError):  # the last for a path
        return False
    return True


def test_the_front_page_stays_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def _help(*arguments: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        facenet_port.main(arguments)
    return printed.getvalue()

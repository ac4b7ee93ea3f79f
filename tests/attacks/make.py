"""`python -m tests.attacks.make` writes the attacks and README.md, which lists them."""

from __future__ import annotations

from tests.attacks.attack import ATTACKS, FOLDER
from tests.attacks.checkpoint_files import make_index_attacks
from tests.attacks.graph_files import make_graph_attacks
from tests.attacks.hdf5_files import make_hdf5_attacks, make_keras_archive_attacks
from tests.attacks.npy_files import make_numpy_attacks
from tests.attacks.pytorch_files import make_pytorch_attacks
from tests.attacks.safetensors_files import make_safetensors_attacks
from tests.attacks.text_files import make_text_attacks
from tests.attacks.zip_files import make_zip_attacks

make_index_attacks()
make_graph_attacks()
make_pytorch_attacks()
make_safetensors_attacks()
make_numpy_attacks()
make_hdf5_attacks()
make_keras_archive_attacks()
make_zip_attacks()
make_text_attacks()


def readme() -> str:
    """The list of all attacks."""
    lines = [
        "# Attacks",
        "",
        "Each file was made to do harm. Every one must be refused at once, with one message, and nothing",
        "may be written or run: `tests/attacks/test_attack_files.py` checks this.",
        "`python -m tests.attacks.make` writes the files.",
        "",
        "| file | what it tries |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| {each.name} | {each.tries} |" for each in ATTACKS.values()]) + "\n"


if __name__ == "__main__":
    for each in ATTACKS.values():
        for name, content in each.files.items():
            if each.exact or not (FOLDER / name).exists():
                (FOLDER / name).write_bytes(content)
    (FOLDER / "README.md").write_text(readme())

"""`python tests/attacks/make.py` writes the attacks, and README.md, which lists them, anew."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a program, this file's own folder comes first on the path: put the two that hold the packages there.
if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from attacks.archives import make_zip_attacks
from attacks.attack import ATTACKS, FOLDER
from attacks.bundles import make_index_attacks
from attacks.graphs import make_graph_attacks
from attacks.hdf5 import make_hdf5_attacks
from attacks.headers import make_safetensors_attacks
from attacks.numpy_pickles import make_numpy_attacks
from attacks.pickles import make_pytorch_attacks
from attacks.texts import make_text_attacks

make_index_attacks()
make_graph_attacks()
make_pytorch_attacks()
make_safetensors_attacks()
make_numpy_attacks()
make_hdf5_attacks()
make_zip_attacks()
make_text_attacks()


def readme() -> str:
    """The list of all attacks."""
    lines = [
        "# Attacks",
        "",
        "Each file was made to do harm. Each must be refused at once, with one message, and nothing",
        "may be written or run: `tests/test_attacks.py` sees to it.",
        "`python tests/attacks/make.py` makes them.",
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

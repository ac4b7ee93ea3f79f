"""Files that an operating system, an editor or a download leaves behind: never checkpoints or photographs."""

from __future__ import annotations

import re
from pathlib import PurePath

_STRAY = re.compile(
    r"\.(?!\.?$).+"  # hidden files and folders: ._name and .DS_Store of macOS, .ipynb_checkpoints, .nfs...
    r"|__macosx|icon\r"  # macOS, in archives and on foreign disks
    r"|network trash folder|temporary items|thevolumesettingsfolder"
    r"|thumbs\.db|ehthumbs\.db|desktop\.ini"  # Windows
    r"|\$recycle\.bin|recycler|system volume information|found\.\d{3}"
    r"|@(eadir|recycle|recently-snapshot|sharebin|tmp|gmt-[\d.-]+)|#(recycle|snapshot)"  # NAS devices
    r"|lost\+found|__pycache__"  # Linux, Python
    r"|.*~|~.*|#.*#|.*\.sw[op]|.*\.sb-[\da-f]+-\w+"  # editors and office programs
    r"|.*\.(tmp|temp|tempstate\d*|part|partial|filepart|crdownload|download|opdownload|aria2|incomplete|lock)",
    re.DOTALL | re.IGNORECASE,
)


def is_stray(path: PurePath | str) -> bool:
    """Return whether a file was left by an operating system, an editor or an unfinished download.

    Every search of a folder or an archive leaves such files out. A user may still name one.

    Args:
        path: The path of the file within the folder or archive that is searched, with `/` between its parts.
            A hidden folder counts too.
    """
    parts = path.parts if isinstance(path, PurePath) else path.split("/")
    return any(_STRAY.fullmatch(part) for part in parts)

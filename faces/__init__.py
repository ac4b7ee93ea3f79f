"""The network in use: from photographs to faces, and from faces to decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from faces.mtcnn import MTCNN, extract_face, fixed_image_standardization

__all__ = ["MTCNN", "extract_face", "fixed_image_standardization"]


def __getattr__(name: str) -> Any:
    """Import what facenet-pytorch's users know at first use: the commands start without PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from faces import mtcnn

    return getattr(mtcnn, name)

"""Entry point for `torch.hub.load`."""

from __future__ import annotations

from typing import Any

from reference import InceptionResnetV1

dependencies = [
    "torch", "numpy", "ml_dtypes", "google_crc32c", "google.protobuf", "rich", "filelock", "gdown", "requests"
]  # fmt: skip


def inception_resnet_v1(pretrained: str | None = None, **options: Any) -> InceptionResnetV1:
    """Build Inception-ResNet-v1 for faces, with published weights by name.

    Args:
        pretrained: `vggface2`, `casia-webface` or another name of the catalog; None for untrained weights.
        options: Further arguments of `reference.InceptionResnetV1`.
    """
    return InceptionResnetV1(pretrained, **options)

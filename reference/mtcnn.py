"""MTCNN's three networks in PyTorch: P-Net proposes faces, R-Net refines them, O-Net gives their landmarks.

Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks"
(arXiv:1604.02878), as davidsandberg/facenet runs them (`src/align/detect_face.py`). Module names are those of
the published pnet.pt, rnet.pt and onet.pt of facenet-pytorch.

facenet feeds its graphs images whose height and width are exchanged. Here the kernels are exchanged instead
(`converter.mtcnn_layer_map`), so images keep their usual order; `_flatten` alone still follows facenet's.
"""

from __future__ import annotations

from torch import Tensor, nn

MINIMUM_SIZE = 12
"""P-Net's window in pixels: the smallest height and width of its images."""
R_NET_SIZE = 24
"""Height and width of R-Net's images in pixels."""
O_NET_SIZE = 48
"""Height and width of O-Net's images in pixels."""


def _max_pool(kernel_size: int) -> nn.MaxPool2d:
    """Max pool of stride 2 that keeps the pixels at the right and the bottom that do not fill a window.

    TensorFlow's SAME does the same for windows of 2 on any map, and for windows of 3 on maps of even size,
    which are all that R-Net and O-Net give to such a pool. Maps that a VALID pool is given leave no rest.
    """
    return nn.MaxPool2d(kernel_size, stride=2, ceil_mode=True)


def _flatten(x: Tensor) -> Tensor:
    """Turn maps into vectors in the order width, height, channels: facenet's NHWC with its exchanged axes."""
    return x.permute(0, 3, 2, 1).flatten(start_dim=1)


def _check_size(images: Tensor, size: int) -> None:
    if images.shape[1:] != (3, size, size):
        raise ValueError(f"images of shape {tuple(images.shape)}: expected (N, 3, {size}, {size})")


class PNet(nn.Module):
    """Proposal network: scores every 12x12 window of an image, in steps of two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.pool1 = _max_pool(2)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.softmax4_1 = nn.Softmax(dim=1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute box offsets and face probabilities at every window.

        Args:
            images: (N, 3, H, W) in RGB, (pixel - 127.5) / 128, of the parameters' dtype; H and W at least 12.

        Returns:
            Offsets (N, 4, H', W') of the box's left, top, right and bottom from the window's, in window
            sizes. Probabilities (N, 2, H', W') of no face and of a face. H' is ceil(H / 2) - 5, W' likewise.

        Raises:
            ValueError: The images have a wrong shape or are too small.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MINIMUM_SIZE:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: expected (N, 3, H, W) with H and W at least "
                f"{MINIMUM_SIZE}"
            )
        x = self.pool1(self.prelu1(self.conv1(images)))
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return self.conv4_2(x), self.softmax4_1(self.conv4_1(x))


class RNet(nn.Module):
    """Refinement network: scores the crops that P-Net proposes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.pool1 = _max_pool(3)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.pool2 = _max_pool(3)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(3 * 3 * 64, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.softmax5_1 = nn.Softmax(dim=1)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute box offsets and face probabilities.

        Args:
            images: (N, 3, 24, 24) in RGB, (pixel - 127.5) / 128, of the parameters' dtype.

        Returns:
            Offsets (N, 4) of the box's left, top, right and bottom from the crop's, in crop sizes.
            Probabilities (N, 2) of no face and of a face.

        Raises:
            ValueError: The images have another shape.
        """
        _check_size(images, R_NET_SIZE)
        x = self.pool1(self.prelu1(self.conv1(images)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_flatten(x)))
        return self.dense5_2(x), self.softmax5_1(self.dense5_1(x))


class ONet(nn.Module):
    """Output network: scores the crops that R-Net keeps, and finds five landmarks in each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.pool1 = _max_pool(3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.pool2 = _max_pool(3)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.pool3 = _max_pool(2)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(3 * 3 * 128, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.softmax6_1 = nn.Softmax(dim=1)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute box offsets, landmarks and face probabilities.

        Args:
            images: (N, 3, 48, 48) in RGB, (pixel - 127.5) / 128, of the parameters' dtype.

        Returns:
            Offsets (N, 4) of the box's left, top, right and bottom from the crop's, in crop sizes. Landmarks
            (N, 10) in crop sizes: five x, then five y, of the eyes, the nose and the corners of the mouth.
            Probabilities (N, 2) of no face and of a face.

        Raises:
            ValueError: The images have another shape.
        """
        _check_size(images, O_NET_SIZE)
        x = self.pool1(self.prelu1(self.conv1(images)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_flatten(x)))
        return self.dense6_2(x), self.dense6_3(x), self.softmax6_1(self.dense6_1(x))

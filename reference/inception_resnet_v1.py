"""FaceNet's Inception-ResNet-v1 in PyTorch.

Szegedy et al., "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"
(arXiv:1602.07261), in the variant of davidsandberg/facenet: a 3x3 convolution of stride 2 closes the stem,
residual branches are scaled, BatchNorm has no scale, and a bottleneck turns 1792 features into the embedding.
Module names are those of the published PyTorch state_dicts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# davidsandberg/facenet, src/train_softmax.py: batch_norm_params.
BATCH_NORM_EPSILON = 0.001
# TensorFlow's decay is the share of the old average, PyTorch's momentum the share of the new value.
BATCH_NORM_MOMENTUM = 1 - 0.995
# tf.nn.l2_normalize(prelogits, 1, 1e-10) has a floor under the squared norm; this is its root.
NORM_FLOOR = 1e-5

MINIMUM_IMAGE_SIZE = 75
"""Smallest height and width in pixels; the map of a smaller image is empty after the last reduction."""


class BasicConv2d(nn.Module):
    """Convolution without bias, BatchNorm, ReLU: (N, inputs, H, W) to (N, outputs, H', W')."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Residual(nn.Module):
    """Residual block: x + scale * conv2d(concatenated branches).

    Args:
        channels: Channels of the input and the output.
        branches: Modules on the same input, in the order of their outputs in the concatenation.
        branch_channels: Channels of all branches together.
        scale: Factor on the residual.
        relu: Whether a ReLU follows the sum.
    """

    def __init__(
        self,
        channels: int,
        branches: tuple[nn.Module, ...],
        branch_channels: int,
        scale: float,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.relu = relu
        self.branches = len(branches)
        for index, branch in enumerate(branches):
            self.add_module(f"branch{index}", branch)
        self.conv2d = nn.Conv2d(branch_channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.cat([self.get_submodule(f"branch{index}")(x) for index in range(self.branches)], dim=1)
        x = x + self.scale * self.conv2d(mixed)
        return F.relu(x) if self.relu else x


class Block35(Residual):
    """Inception-ResNet-A on 256 channels (a 35x35 map in the paper, 17x17 for a 160x160 image)."""

    def __init__(self) -> None:
        branches = (
            BasicConv2d(256, 32, 1),
            nn.Sequential(BasicConv2d(256, 32, 1), BasicConv2d(32, 32, 3, padding=1)),
            nn.Sequential(
                BasicConv2d(256, 32, 1),
                BasicConv2d(32, 32, 3, padding=1),
                BasicConv2d(32, 32, 3, padding=1),
            ),
        )
        super().__init__(256, branches, 96, scale=0.17)


class Block17(Residual):
    """Inception-ResNet-B on 896 channels (a 17x17 map in the paper, 8x8 for a 160x160 image)."""

    def __init__(self) -> None:
        branches = (
            BasicConv2d(896, 128, 1),
            nn.Sequential(
                BasicConv2d(896, 128, 1),
                BasicConv2d(128, 128, (1, 7), padding=(0, 3)),
                BasicConv2d(128, 128, (7, 1), padding=(3, 0)),
            ),
        )
        super().__init__(896, branches, 256, scale=0.10)


class Block8(Residual):
    """Inception-ResNet-C on 1792 channels (an 8x8 map in the paper, 3x3 for a 160x160 image)."""

    def __init__(self, scale: float = 0.20, relu: bool = True) -> None:
        branches = (
            BasicConv2d(1792, 192, 1),
            nn.Sequential(
                BasicConv2d(1792, 192, 1),
                BasicConv2d(192, 192, (1, 3), padding=(0, 1)),
                BasicConv2d(192, 192, (3, 1), padding=(1, 0)),
            ),
        )
        super().__init__(1792, branches, 384, scale, relu)


class Mixed6a(nn.Module):
    """Reduction-A: 256 channels to 384 + 256 + 256 = 896, half the height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = BasicConv2d(256, 384, 3, stride=2)
        self.branch1 = nn.Sequential(
            BasicConv2d(256, 192, 1), BasicConv2d(192, 192, 3, padding=1), BasicConv2d(192, 256, 3, stride=2)
        )
        self.branch2 = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x)], dim=1)


class Mixed7a(nn.Module):
    """Reduction-B: 896 channels to 384 + 256 + 256 + 896 = 1792, half the height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = nn.Sequential(BasicConv2d(896, 256, 1), BasicConv2d(256, 384, 3, stride=2))
        self.branch1 = nn.Sequential(BasicConv2d(896, 256, 1), BasicConv2d(256, 256, 3, stride=2))
        self.branch2 = nn.Sequential(
            BasicConv2d(896, 256, 1), BasicConv2d(256, 256, 3, padding=1), BasicConv2d(256, 256, 3, stride=2)
        )
        self.branch3 = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], dim=1)


class InceptionResnetV1(nn.Module):
    """The network from face images to embeddings, or to logits.

    The arguments have the order of facenet-pytorch's.

    Args:
        pretrained: A name or alias of the catalog, such as `vggface2` or `casia-webface`. The verified
            weights come from the cache of `torch.hub`, or are converted from the TensorFlow archive, which is
            downloaded if necessary. None builds a randomly initialised network.
        classify: Whether `forward` returns logits instead of embeddings. The attribute may be set later.
        num_classes: Outputs of the classifier. None takes the classifier of the pretrained weights, if any.
            If the pretrained weights have another number, the classifier is randomly initialised, with a
            warning.
        dropout_prob: Share of features that dropout zeroes in training; 0.6 is the `--keep_probability 0.4`
            of the 2018 checkpoints.
        device: Device of the network; None is PyTorch's default.
        embedding_size: Outputs of the bottleneck. None takes that of the pretrained weights, or 512: the
            checkpoints of 2018 have 512, those of 2017 have 128.
        offline: Never download.

    Raises:
        ValueError: `classify` has neither `num_classes` nor a pretrained classifier, or `embedding_size` is
            not that of the pretrained weights.
        UsageError: The catalog has no such name.
        RequirementError: The pretrained weights are not in the cache and cannot be downloaded.
        SourceError: A downloaded or cached file is damaged.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        classify: bool = False,
        num_classes: int | None = None,
        dropout_prob: float = 0.6,
        device: torch.device | str | None = None,
        *,
        embedding_size: int | None = None,
        offline: bool = False,
    ) -> None:
        super().__init__()
        self.pretrained = pretrained  # whose standardisation the catalog knows
        self.classify = classify
        if pretrained is None:
            if classify and num_classes is None:
                raise ValueError("classify=True needs num_classes, the number of outputs of the classifier")
            self.build(embedding_size or 512, num_classes, dropout_prob)
        else:
            from reference.weights import build_pretrained

            build_pretrained(self, pretrained, num_classes, embedding_size, dropout_prob, offline)
        if device is not None:
            self.to(device)

    @property
    def num_classes(self) -> int | None:
        """Outputs of the classifier; None without one."""
        return None if self.logits is None else self.logits.out_features

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.last_linear.weight.device

    def build(self, embedding_size: int, num_classes: int | None, dropout_prob: float) -> None:
        """Create the layers, randomly initialised; the arguments are those of the class."""
        self.conv2d_1a = BasicConv2d(3, 32, 3, stride=2)
        self.conv2d_2a = BasicConv2d(32, 32, 3)
        self.conv2d_2b = BasicConv2d(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = BasicConv2d(64, 80, 1)
        self.conv2d_4a = BasicConv2d(80, 192, 3)
        self.conv2d_4b = BasicConv2d(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(Block35() for _ in range(5)))
        self.mixed_6a = Mixed6a()
        self.repeat_2 = nn.Sequential(*(Block17() for _ in range(10)))
        self.mixed_7a = Mixed7a()
        self.repeat_3 = nn.Sequential(*(Block8() for _ in range(5)))
        self.block8 = Block8(scale=1.0, relu=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout_prob)
        self.last_linear = nn.Linear(1792, embedding_size, bias=False)
        self.last_bn = nn.BatchNorm1d(embedding_size, eps=BATCH_NORM_EPSILON, momentum=BATCH_NORM_MOMENTUM)
        self.logits = None if num_classes is None else nn.Linear(embedding_size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute embeddings of length one, or logits if `classify` is set.

        Args:
            images: (N, 3, H, W) in RGB, of the parameters' dtype, standardised as in training; H and W at
                least 75, 160 in training.

        Returns:
            (N, embedding_size), each row L2-normalised; or (N, num_classes), computed from the embedding
            before normalisation.

        Raises:
            ValueError: The images have a wrong shape or are too small, or `classify` is set on a model
                without a classifier.
        """
        return self.head(self.prelogits(images))

    def prelogits(self, images: Tensor) -> Tensor:
        """Compute the embedding before normalisation: (N, 3, H, W) to (N, embedding_size).

        Raises:
            ValueError: The images have a wrong shape or are too small.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < MINIMUM_IMAGE_SIZE:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: expected (N, 3, H, W) with H and W at least "
                f"{MINIMUM_IMAGE_SIZE}"
            )
        x = self.conv2d_1a(images)
        x = self.conv2d_2a(x)
        x = self.conv2d_2b(x)
        x = self.maxpool_3a(x)
        x = self.conv2d_3b(x)
        x = self.conv2d_4a(x)
        x = self.conv2d_4b(x)
        x = self.repeat_1(x)
        x = self.mixed_6a(x)
        x = self.repeat_2(x)
        x = self.mixed_7a(x)
        x = self.repeat_3(x)
        x = self.block8(x)
        x = self.avgpool_1a(x)
        x = self.dropout(x)
        x = self.last_linear(x.flatten(start_dim=1))
        normalised: Tensor = self.last_bn(x)
        return normalised

    def head(self, prelogits: Tensor) -> Tensor:
        """Turn the embedding before normalisation into embeddings, or logits if `classify` is set.

        Raises:
            ValueError: `classify` is set on a model without a classifier.
        """
        if not self.classify:
            return F.normalize(prelogits, eps=NORM_FLOOR)
        if self.logits is None:
            raise ValueError("classify is set, but the model was built without num_classes")
        logits: Tensor = self.logits(prelogits)
        return logits

"""A small convolutional classifier, whose last hidden layer measures how far apart two sets of images are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks


class Classifier(nn.Module):
    """Two convolutions, a dense layer of features, and one score a class.

    Args:
        channels: of the image.
        size: height and width of the square image, a multiple of 4.
        num_classes: how many classes.
        width: channels of the first convolution.
        feature_dim: the length of the features.

    >>> net = Classifier(1, 8, 10)
    >>> net(torch.zeros(5, 1, 8, 8)).shape, net.features(torch.zeros(5, 1, 8, 8)).shape
    (torch.Size([5, 10]), torch.Size([5, 32]))
    """

    def __init__(self, channels: int, size: int, num_classes: int, *, width: int = 32, feature_dim: int = 32) -> None:
        super().__init__()
        if _checks.count("size", size, 4) % 4:
            raise ValueError(f"size is {size}; it must be a multiple of 4, for the image is halved twice.")
        self.shape = (_checks.count("channels", channels), size, size)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width * (size // 4) ** 2, feature_dim),
        )  # fmt: skip
        self.head = nn.Linear(feature_dim, _checks.count("num_classes", num_classes, 2))

    def features(self, x: Tensor) -> Tensor:
        """Return the features of images x (B, channels, size, size), (B, feature_dim)."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)} but the classifier was built for (B, *{self.shape}).")
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of images x (B, channels, size, size), (B, num_classes)."""
        return self.head(torch.nn.functional.silu(self.features(x)))

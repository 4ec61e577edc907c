"""Networks: each denoising network is net(x, t, cond=None) -> a tensor of x's shape."""

from .classifier import Classifier
from .dense import MLP, DenseDenoiser
from .unet import UNet

__all__ = ["MLP", "Classifier", "DenseDenoiser", "UNet"]

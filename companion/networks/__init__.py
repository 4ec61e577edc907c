"""Networks: each denoising network is net(x, t, cond=None) -> a tensor of x's shape."""

from .classifier import Classifier
from .dense import MLP, DenseDenoiser
from .encoder_decoder import EncoderDecoder
from .unet import UNet

__all__ = ["MLP", "Classifier", "DenseDenoiser", "EncoderDecoder", "UNet"]

"""Networks: each denoising network is net(x, t, cond=None) -> a tensor of x's shape."""

from .autoencoder import Autoencoder
from .classifier import Classifier
from .dense import MLP, DenseDenoiser
from .encoder_decoder import EncoderDecoder
from .text_encoder import TextEncoder
from .text_unet import TextUNet
from .unet import CrossAttention, UNet

__all__ = [
    "MLP",
    "Autoencoder",
    "Classifier",
    "CrossAttention",
    "DenseDenoiser",
    "EncoderDecoder",
    "TextEncoder",
    "TextUNet",
    "UNet",
]

"""Text to image: a tokenizer, a network that reads, a sampler and an autoencoder's decoder, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import denoisers, guidance, samplers
from .denoisers import Denoiser
from .latents import LatentSpace
from .networks import TextUNet
from .predictions import Prediction
from .schedules import Schedule
from .text import Tokenizer


@dataclass(frozen=True, eq=False)
class TextToImage:
    """What it takes to go from prompts to images; `weights.emoji_text_to_image.load()` returns a trained one.

    Args:
        net: denoises latents, told tokens.
        tokenizer: prompts to the tokens that net was trained with.
        space: latents to images and back.
        schedule, prediction: that net was trained with.

    >>> from companion import networks, predictions, schedules
    >>> space = LatentSpace(networks.Autoencoder(3, width=8), torch.zeros(4), torch.ones(4), (4, 8, 8))
    >>> net = networks.TextUNet(4, vocabulary=3, length=5, width=8, text_width=8)
    >>> model = TextToImage(net, Tokenizer(("a", "fox", "red"), 5), space, schedules.Cosine(), predictions.V)
    >>> model(["a red fox", "a fox"], num_steps=2).shape
    torch.Size([2, 3, 32, 32])
    """

    net: TextUNet
    tokenizer: Tokenizer
    space: LatentSpace
    schedule: Schedule
    prediction: Prediction

    def denoiser(
        self,
        prompts: str | Sequence[str],
        *,
        scale: float | Tensor = 1.0,
        negative: str | Sequence[str] = "",
        t_range: tuple[float, float] = (0.0, 1.0),
    ) -> Denoiser:
        """Return the denoiser of latents that a sampler walks with: told the prompts, and guided away from `negative`.

        Args:
            prompts: one for each latent, or one for all.
            scale: of guidance, 1 is off; one number, or (B,), one for each latent.
            negative: what to guide away from, as prompts; empty is classifier-free guidance.
            t_range: the times between which guidance acts.

        Raises:
            ValueError: as `text.Tokenizer` and `guidance.extrapolate`.

        >>> from companion import networks, predictions, schedules
        >>> space = LatentSpace(networks.Autoencoder(3, width=8), torch.zeros(4), torch.ones(4), (4, 8, 8))
        >>> net = networks.TextUNet(4, vocabulary=3, length=5, width=8, text_width=8)
        >>> model = TextToImage(net, Tokenizer(("a", "fox", "red"), 5), space, schedules.Cosine(), predictions.V)
        >>> model.denoiser("a fox", scale=2.0)(torch.zeros(2, 4, 8, 8), torch.tensor(0.5)).shape
        torch.Size([2, 4, 8, 8])
        """
        device = next(self.net.parameters()).device
        model = denoisers.from_network(self.net, self.schedule, self.prediction)
        told, away = (guidance.condition(model, self.tokenizer(p).to(device)) for p in (prompts, negative))
        return guidance.extrapolate(told, away, scale, t_range=t_range)

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        scale: float | Tensor = 2.0,
        num_steps: int = 20,
        negative: str | Sequence[str] = "",
        t_range: tuple[float, float] = (0.0, 1.0),
        sampler: Callable[..., Iterator[samplers.Step]] = samplers.dpmpp_2m,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return one image for each prompt, (B, channels, H, W) in [-1, 1], clipped, on the network's device.

        Args:
            prompts: one, or several.
            scale: of guidance, 1 is off; one number, or (B,), one for each prompt.
            num_steps: of the sampler.
            negative: what to guide away from; empty is classifier-free guidance.
            t_range: the times between which guidance acts.
            sampler: of `samplers`, on the grid that suits it.
            generator: where the noise comes from.

        Raises:
            TypeError, ValueError: no prompt, a word that the tokenizer does not know, a prompt too long, a scale that
                is not finite, an interval that is reversed.
        """
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        if not several:
            raise ValueError("there is no prompt; give at least one, such as 'a red fox'.")
        walked = self.denoiser(several, scale=scale, negative=negative, t_range=t_range)
        ts = samplers.grid(sampler, self.schedule, num_steps)
        device = next(self.net.parameters()).device
        shape = (len(several), *self.space.shape)
        x = samplers.start(self.schedule, shape, ts, generator=generator, device=device)
        return self.space.decode(samplers.last(sampler(walked, self.schedule, x, ts)).x).clamp(-1, 1)

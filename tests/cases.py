"""Cases and small helpers that several test files share."""

import torch

from companion.schedules import (
    Cosine,
    FlowMatching,
    Linear,
    ScaledLinear,
    Schedule,
    Sigmoid,
    VarianceExploding,
    cosine_betas,
    from_betas,
    zero_terminal_snr,
)

SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(),
    "scaled_linear": ScaledLinear(),
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "flow": FlowMatching(),
    "exploding": VarianceExploding(),
    "cosine_betas": from_betas(cosine_betas()),
    "zero_terminal": zero_terminal_snr(ScaledLinear()),
}

ENCODER_DECODERS = {  # settings, the shape of a sample, the shape in the middle
    "plain": ({"channels": 1, "width": 12}, (1, 4, 4), (4, 2, 2)),
    "classes": ({"channels": 2, "width": 12, "latent": 3, "num_classes": 3}, (2, 4, 8), (3, 2, 4)),
    "3 levels": (
        {"channels": 1, "width": 6, "multipliers": (1, 2, 3), "latent": 2, "blocks": 2, "num_classes": 3},
        (1, 8, 4),
        (2, 2, 1),
    ),
    "1 level": ({"channels": 3, "width": 6, "multipliers": (2,), "latent": 2}, (3, 3, 5), (2, 3, 5)),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(net, seed=0):
    """The network in float64 with every weight moved, so that nothing is 0 by its initial value."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in net.double().parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net


def batch(shape, n=4, seed=1):
    generator = seeded(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return x, torch.rand(n, generator=generator, dtype=torch.float64)


def generators(device: torch.device) -> list[torch.Generator | None]:
    """What a function takes as its generator on a device: none, the CPU's, and the device's own if it has one."""
    own = [] if device.type == "away" else [torch.Generator(device).manual_seed(0)]
    return [None, seeded(), *own]

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


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(net, seed=0):
    """The network in float64 with every weight moved, so that nothing is 0 by its initial value."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in net.double().parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return net

"""Cases that several test files run through."""

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

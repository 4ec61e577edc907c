"""What a network is asked to output, and how to get from there to everything else.

A prediction is a row (a, b): the target is a * x0 + b * eps. With x = alpha * x0 + sigma * eps this is a linear
system of two equations, so one inverse serves every prediction:

    x0 = (b * x - sigma * out) / (alpha * b - sigma * a),     eps = (alpha * out - a * x) / (alpha * b - sigma * a)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Number = Tensor | float
"""A coefficient: a number, or a tensor that broadcasts with the data."""


def _one(alpha: Number, sigma: Number) -> float:
    return 1.0


@dataclass(frozen=True)
class Prediction:
    """What a network outputs, as a row (a, b): the target is a * x0 + b * eps.

    Args:
        name: how it is called in messages.
        row: a function (alpha, sigma) -> (a, b).
        input_scale: a function (alpha, sigma) -> what x is multiplied by before the network sees it.

    >>> x_t, out = torch.tensor([0.7]), torch.tensor([0.5])
    >>> round(EPS.to_x0(x_t, out, 0.8, 0.6).item(), 4)           # (0.7 - 0.6 * 0.5) / 0.8
    0.5
    """

    name: str
    row: Callable[[Number, Number], tuple[Number, Number]]
    input_scale: Callable[[Number, Number], Number] = _one

    def target(self, x0: Tensor, eps: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return what the network should output, a * x0 + b * eps; coefficients () or shaped to broadcast.

        >>> V.target(torch.tensor([1.0]), torch.tensor([2.0]), 0.8, 0.6).item()     # alpha * eps - sigma * x0
        1.0
        """
        a, b = self.row(alpha, sigma)
        return a * x0 + b * eps

    def to_x0(self, x: Tensor, out: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return x0 from the noisy x and the network's output, in x's dtype.

        Raises:
            ValueError: where an error in the output would be multiplied by more than a million: eps-prediction
                where alpha is 0.

        >>> X0.to_x0(torch.tensor([0.7]), torch.tensor([0.5]), 0.8, 0.6).item()
        0.5
        """
        a, b = self.row(alpha, sigma)
        divisor = alpha * b - sigma * a
        self._refuse("x0", divisor, sigma, alpha)
        clean = sigma == 0  # then x = alpha * x0 whatever the network says
        if isinstance(clean, Tensor):
            x0 = (b * x - sigma * out) / torch.where(clean, 1.0, divisor)
            return torch.where(clean, x / torch.where(clean, alpha, 1.0), x0).to(x.dtype)  # no 0/0 in the gradient
        return x / alpha if clean else (b * x - sigma * out) / divisor

    def to_eps(self, x: Tensor, out: Tensor, alpha: Number, sigma: Number) -> Tensor:
        """Return eps from the noisy x and the network's output, in x's dtype.

        Raises:
            ValueError: where an error in the output would be multiplied by more than a million: x0-prediction
                where sigma is 0.

        >>> round(X0.to_eps(torch.tensor([0.7]), torch.tensor([0.5]), 0.8, 0.6).item(), 4)     # (0.7 - 0.8 * 0.5) / 0.6
        0.5
        """
        a, b = self.row(alpha, sigma)
        divisor = alpha * b - sigma * a
        self._refuse("eps", divisor, alpha, alpha)
        pure = alpha == 0  # then x = sigma * eps whatever the network says
        if isinstance(pure, Tensor):
            eps = (alpha * out - a * x) / torch.where(pure, 1.0, divisor)
            return torch.where(pure, x / torch.where(pure, sigma, 1.0), eps).to(x.dtype)
        return x / sigma if pure else ((alpha * out - a * x) / divisor).to(x.dtype)

    def _refuse(self, wanted: str, divisor: Number, gain: Number, alpha: Number) -> None:
        if isinstance(divisor, Tensor) and divisor.device.type != "cpu":
            return  # reading the value would stop the accelerator; samplers compute coefficients on the CPU
        if bool((torch.as_tensor(divisor).abs() < 1e-6 * torch.as_tensor(gain).abs()).any()):
            where = "alpha is 0, the end of pure noise" if wanted == "x0" else "sigma is 0, clean data"
            raise ValueError(
                f"{self.name}-prediction cannot give {wanted} where {where} (smallest alpha: "
                f"{float(torch.as_tensor(alpha).min()):.1e}): start the grid at a smaller t_max, or use V."
            )


EPS = Prediction("eps", lambda alpha, sigma: (0.0, 1.0))
"""The noise: target eps. It says nothing of x0 where alpha is 0."""
X0 = Prediction("x0", lambda alpha, sigma: (1.0, 0.0))
"""The clean data: target x0."""
V = Prediction("v", lambda alpha, sigma: (-sigma, alpha))
"""The velocity on a circle: target alpha * eps - sigma * x0 (Salimans and Ho 2022)."""
VELOCITY = Prediction("velocity", lambda alpha, sigma: (-1.0, 1.0))
"""The velocity of the straight path: target eps - x0 (Lipman et al. 2023)."""


def edm(sigma_data: float = 0.5) -> Prediction:
    """Return EDM's F-prediction, whose input and target have unit variance at every noise level.

    With n = sqrt(sigma^2 + alpha^2 sigma_data^2) the row is (sigma / (sigma_data n), -alpha sigma_data / n), and
    the input is scaled by 1 / n (Karras et al. 2022, table 1, divided through by alpha so that both ends are finite).

    Args:
        sigma_data: the data's standard deviation, positive.

    >>> x0, eps = torch.ones(1), torch.ones(1)
    >>> p = edm(0.5)
    >>> round(p.to_x0(0.8 * x0 + 0.6 * eps, p.target(x0, eps, 0.8, 0.6), 0.8, 0.6).item(), 6)
    1.0
    """
    if not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data is {sigma_data}; it must be positive: the data's standard deviation.")

    def size(alpha: Number, sigma: Number) -> Number:
        return (sigma**2 + alpha**2 * sigma_data**2) ** 0.5

    def row(alpha: Number, sigma: Number) -> tuple[Number, Number]:
        n = size(alpha, sigma)
        return sigma / (sigma_data * n), -alpha * sigma_data / n

    return Prediction("edm", row, lambda alpha, sigma: 1 / size(alpha, sigma))


def x0_to_eps(x: Tensor, x0: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """Return eps = (x - alpha * x0) / sigma; refused where sigma is 0.

    >>> x0_to_eps(torch.tensor([1.0]), torch.tensor([0.5]), 0.8, 0.6).item()
    1.0
    """
    return X0.to_eps(x, x0, alpha, sigma)


def eps_to_x0(x: Tensor, eps: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """Return x0 = (x - sigma * eps) / alpha; refused where alpha is 0.

    >>> round(eps_to_x0(torch.tensor([1.0]), torch.tensor([1.0]), 0.8, 0.6).item(), 4)
    0.5
    """
    return EPS.to_x0(x, eps, alpha, sigma)


def eps_to_score(eps: Tensor, sigma: Number) -> Tensor:
    """Return the score, the gradient of log p_t at x: -eps / sigma (Vincent 2011).

    Raises:
        ValueError: where sigma is 0.

    >>> eps_to_score(torch.tensor([1.0]), 0.5).item()
    -2.0
    """
    on_cpu = not isinstance(sigma, Tensor) or sigma.device.type == "cpu"
    if on_cpu and bool((torch.as_tensor(sigma) == 0).any()):
        raise ValueError("sigma is 0; the score is -eps / sigma: take a later time.")
    return -eps / sigma


def score_to_eps(score: Tensor, sigma: Number) -> Tensor:
    """Return eps = -sigma * score.

    >>> score_to_eps(torch.tensor([-2.0]), 0.5).item()
    1.0
    """
    return -sigma * score

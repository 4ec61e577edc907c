"""What every training does: take steps, average the weights, save the run and bring it back."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks, checkpoints

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the network may compute in; its weights, the loss and the optimizer stay as they are."""


class EMA:
    """A running average of a network's weights, `ema.net`, whose decay warms up.

    After k updates the decay is min(decay, (1 + k) / (10 + k)), so the random initial weights are soon forgotten.
    Buffers are copied, not averaged.

    Args:
        net: the network that trains; it is copied, not changed.
        decay: in [0, 1); 0 keeps no average.
        warmup: False for the same decay from the first step on.

    >>> net = nn.Linear(1, 1)
    >>> ema = EMA(net)
    >>> ema.update(net)
    >>> bool(torch.allclose(ema.net.weight, net.weight))
    True
    """

    def __init__(self, net: nn.Module, decay: float = 0.999, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must lie in [0, 1): 0.999 averages over about 1,000 steps.")
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay, self.warmup, self.updates = decay, warmup, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of `net`."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        for mine, theirs in zip(self.net.parameters(), net.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - decay)
        for buffer, source in zip(self.net.buffers(), net.buffers(), strict=True):
            buffer.copy_(source)


@dataclass(frozen=True, eq=False)
class TrainStep:
    """What `fit` yields after each step. A tensor waits for the accelerator only when you make a float of it."""

    index: int
    """The step, counted from 1."""
    loss: Tensor
    """The batch's mean loss, a 0-dim tensor without graph."""
    ema: nn.Module
    """The averaged network so far, in evaluation mode; it changes as training goes on."""
    lr: float
    """The learning rate of this step."""
    grad_norm: Tensor
    """The gradient's norm before it was clipped, 0-dim."""
    skipped: Tensor
    """How many steps so far changed no weight because a float16 gradient overflowed, 0-dim; 0 in other precisions."""


def steps(
    run: Run,
    saving: Saving,
    next_loss: Callable[[int], Tensor],
    rate: Callable[[int], float],
    num_steps: int,
    accumulate: int,
    clip: float,
    progress: bool,
) -> Iterator[TrainStep]:
    """Take the steps: mean gradient, clip, Adam, average."""
    run.net.train()
    start = saving.restore(accumulate)
    for index in _bar(start, num_steps, progress):
        due = saving.due(index, num_steps)  # what is saved has been looked at
        look = run.device.type == "cpu" or index % 100 == 0 or index == num_steps or due  # stops an accelerator's queue
        run.optimizer.zero_grad()
        mean = torch.zeros((), device=run.device)
        for _ in range(accumulate):
            with torch.enable_grad():
                loss = next_loss(index)
                if look:
                    _refuse_not_finite("loss", loss.detach(), index)
                run.scaler.scale(loss / accumulate).backward()
            mean = mean + loss.detach() / accumulate
        norm = run.update(rate(index), clip, index, look)
        run.ema.update(run.net)
        if due:
            saving.save(index)
        yield TrainStep(index, mean, run.ema.net, rate(index), norm, run.skipped)
    run.net.load_state_dict(run.ema.net.state_dict())
    run.net.eval()


def half_cosine(done: float) -> float:
    """Return half a cosine, from 1 where nothing is done to 0 where all is: the share of the highest learning rate.

    >>> half_cosine(0.0), half_cosine(1.0)
    (1.0, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * done))


def refuse_settings(lr: float, clip: float, precision: str) -> None:
    """Raise ValueError for a learning rate, a clipping norm or a precision that is out of range.

    >>> refuse_settings(1e-3, math.inf, "bfloat16")
    """
    if not (0 < lr < math.inf and clip > 0):
        raise ValueError(f"lr is {lr} and clip {clip}; both must be positive.")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")


def rate_of(
    lr: float, warmup: int, num_steps: int, decay: Callable[[float], float] = half_cosine
) -> Callable[[int], float]:
    """Return the learning rate of each step, counted from 1: a straight rise over `warmup` steps, then `decay`.

    >>> rate_of(0.1, 2, 10)(1)
    0.05
    """

    def rate(index: int) -> float:
        done = max(0, index - 1 - warmup) / max(1, num_steps - warmup)
        return lr * (min(1.0, index / max(1, warmup)) * decay(done))

    return rate


class Run:
    """What changes while a network trains."""

    def __init__(
        self,
        net: nn.Module,
        source: Iterator[tuple[Tensor, Tensor | None]],
        ema: EMA,
        precision: str,
        generator: torch.Generator | None,
    ) -> None:
        self.net, self.source, self.ema, self.generator = net, source, ema, generator
        self.device, self.dtype = next(net.parameters()).device, PRECISIONS[precision]
        fused = self.device.type in ("cpu", "cuda")  # one kernel instead of a dozen
        self.optimizer = torch.optim.Adam(net.parameters(), fused=fused)
        self.half = precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type if self.half else "cpu", enabled=self.half)
        self.skipped = self.in_a_row = torch.zeros((), dtype=torch.int64, device=self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the precision asked for, in which the network runs, and nothing but the network."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """Run a denoising network."""
        with self.autocast():
            return self.net(x, t, cond)

    def update(self, lr: float, clip: float, index: int, look: bool) -> Tensor:
        """Take Adam's step with the gradients that are there, and return their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), clip).detach()
        if self.half:
            overflow = (~torch.isfinite(norm)).long()
            self.skipped, self.in_a_row = self.skipped + overflow, (self.in_a_row + overflow) * overflow
            if look and int(self.in_a_row) >= 20:
                raise ValueError(
                    f"at step {index} the float16 gradient has overflowed {int(self.in_a_row)} times in a row, however "
                    f'small the loss was scaled; it must be finite: use precision="bfloat16" or lower lr.'
                )
        elif look:
            _refuse_not_finite("gradient's norm", norm, index)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm


class Saving:
    """When and how a run is written to its checkpoint and brought back."""

    def __init__(self, run: Run, path: str | Path | None, save_every: int | None, settings: dict[str, Any]) -> None:
        self.run, self.path, self.every = run, None if path is None else Path(path), save_every
        self.settings = settings
        self.found: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        if save_every is not None:
            _checks.count("save_every", save_every)
        if save_every is not None and path is None:
            raise ValueError(f"save_every is {save_every} but there is no file to save in: give checkpoint=...")

    def look(self, resume: bool, fingerprint: dict[str, Any]) -> None:
        """Read the checkpoint that is to be resumed, if there is one, and refuse it where it is of another run."""
        assert self.path is not None
        run, name = self.run, self.path.name
        self.settings |= fingerprint | {
            "device": run.device.type,
            "generator": None if run.generator is None else run.generator.device.type,
            "one generator for batches and fit": getattr(run.source, "generator", run) is run.generator,
            "batches with a state": hasattr(run.source, "state_dict"),
        }
        self.source_state()
        if not self.path.parent.is_dir():
            raise ValueError(f"checkpoint is {name} in a folder that does not exist: make {self.path.parent} first.")
        if not self.path.exists():
            return
        if not resume:
            raise FileExistsError(f"{name} exists and would be overwritten: pass resume=True to go on, or remove it.")
        tensors, about = checkpoints.read(self.path)
        if "settings" not in about:
            raise ValueError(f"{name} holds weights but no run to go on with: fill a network with checkpoints.load.")
        checkpoints.refuse_other_network(name, checkpoints.part(tensors, "net"), run.net)
        for key, mine in self.settings.items():
            theirs = about["settings"].get(key)
            if theirs != mine:
                raise ValueError(
                    f"{name} was saved by a run with {key} {theirs!r}, this run has {mine!r}; a run goes on with the "
                    f"settings that it began with: change {key} back, or give another file."
                )
        self.found = tensors, about

    def source_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return where the batches are: their tensors, and the rest."""
        state = self.run.source.state_dict() if hasattr(self.run.source, "state_dict") else {}
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        rest = {key: value for key, value in state.items() if key not in tensors}
        try:
            return tensors, json.loads(json.dumps(rest))
        except TypeError as error:
            raise TypeError(f"the batches' state_dict holds more than tensors and JSON: {error}.") from None

    def due(self, index: int, num_steps: int) -> bool:
        """Say whether a checkpoint is to be written after a step."""
        return self.path is not None and bool(index == num_steps or (self.every and index % self.every == 0))

    def save(self, index: int) -> None:
        """Write the checkpoint."""
        assert self.path is not None
        run = self.run
        batch_tensors, batch_rest = self.source_state()
        random = {"cpu": torch.get_rng_state()}
        if run.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(run.device)
        if run.generator is not None:
            random["generator"] = run.generator.get_state()
        groups = {"net": run.net.state_dict(), "ema": run.ema.net.state_dict(), "batches": batch_tensors}
        groups |= {"random": random}
        groups |= {f"optimizer.{i}": state for i, state in run.optimizer.state_dict()["state"].items()}
        about = {
            "step": index, "ema_updates": run.ema.updates, "batches": batch_rest, "scaler": run.scaler.state_dict(),
            "skipped": [int(run.skipped), int(run.in_a_row)], "settings": self.settings,
        }  # fmt: skip
        tensors = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
        checkpoints.write(self.path, tensors, about)

    def restore(self, accumulate: int) -> int:
        """Bring the run back to where it was saved, and return the step."""
        if self.found is None:
            return 0
        run, (tensors, about) = self.run, self.found
        if hasattr(run.source, "load_state_dict"):
            run.source.load_state_dict({**about["batches"], **checkpoints.part(tensors, "batches")})
        else:
            for index in range(about["step"] * accumulate):
                next_batch(run.source, run.net, 1 + index // accumulate, about["step"])
        run.net.load_state_dict(checkpoints.part(tensors, "net"))
        run.ema.net.load_state_dict(checkpoints.part(tensors, "ema"))
        run.ema.updates = about["ema_updates"]
        whole = run.optimizer.state_dict()
        names = range(len(whole["param_groups"][0]["params"]))
        states = {i: checkpoints.part(tensors, f"optimizer.{i}") for i in names}
        run.optimizer.load_state_dict({**whole, "state": {i: state for i, state in states.items() if state}})
        run.scaler.load_state_dict(about["scaler"])
        run.skipped, run.in_a_row = (torch.tensor(n, device=run.device) for n in about["skipped"])
        random = checkpoints.part(tensors, "random")  # last, since the batches may have drawn
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], run.device)
        if run.generator is not None:
            run.generator.set_state(random["generator"])
        return about["step"]


def next_batch(
    source: Iterator[tuple[Tensor, Tensor | None]], net: nn.Module, index: int, num_steps: int
) -> tuple[Tensor, Tensor | None]:
    """Return the next (x, cond) on the network's device."""
    try:
        x, cond = next(source)
    except StopIteration:
        raise ValueError(f"the batches ended at step {index} of {num_steps}: data.batches goes on for ever.") from None
    if cond is None and getattr(net, "null_cond", None) is not None:
        raise ValueError("the network takes classes but the batches give none: use data.batches(x, y, size=...).")
    device = next(net.parameters()).device
    return x.to(device), None if cond is None else cond.to(device)


def _refuse_not_finite(name: str, value: Tensor, index: int) -> None:
    if not bool(torch.isfinite(value)):
        raise ValueError(
            f"the {name} at step {index} is {float(value):g}; it must be finite: lower lr, and look for NaN or a wrong "
            f"range in the data."
        )


def _bar(start: int, num_steps: int, progress: bool) -> Iterable[int]:
    indices = range(start + 1, num_steps + 1)
    if not progress or os.environ.get("TQDM_DISABLE"):  # the notebook bar of tqdm does not look there itself
        return indices
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return indices
    return tqdm(indices, desc="training", leave=False, initial=start, total=num_steps)

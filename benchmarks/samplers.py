"""How far from the exact solution are samplers after a few network calls, and how good are the digits they draw?

    python benchmarks/samplers.py              # about half an hour on two CPU cores

Needs diffusers and k-diffusion (see CONTRIBUTING.md). Writes companion/results/samplers.json, which chapter 7 reads,
in three parts that can be run apart with --parts:

- mixtures: samplers of this package, of diffusers and of k-diffusion, on every grid that each offers, against the
  exact solution of the probability-flow ODE of Gaussian mixtures (linear schedule, same noise for all). A scheduler
  that asks at a whole timestep near its sigma is given the denoiser exactly at its sigma, which can only help it.
- digits: Frechet distance of digits drawn from the shipped network, by sampler and calls, over its floor.
- cost: time of a step without its network, over that of diffusers, measured in turn in one process.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from companion import data, denoisers, metrics, predictions, samplers, schedules, weights

ROOT = Path(__file__).parents[1]
OUT = ROOT / "companion" / "results" / "samplers.json"
LINEAR = schedules.Linear()
CALLS = (5, 10, 20)
NAMED = ("ring", "lattice", "16-D")
WIDE = torch.float64

# --- exact mixtures ---


def mixtures() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return means, standard deviations and weights of the mixtures, by name."""
    angle = torch.arange(8, dtype=WIDE) * math.pi / 4
    side = torch.linspace(-1, 1, 5, dtype=WIDE)
    turn = torch.linspace(0.1, 1, 60, dtype=WIDE)
    spiral = 1.3 * turn[:, None] * torch.stack([(3 * math.pi * turn).cos(), (3 * math.pi * turn).sin()], 1)
    generator = torch.Generator().manual_seed(0)
    broad = torch.randn(4, 16, generator=generator, dtype=WIDE)
    corners = 0.8 * (2.0 * torch.randint(0, 2, (20, 8), generator=generator) - 1).to(WIDE)
    digits = data.digits("train")[0][:100].flatten(1).to(WIDE)

    def even(means: Tensor, std: float) -> tuple[Tensor, Tensor, Tensor]:
        return means, torch.full((len(means),), std, dtype=WIDE), torch.ones(len(means), dtype=WIDE)

    def uneven(means: list[list[float]], stds: list[float], parts: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tensor(means, dtype=WIDE), torch.tensor(stds, dtype=WIDE), torch.tensor(parts, dtype=WIDE)

    found = {
        "ring": even(torch.stack([angle.cos(), angle.sin()], 1), 0.05),
        "lattice": even(torch.cartesian_prod(side, side), 0.02),
        "16-D": even(broad, 0.3),
        "wide ring": even(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.1),
        "loose lattice": even(1.5 * torch.cartesian_prod(side, side), 0.1),
        "two scales": uneven([[1.0, 0.0], [-0.7, 0.5]], [0.5, 0.01], [1.0, 3.0]),
        "line": uneven([[-1.2], [0.3], [0.9]], [0.1, 0.05, 0.2], [0.2, 0.5, 0.3]),
        "spiral": even(spiral, 0.03),
        "cube corners": even(corners, 0.1),
        "blurred digits": even(digits, 0.1),
    }
    for seed, (dim, std_low, std_high) in enumerate([(1, 0.02, 0.4), (2, 0.1, 0.1), (3, 0.02, 0.4), (32, 0.05, 0.2)]):
        generator = torch.Generator().manual_seed(100 + seed)
        count = int(torch.randint(2, 30, (1,), generator=generator))
        means = torch.randn(count, dim, generator=generator, dtype=WIDE)
        share = torch.rand(count, generator=generator, dtype=WIDE)
        parts = torch.rand(count, generator=generator, dtype=WIDE) + 0.1
        found[f"random, {dim}-D"] = (means, std_low * (std_high / std_low) ** share, parts)
    return found


def exact_end(exact: denoisers.GaussianMixture, noise: Tensor) -> Tensor:
    """Return the solution at t = 0 of the probability-flow ODE from t = 1, by 2,000 steps of order 4."""
    ts = LINEAR.time_grid(2000, spacing="log_snr", t_min=float(LINEAR.t_of_log_snr(2 * math.log(1e4))))
    return samplers.last(samplers.adams(exact, LINEAR, float(LINEAR.sigma(1.0)) * noise, ts)).x


def distance(x: Tensor, end: Tensor) -> float:
    """Return the root of the mean squared distance of the samples from where they should be."""
    return float((x - end).square().sum(1).mean().sqrt())


Run = Callable[[denoisers.Denoiser, Tensor, int], Tensor]  # denoiser, noise, calls -> x at t = 0


def ours(sampler: Callable, spacing: str, denoise: denoisers.Denoiser, noise: Tensor, calls: int) -> Tensor:
    """Walk with a sampler of this package."""
    num_steps = (calls + 1) // 2 if sampler is samplers.heun else calls
    ts = LINEAR.time_grid(num_steps, spacing=spacing)
    return samplers.last(sampler(denoise, LINEAR, float(LINEAR.sigma(ts[0])) * noise, ts)).x


@cache
def time_of(noise_to_signal: float) -> Tensor:
    """Return the time of a noise-to-signal ratio, 1 for the largest there is."""
    if noise_to_signal > 0.99999 * float(LINEAR.noise_to_signal(1.0)):
        return torch.tensor(1.0, dtype=WIDE)
    return LINEAR.t_of_log_snr(-2 * math.log(noise_to_signal))


def with_diffusers(kind: type, options: dict, calls_a_step: int, denoise, noise: Tensor, calls: int) -> Tensor:
    """Walk with a scheduler of diffusers, whose network is the exact eps."""
    scheduler = kind(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
    scheduler.set_timesteps((calls + 1) // 2 if calls_a_step == 2 else calls)
    x = noise * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, timestep)
        if hasattr(scheduler, "sigmas"):
            if scheduler.step_index is None:
                scheduler._init_step_index(timestep)
            second = calls_a_step == 2 and not scheduler.state_in_first_order
            between = getattr(scheduler, "sigmas_interpol", None)
            if between is not None and second:
                sigma = float(between[scheduler.step_index])
            else:
                sigma = float(scheduler.sigmas[scheduler.step_index])
            if sigma == 0:
                break
        else:
            bar = float(scheduler.alphas_cumprod[int(timestep)])
            sigma = math.sqrt((1 - bar) / bar)
        t = time_of(sigma)
        eps = predictions.x0_to_eps(seen, denoise(seen, t), float(LINEAR.alpha(t)), float(LINEAR.sigma(t)))
        x = scheduler.step(eps, timestep, x).prev_sample
    return x


def with_k_diffusion(function, grid, calls_a_step: int, denoise, noise: Tensor, calls: int) -> Tensor:
    """Walk with a sampler of k-diffusion on one of its grids."""
    sigmas = grid((calls + 1) // 2 if calls_a_step == 2 else calls).to(WIDE)

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        ratio = float(sigma.flatten()[0])
        return denoise(x / math.sqrt(1 + ratio**2), time_of(ratio))

    return function(model, noise * sigmas[0], sigmas, disable=True)


def choices() -> dict[str, Run]:
    """Return every sampler on every grid, by name."""
    import diffusers

    sys.path.insert(0, str(ROOT / "tests"))
    from peers import k_diffusion

    sampling, _ = k_diffusion()
    diffusers.utils.logging.set_verbosity_error()
    found: dict[str, Run] = {}
    for name in ("ddim", "heun", "dpmpp_2m", "adams"):
        for spacing in schedules.SPACINGS:
            found[f"{name}, {spacing}"] = partial(ours, getattr(samplers, name), spacing)

    spacings = {name: {"timestep_spacing": name} for name in ("linspace", "trailing")}
    warps = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}
    to_zero = {"final_sigmas_type": "zero"}
    lu = {"lu": {"use_lu_lambdas": True}}
    families = [
        ("DDIM", "DDIMScheduler", [{"clip_sample": False, "set_alpha_to_one": True}], spacings, 1),
        ("Euler", "EulerDiscreteScheduler", [{}], {**spacings, **warps}, 1),
        ("LMS", "LMSDiscreteScheduler", [{}], {**spacings, **warps}, 1),
        ("Heun", "HeunDiscreteScheduler", [{}], {"linspace": {}, **warps}, 2),
        ("KDPM2", "KDPM2DiscreteScheduler", [{}], {"linspace": {}, **warps}, 2),
    ]
    orders = [{"solver_order": order} for order in (2, 3)]
    for label, kind, grids in (
        ("DPM++", "DPMSolverMultistepScheduler", {**spacings, **warps, **lu}),
        ("DPM++ single", "DPMSolverSinglestepScheduler", {"linspace": {}, "karras": warps["karras"]}),
        ("UniPC", "UniPCMultistepScheduler", {**spacings, **warps}),
    ):
        families.append((label, kind, [{**order, **to_zero} for order in orders], grids, 1))
    families.append(("DEIS", "DEISMultistepScheduler", orders, {**spacings, **warps}, 1))
    for label, kind, variants, grids, calls in families:
        for options in variants:
            for grid, more in grids.items():
                order = f" {options['solver_order']}" if "solver_order" in options else ""
                run = partial(with_diffusers, getattr(diffusers, kind), {**options, **more}, calls)
                found[f"diffusers {label}{order}, {grid}"] = run

    low, high = 0.01, float(LINEAR.noise_to_signal(1.0))
    k_grids = {
        "karras": lambda n: sampling.get_sigmas_karras(n, low, high),
        "exponential": lambda n: sampling.get_sigmas_exponential(n, low, high),
        "polyexponential": lambda n: sampling.get_sigmas_polyexponential(n, low, high, rho=2.0),
        "discrete": lambda n: LINEAR.noise_to_signal(
            torch.cat([torch.linspace(1, 0.001, n, dtype=WIDE), torch.zeros(1, dtype=WIDE)])
        ),
    }
    for label, name, calls in (
        ("Euler", "sample_euler", 1),
        ("LMS", "sample_lms", 1),
        ("DPM++ 2M", "sample_dpmpp_2m", 1),
        ("Heun", "sample_heun", 2),
        ("DPM-2", "sample_dpm_2", 2),
    ):
        for grid, make in k_grids.items():
            found[f"k-diffusion {label}, {grid}"] = partial(with_k_diffusion, getattr(sampling, name), make, calls)
    return found


def mean_log(values: list[float]) -> float:
    """Return the geometric mean."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def is_peer(name: str) -> bool:
    """Say whether a choice is another library's."""
    return name.startswith(("diffusers", "k-diffusion"))


def run_mixtures(samples: int, only: tuple[str, ...] | None = None) -> dict:
    """Return the distance of every choice on every mixture after 5, 10 and 20 calls, and what follows."""
    table: dict[str, dict[str, list[float]]] = {}
    runs = choices()
    for name, (means, stds, parts) in mixtures().items():
        if only and name not in only:
            continue
        exact = denoisers.GaussianMixture(means, stds**2, parts, LINEAR)
        noise = torch.randn(samples, means.shape[1], generator=torch.Generator().manual_seed(7), dtype=WIDE)
        end = exact_end(exact, noise)
        for choice, run in runs.items():
            table.setdefault(choice, {})[name] = [distance(run(exact, noise, calls), end) for calls in CALLS]
        print(f"{name}: done", flush=True)

    def summary(names: tuple[str, ...]) -> dict:
        overall = {choice: mean_log([v for n in names for v in rows[n]]) for choice, rows in table.items()}
        best = min((c for c in overall if is_peer(c)), key=overall.__getitem__)
        return {
            "best single choice of the others": best,
            "its error": overall[best],
            "adams, angle": overall["adams, angle"],
            "ratio": overall["adams, angle"] / overall[best],
            "ratio by calls": [
                mean_log([table["adams, angle"][n][i] for n in names]) / mean_log([table[best][n][i] for n in names])
                for i in range(len(CALLS))
            ],
        }

    names = tuple(next(iter(table.values())))
    named = tuple(n for n in names if n in NAMED)
    return {
        "samples": samples,
        "calls": list(CALLS),
        "schedule": "Linear",
        "named": summary(named),
        "all": summary(names),
        "errors": {c: {n: [float(f"{v:.4g}") for v in row] for n, row in rows.items()} for c, rows in table.items()},
    }


# --- digits ---

DIGIT_ROWS: dict[str, tuple[str, tuple[int, ...]]] = {  # sampler: grid, calls
    "adams": ("angle", (5, 10, 20)),
    "dpmpp_2m": ("angle", (5, 10, 20)),
    "heun": ("uniform", (5, 9, 19)),
    "ddim": ("angle", (5, 10, 20)),
    "ddpm": ("uniform", (10, 20, 100, 1000)),
}


def with_classes_of(images: Tensor, labels: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Return images drawn without repetition, as many of each class as there are in `wanted`."""
    parts = []
    for c in range(10):
        mine = (labels == c).nonzero().squeeze(1)
        parts.append(mine[torch.randperm(len(mine), generator=generator)[: int((wanted == c).sum())]])
    return images[torch.cat(parts)]


def draw_digits(model, sampler: str, spacing: str, calls: int, labels: Tensor, seed: int) -> Tensor:
    """Draw one digit for each label."""
    schedule, generator = schedules.Cosine(), torch.Generator().manual_seed(seed)
    ts = schedule.time_grid((calls + 1) // 2 if sampler == "heun" else calls, spacing=spacing)
    x = samplers.start(schedule, (len(labels), 1, 8, 8), ts, generator=generator)
    more = {"generator": generator} if sampler == "ddpm" else {}
    return samplers.last(getattr(samplers, sampler)(lambda x, t: model(x, t, labels), schedule, x, ts, **more)).x


def run_digits(seeds: int, longest: int, only: list[str] | None, rows: dict[str, dict]) -> dict:
    """Return the Frechet distance over its floor, and the share as asked, by sampler and calls.

    The floor is what training images score against the held-out ones, with the classes of the held-out ones, as the
    samples have.
    """
    judge = weights.load("digit_classifier")
    model = denoisers.from_network(weights.load("digit_denoiser"), schedules.Cosine(), predictions.V)
    images, labels = data.digits("train")
    held_out, held_out_labels = data.digits("held-out")
    far = partial(metrics.frechet_distance, features=judge.features)
    generator = torch.Generator().manual_seed(0)
    parts = [with_classes_of(images, labels, held_out_labels, generator) for _ in range(16)]
    floors = torch.tensor([far(part, held_out) for part in parts])
    for sampler, (spacing, budget) in DIGIT_ROWS.items():
        for calls in budget:
            if calls > longest or (only and sampler not in only):
                continue
            values, right = [], []
            for seed in range(seeds):
                x = draw_digits(model, sampler, spacing, calls, held_out_labels, seed)
                values.append(far(x, held_out) / float(floors.mean()))
                right.append(float((judge(x).argmax(1) == held_out_labels).float().mean()))
            spread = statistics.stdev(values) / math.sqrt(seeds) if seeds > 1 else math.nan
            rows[f"{sampler}, {calls}"] = {
                "spacing": spacing,
                "ratio": statistics.fmean(values),
                "error": spread,
                "as asked": statistics.fmean(right),
                "by seed": values,
            }
            print(f"{sampler}, {calls}: {statistics.fmean(values):.3f} +- {spread:.3f}", flush=True)
    return {
        "samples": len(held_out),
        "seeds": list(range(seeds)),
        "floor": float(floors.mean()),
        "floor error": float(floors.std() / len(floors) ** 0.5 / floors.mean()),
        "rows": rows,
    }


# --- the cost of a step ---


def run_cost(repeats: int) -> dict:
    """Return the time of our step over that of diffusers' for the same sampler, measured in turn.

    The least of the repeats is the one that nothing else on the machine disturbed.
    """
    import diffusers

    shape, num_steps = (64, 1, 28, 28), 50
    out = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ts = LINEAR.time_grid(num_steps, spacing="uniform")

    def walk(sampler: Callable) -> float:
        x = samplers.start(LINEAR, shape, ts, generator=torch.Generator().manual_seed(1))
        steps = sampler(lambda x, t: out, LINEAR, x, ts)
        next(steps)
        began = time.perf_counter()
        for _ in steps:
            pass
        return (time.perf_counter() - began) / (num_steps - 1)

    def theirs(kind: str, **options) -> float:
        scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, **options)
        scheduler.set_timesteps(num_steps)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        first, *rest = scheduler.timesteps
        x = scheduler.step(out, first, x).prev_sample
        began = time.perf_counter()
        for timestep in rest:
            x = scheduler.step(out, timestep, x).prev_sample
        return (time.perf_counter() - began) / (num_steps - 1)

    pairs = {
        "ddim": (samplers.ddim, partial(theirs, "DDIMScheduler", clip_sample=False)),
        "ddpm": (samplers.ddpm, partial(theirs, "DDPMScheduler", clip_sample=False)),
        "dpmpp_2m": (samplers.dpmpp_2m, partial(theirs, "DPMSolverMultistepScheduler")),
        "heun": (samplers.heun, partial(theirs, "HeunDiscreteScheduler")),
        "adams": (samplers.adams, partial(theirs, "UniPCMultistepScheduler", solver_order=3)),
    }
    found = {}
    for name, (mine, other) in pairs.items():
        times = [(walk(mine), other()) for _ in range(repeats)]
        mine_s, other_s = (min(column) for column in zip(*times, strict=True))
        found[name] = {"ratio": mine_s / other_s, "ours us": 1e6 * mine_s, "diffusers us": 1e6 * other_s}
        print(f"{name}: {mine_s / other_s:.2f} of diffusers' step", flush=True)
    return {"shape": list(shape), "repeats": repeats, "rows": found}


def main(argv: list[str] | None = None) -> None:
    """Measure the parts asked for, and write them beside those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["mixtures", "digits", "cost"])
    parser.add_argument("--samples", type=int, default=128, help="samples of each mixture (default: 128)")
    parser.add_argument("--only", nargs="+", help="mixtures (default: all)")
    parser.add_argument("--rows", nargs="+", help="samplers whose digits to draw, keeping the others' (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of digits (default: 3)")
    parser.add_argument("--longest", type=int, default=1000, help="most calls for digits (default: 1000)")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each step (default: 15)")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    result = json.loads(options.out.read_text(encoding="utf8")) if options.out.exists() else {}
    result["script"] = "benchmarks/samplers.py"
    result["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    if {"mixtures", "cost"} & set(options.parts):
        from importlib.metadata import version

        result["versions"] |= {name: version(name) for name in ("diffusers", "k-diffusion")}
    if "mixtures" in options.parts:
        result["mixtures"] = run_mixtures(options.samples, tuple(options.only) if options.only else None)
        for name in ("named", "all"):
            print(name, result["mixtures"][name])
    if "digits" in options.parts:
        kept = result["digits"]["rows"] if options.rows else {}
        result["digits"] = run_digits(options.seeds, options.longest, options.rows, kept)
    if "cost" in options.parts:
        result["cost"] = run_cost(options.repeats)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()

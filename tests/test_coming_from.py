"""Each row of book/coming-from.md is measured here, by the test of its name.

A row ends its first cell with its name in a comment, and its last cell says "Same to 1e-6", a bound on the largest
absolute difference, or "Differs", with what was measured in bold. Numbers of EDM follow the formulas of Karras et al.
(2022), written out here.
"""

import ast
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import seeded
from peers import k_diffusion
from test_interop import k_walk, mixture, scheduler_of, small_unet, the_diffusers, walk
from torch import nn

from companion import denoisers, encodings, guidance, interop, latents, losses, noise, predictions, samplers
from companion.predictions import EPS, VELOCITY, X0, V, edm
from companion.schedules import (
    Cosine,
    FlowMatching,
    Linear,
    ScaledLinear,
    Sigmoid,
    VarianceExploding,
    cosine_betas,
    from_betas,
    zero_terminal_snr,
)
from companion.training import EMA

D = torch.float64
PAGE = Path(__file__).parents[1] / "book" / "coming-from.md"
ROWS = {name: verdict for name, verdict in re.findall(r"^\|.*<!-- (\S+) -->.*\| ([^|]*) \|$", PAGE.read_text(), re.M)}
NAMES = re.findall(r"<!-- (\S+) -->", PAGE.read_text())
SHAPE = (3, 2, 8, 8)
ALL_STEPS = torch.arange(1, 1001, dtype=D) / 1000  # t of the timesteps 0 to 999
LINEAR = Linear()
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


class Row:
    """What a row of the page claims, to be held against what was measured."""

    def __init__(self, name):
        self.verdict, self.checked = ROWS[name], False

    def same(self, *pairs):
        """Hold every pair of tensors to the bound of the row."""
        self.checked = bool(pairs)
        bound = re.match(r"Same to (\d+e-\d+)\b", self.verdict)
        assert bound, f"the row says {self.verdict!r}, the test that both are the same"
        for ours, theirs in pairs:
            ours, theirs = (torch.as_tensor(v, dtype=D) for v in (ours, theirs))
            assert ours.shape == theirs.shape and bool(torch.isfinite(theirs).all())
            largest = float((ours - theirs).abs().max())
            assert largest <= float(bound[1]), largest

    def differs(self, *measured):
        """Hold the numbers in bold to those measured, to the digits that are printed."""
        self.checked = True
        printed = re.findall(r"\*\*([^*]+)\*\*", self.verdict)
        assert self.verdict.startswith("Differs") and printed, self.verdict
        assert len(printed) == len(measured), (printed, measured)
        for text, value in zip(printed, measured, strict=True):
            digits, _, power = text.partition("e")
            last_place = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
            assert abs(float(text) - float(value)) <= 0.51 * last_place, (text, float(value))


@pytest.fixture
def row(request):
    claim = Row(request.node.name.removeprefix("test_row_").replace("_", "-"))
    yield claim
    assert claim.checked or not getattr(request.node, "passed", False), "the test held nothing against its row"


def normal(*shape, seed=0, dtype=D):
    return torch.randn(shape or SHAPE, generator=seeded(seed), dtype=dtype)


def worst(a, b):
    return float((torch.as_tensor(a, dtype=D) - torch.as_tensor(b, dtype=D)).abs().max())


# --- the page and this file name the same rows ---


def test_each_row_has_one_test_and_each_test_a_row():
    tree = ast.parse(Path(__file__).read_text())
    tests = [f.name for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("test_row_")]
    tests = [name.removeprefix("test_row_").replace("_", "-") for name in tests]
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []
    assert [name for name, count in Counter(tests).items() if count > 1] == []
    assert sorted(tests) == sorted(NAMES) == sorted(ROWS)
    assert len(NAMES) >= 25


def test_each_line_of_a_table_is_a_row():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    heads = [line for line in lines if line.startswith("| there |")]
    assert len(heads) >= 5 and len(lines) == len(NAMES) + 2 * len(heads)
    assert all(re.match(r"Same to \d+e-\d+\b|Differs\b.*\*\*", verdict) for verdict in ROWS.values())


# --- time and noise ---


def test_row_timestep(row):
    x0, eps, k = normal(seed=1), normal(seed=2), torch.tensor([0, 499, 999])
    ours, _ = noise.add_noise(x0, (k + 1).double() / 1000, LINEAR, eps)
    row.same((ours, scheduler_of("DDPMScheduler", "linear", "epsilon").add_noise(x0, eps, k)))


def test_row_timestep_0(row):
    scheduler = scheduler_of("DDPMScheduler", "linear", "epsilon")
    row.differs((1 - scheduler.alphas_cumprod[0]).sqrt())
    assert LINEAR.sigma(0.0) == 0


def test_row_alphas_cumprod(row):
    theirs = scheduler_of("DDPMScheduler", "linear", "epsilon").alphas_cumprod
    row.same((LINEAR.alpha_bar(ALL_STEPS), theirs), (LINEAR.alpha(ALL_STEPS), theirs**0.5))


def test_row_sigma(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "scaled_linear", "epsilon", timestep_spacing="trailing")
    ts, (_, external) = interop.grid_from_diffusers(scheduler), k_diffusion()
    ours = ScaledLinear().noise_to_signal(ts)
    wrapped = external.DiscreteEpsDDPMDenoiser(None, scheduler.alphas_cumprod, quantize=False)
    row.same((ours, scheduler.sigmas), (ScaledLinear().noise_to_signal(ALL_STEPS), wrapped.sigmas))


def test_row_x_over_alpha(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "scaled_linear", "epsilon", timestep_spacing="trailing")
    x0, eps = normal(seed=1), normal(seed=2)
    t = interop.grid_from_diffusers(scheduler)[3]
    x, _ = noise.add_noise(x0, t, ScaledLinear(), eps)
    row.same((x / ScaledLinear().alpha(t), scheduler.add_noise(x0, eps, scheduler.timesteps[[3, 3, 3]])))


def test_row_scale_model_input(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "scaled_linear", "epsilon", timestep_spacing="trailing")
    x, t = normal(), interop.grid_from_diffusers(scheduler)[0]
    row.same((x, scheduler.scale_model_input(x / ScaledLinear().alpha(t), scheduler.timesteps[0])))


def test_row_init_noise_sigma(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "scaled_linear", "epsilon", timestep_spacing="trailing")
    ts, schedule = interop.grid_from_diffusers(scheduler), ScaledLinear()
    ours = samplers.start(schedule, SHAPE, ts, generator=seeded(), dtype=D) / schedule.alpha(ts[0])
    row.same((ours, normal() * scheduler.init_noise_sigma))


def test_row_unit_start(row):
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", timestep_spacing="trailing")
    ts = interop.grid_from_diffusers(scheduler)
    ours = samplers.start(LINEAR, SHAPE, ts, generator=seeded(), dtype=D)
    row.differs((scheduler.init_noise_sigma * normal() - ours).std() / normal().std())


def test_row_flow_time(row):
    scheduler = the_diffusers().FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    x0, eps, t = normal(seed=1, dtype=torch.float32), normal(seed=2, dtype=torch.float32), scheduler.timesteps[2] / 1000
    x, _ = noise.add_noise(x0, t, FlowMatching(), eps)
    row.same((x, scheduler.scale_noise(x0, scheduler.timesteps[2:3], eps)))


def test_row_lambda(row):
    scheduler = scheduler_of("DPMSolverMultistepScheduler", "linear", "epsilon")
    row.same((LINEAR.log_snr(ALL_STEPS[9:]) / 2, scheduler.lambda_t[9:]))


# --- schedules ---


def test_row_linear(row):
    row.same((LINEAR.alpha_bar(ALL_STEPS), the_diffusers().DDPMScheduler().alphas_cumprod))


def test_row_scaled_linear(row):
    kind, options = the_diffusers().DDPMScheduler, {"beta_schedule": "scaled_linear"}
    row.same(
        (ScaledLinear().alpha_bar(ALL_STEPS), kind(beta_start=0.00085, beta_end=0.012, **options).alphas_cumprod),
        (ScaledLinear(1000, 1e-4, 0.02).alpha_bar(ALL_STEPS), kind(**options).alphas_cumprod),
    )


def test_row_squaredcos_cap_v2(row):
    theirs = the_diffusers().DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    row.same((from_betas(cosine_betas()).alpha_bar(ALL_STEPS), theirs))


def test_row_cosine_end(row):
    theirs = the_diffusers().DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod ** 0.5
    assert Cosine().alpha(1.0) == 0
    row.differs(theirs[-1], worst(Cosine().alpha(ALL_STEPS), theirs))


def test_row_trained_betas(row):
    kind, betas = the_diffusers().DDIMScheduler, torch.linspace(1e-3, 0.03, 1000)
    row.same(
        (from_betas(betas).alpha_bar(ALL_STEPS), kind(trained_betas=betas.tolist()).alphas_cumprod),
        (Sigmoid().alpha_bar(ALL_STEPS), kind(trained_betas=interop.betas_for_diffusers(Sigmoid())).alphas_cumprod),
    )


def test_row_zero_snr(row):
    scheduler = scheduler_of("DDIMScheduler", "zero_terminal", "v_prediction")
    row.same((zero_terminal_snr(LINEAR).alpha_bar(ALL_STEPS), scheduler.alphas_cumprod))


def test_row_vp_sde(row):
    t = torch.linspace(1e-3, 1, 400, dtype=D)
    alpha = torch.exp(-(19.9 * t**2 / 2 + 0.1 * t) / 2)
    theirs = k_diffusion()[0].get_sigmas_vp(400)[:-1].flip(0)
    assert worst((1 / alpha**2 - 1).sqrt(), theirs) < 1e-2
    row.differs(worst(LINEAR.alpha(t), alpha))


# --- what the network outputs ---


def x0_there(prediction, x, out, timestep):
    """What a scheduler of diffusers takes x0 to be."""
    scheduler = scheduler_of("DDIMScheduler", "linear", prediction, exact=True, clip_sample=False)
    return scheduler.step(out, timestep, x).pred_original_sample


def test_row_epsilon(row):
    x, out, a, s = normal(seed=1), normal(seed=2), LINEAR.alpha(0.501), LINEAR.sigma(0.501)
    row.same((EPS.to_x0(x, out, a, s), x0_there("epsilon", x, out, 500)))


def test_row_sample(row):
    x, out = normal(seed=1), normal(seed=2)
    row.same((X0.to_x0(x, out, 0.8, 0.6), x0_there("sample", x, out, 500)))


def test_row_v_prediction(row):
    x, out, a, s = normal(seed=1), normal(seed=2), LINEAR.alpha(0.501), LINEAR.sigma(0.501)
    scheduler = scheduler_of("DDIMScheduler", "linear", "v_prediction", exact=True)
    k = torch.tensor([500, 500, 500])
    row.same(
        (V.to_x0(x, out, a, s), x0_there("v_prediction", x, out, 500)),
        (V.target(x, out, a, s), scheduler.get_velocity(x, out, k)),
    )


def test_row_flow_velocity(row):
    scheduler = the_diffusers().FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    x0, eps = normal(seed=1, dtype=torch.float32), normal(seed=2, dtype=torch.float32)
    t, s = (scheduler.timesteps[:2] / 1000).tolist()
    out = VELOCITY.target(x0, eps, 1 - t, t)
    there = scheduler.step(out, scheduler.timesteps[0], (1 - t) * x0 + t * eps).prev_sample
    row.same(((1 - s) * x0 + s * eps, there), (eps - x0, out))


def edm_denoiser(network, x, sigma, sd):
    """D(x; sigma) of Karras et al. (2022), eq. 7 with the last column of table 1."""
    c_skip = sd**2 / (sigma**2 + sd**2)
    c_out = sigma * sd / math.sqrt(sigma**2 + sd**2)
    c_in = 1 / math.sqrt(sigma**2 + sd**2)
    return c_skip * x + c_out * network(c_in * x, math.log(sigma) / 4)


def test_row_edm_f(row):
    x, t, pairs = normal(seed=1), 0.4, []
    for schedule in (VarianceExploding(), LINEAR):
        alpha, ratio = schedule.alpha(t), float(schedule.noise_to_signal(t))
        ours = denoisers.from_network(lambda x, t, cond: (3 * x).sin(), schedule, edm(0.5))
        there = edm_denoiser(lambda x, c_noise: (3 * x).sin(), x / alpha, ratio, 0.5)
        pairs.append((ours(x, torch.tensor(t, dtype=D)), there))
    row.same(*pairs)


def test_row_c_noise(row):
    schedule, seen = VarianceExploding(), []
    t = torch.tensor([0.2, 0.5, 0.9], dtype=D)
    for ratio in schedule.noise_to_signal(t).tolist():
        edm_denoiser(lambda x, c_noise: seen.append(c_noise) or x, torch.ones(1), ratio, 0.5)
    row.same((-schedule.log_snr(t) / 8, seen))


def test_row_edm_sign(row):
    x0, eps = normal(seed=1), normal(seed=2)
    row.same((edm(1.0).target(x0, eps, 0.8, 0.6), -V.target(x0, eps, 0.8, 0.6)))


def test_row_v_denoiser(row):
    def network(x, t, cond=None):
        return (2 * x + t.reshape(-1, 1, 1, 1)).sin()

    schedule, t, x = Cosine(s=0.0), torch.tensor([0.1, 0.5, 0.9], dtype=D), normal()
    alpha = schedule.alpha(t)[:, None, None, None]
    there = k_diffusion()[1].VDenoiser(network)(x / alpha, schedule.noise_to_signal(t))
    row.same((denoisers.from_network(network, schedule, V)(x, t), there))


def test_row_score(row):
    """With the mean 0 and the standard deviation 0.5 of a Gaussian, D is c_skip * x."""
    x, ratio, spread = normal(4, 2), 0.7, torch.tensor([0.25], dtype=D)
    t = LINEAR.t_of_log_snr(-2 * math.log(ratio))
    exact = denoisers.GaussianMixture(torch.zeros(1, 2, dtype=D), spread, torch.ones(1, dtype=D), LINEAR)
    alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
    there = edm_denoiser(lambda x, c_noise: 0 * x, x / alpha, ratio, 0.5)
    ours = predictions.eps_to_score(predictions.x0_to_eps(x, exact(x, t), alpha, sigma), sigma)
    row.same((alpha * ours, (there - x / alpha) / ratio**2), (ours, exact.score(x, t)))


# --- samplers ---


def both(scheduler):
    """Our schedule, the exact denoiser of a mixture, the same as a model for diffusers, a noise and their grid."""
    schedule = interop.schedule_from_diffusers(scheduler)
    exact = mixture(schedule)
    model = interop.to_diffusers(exact, schedule, scheduler)
    return schedule, exact, model, normal(4, 2, 2, 2, seed=2), interop.grid_from_diffusers(scheduler)


def ends(sampler, scheduler, ours=None, **theirs):
    """The last x of our sampler and of a diffusers loop from one noise; some schedulers there walk x / alpha."""
    schedule, exact, model, x, ts = both(scheduler)
    x = x * float(schedule.sigma(ts[0]))
    scaled = type(scheduler).__name__ in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
    start = x / schedule.alpha(ts[0]) if scaled else x
    return samplers.last(sampler(exact, schedule, x, ts, **(ours or {}))).x, walk(scheduler, model, start, **theirs)[-1]


def test_row_fixed_small(row):
    scheduler = scheduler_of("DDPMScheduler", "linear", "epsilon", exact=True, clip_sample=False)
    assert scheduler.config.variance_type == "fixed_small"
    row.same(ends(samplers.ddpm, scheduler, {"generator": seeded(3)}, generator=seeded(3)))


def test_row_fixed_large(row):
    more = {"clip_sample": False, "variance_type": "fixed_large"}
    scheduler = scheduler_of("DDPMScheduler", "linear", "epsilon", exact=True, **more)
    ours = {"variance": "upper", "generator": seeded(3)}
    row.same(ends(samplers.ddpm, scheduler, ours, generator=seeded(3)))


def test_row_eta(row):
    more = {"exact": True, "clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", **more)
    row.same(
        *(
            ends(samplers.ddim, scheduler, {"eta": eta, "generator": seeded(3)}, eta=eta, generator=seeded(3))
            for eta in (0.0, 0.7, 1.0)
        )
    )


def test_row_ddim_linspace(row):
    more = {"exact": True, "clip_sample": False, "timestep_spacing": "linspace"}
    row.differs(worst(*ends(samplers.ddim, scheduler_of("DDIMScheduler", "linear", "epsilon", **more))))


def test_row_euler(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "linear", "epsilon", timestep_spacing="trailing")
    row.same(ends(samplers.ddim, scheduler), k_ends("sample_euler", samplers.ddim))


def k_ends(name, sampler):
    """The last x of our sampler and of one of k-diffusion, on one grid, from one noise."""
    schedule, ts = LINEAR, LINEAR.time_grid(6)
    exact, x = mixture(schedule), samplers.start(schedule, (4, 2, 2, 2), ts, generator=seeded(2), dtype=D)
    k_diffusion()
    model, sigmas = interop.to_k_diffusion(exact, schedule), interop.sigmas_for_k_diffusion(schedule, ts)
    return samplers.last(sampler(exact, schedule, x, ts)).x, k_walk(name, model, x / schedule.alpha(ts[0]), sigmas)[-1]


def test_row_euler_ancestral(row):
    ts, exact = LINEAR.time_grid(6), mixture(LINEAR)
    x = samplers.start(LINEAR, (4, 2, 2, 2), ts, generator=seeded(2), dtype=D)
    fresh = seeded(3)
    there = k_diffusion()[0].sample_euler_ancestral(
        interop.to_k_diffusion(exact, LINEAR),
        x / LINEAR.alpha(ts[0]),
        interop.sigmas_for_k_diffusion(LINEAR, ts),
        noise_sampler=lambda sigma, sigma_next: torch.randn(x.shape, generator=fresh, dtype=D),
        disable=True,
    )
    row.same(
        (samplers.last(samplers.ddpm(exact, LINEAR, x, ts, generator=seeded(3))).x, there),
        (samplers.last(samplers.ddim(exact, LINEAR, x, ts, eta=1.0, generator=seeded(3))).x, there),
    )


def test_row_heun(row):
    row.same(
        ends(samplers.heun, scheduler_of("HeunDiscreteScheduler", "linear", "epsilon")),
        k_ends("sample_heun", samplers.heun),
    )


def test_row_dpmpp_2m(row):
    row.same(
        ends(samplers.dpmpp_2m, scheduler_of("DPMSolverMultistepScheduler", "linear", "epsilon")),
        k_ends("sample_dpmpp_2m", samplers.dpmpp_2m),
    )


def test_row_flow_euler(row):
    scheduler = the_diffusers().FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    row.same(ends(samplers.ddim, scheduler))


def test_row_edm_heun(row):
    """Algorithm 1 of Karras et al. (2022) with sigma(t) = t and s(t) = 1."""
    schedule, steps = VarianceExploding(), 8
    exact = mixture(schedule)
    ts = edm_grid(schedule, steps)
    sigmas = schedule.noise_to_signal(ts).tolist()
    x = samplers.start(schedule, (4, 2, 2, 2), ts, generator=seeded(), dtype=D)
    model, there = interop.to_k_diffusion(exact, schedule), x
    for t, s in itertools.pairwise(sigmas):
        slope = (there - model(there, t)) / t
        ahead = there + (s - t) * slope
        if s > 0:
            ahead = there + (s - t) * (slope + (ahead - model(ahead, s)) / s) / 2
        there = ahead
    row.same((samplers.last(samplers.heun(exact, schedule, x, ts)).x, there))


def test_row_unipc(row):
    row.differs(worst(*ends(samplers.adams, scheduler_of("UniPCMultistepScheduler", "linear", "epsilon"))))


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
def test_row_deis(row):
    row.differs(worst(*ends(samplers.adams, scheduler_of("DEISMultistepScheduler", "linear", "epsilon"))))


def test_row_lms(row):
    row.differs(worst(*ends(samplers.adams, scheduler_of("LMSDiscreteScheduler", "linear", "epsilon"))))


# --- grids ---


def test_row_num_points(row):
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", steps=10)
    ts = interop.grid_from_diffusers(scheduler)
    row.differs(len(ts) - len(scheduler.timesteps))
    assert ts[-1] == 0


def test_row_trailing(row):
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", steps=10, timestep_spacing="trailing")
    row.same((LINEAR.time_grid(10, spacing="uniform"), interop.grid_from_diffusers(scheduler)))


def test_row_leading(row):
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", steps=10, timestep_spacing="leading", steps_offset=1)
    first = interop.grid_from_diffusers(scheduler)[0]
    assert scheduler_of("DDIMScheduler", "linear", "epsilon").config.timestep_spacing == "leading"
    row.differs(first, LINEAR.noise_to_signal(first), LINEAR.noise_to_signal(1.0))


def test_row_linspace(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "linear", "epsilon", steps=10)
    ts = LINEAR.time_grid(10, spacing="uniform", t_min=0.001)
    row.same((ts, interop.grid_from_diffusers(scheduler)))


def test_row_early_end(row):
    more = {"steps": 10, "set_alpha_to_one": False, "timestep_spacing": "trailing"}
    ts = interop.grid_from_diffusers(scheduler_of("DDIMScheduler", "scaled_linear", "epsilon", **more))
    row.differs(ts[-1], ScaledLinear().sigma(ts[-1]))


def test_row_karras_sigmas(row):
    scheduler = scheduler_of("EulerDiscreteScheduler", "scaled_linear", "epsilon", use_karras_sigmas=True)
    schedule = ScaledLinear()
    sigmas = k_diffusion()[0].get_sigmas_karras(10, float(scheduler.sigmas[-2]), float(scheduler.sigmas[0]))
    t_max, t_min = interop.grid_from_k_diffusion(schedule, sigmas)[[0, -2]].tolist()
    ours = schedule.time_grid(10, spacing="karras", t_max=t_max, t_min=t_min)
    row.same(*((ours, interop.grid_from_k_diffusion(schedule, s)) for s in (sigmas, scheduler.sigmas)))


def test_row_exponential_sigmas(row):
    schedule = ScaledLinear()
    t_max, t_min = schedule.time_grid(2)[:2].tolist()
    ends_at = [float(schedule.noise_to_signal(t)) for t in (t_min, t_max)]
    sigmas = k_diffusion()[0].get_sigmas_exponential(10, *ends_at)
    row.same((schedule.time_grid(10, spacing="log_snr"), interop.grid_from_k_diffusion(schedule, sigmas)))


def edm_grid(schedule, steps):
    """The times at which a schedule has EDM's noise levels, down to 0.002."""
    return schedule.time_grid(steps, spacing="karras", t_min=float(schedule.t_of_log_snr(-2 * math.log(0.002))))


def test_row_edm_grid(row):
    """Equation 5 of Karras et al. (2022), with sigma_max 80, sigma_min 0.002 and rho 7."""
    i, schedule = torch.arange(18, dtype=D), VarianceExploding()
    there = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    there = torch.cat([there, torch.zeros(1, dtype=D)])
    t_min = (0.002 / 80) ** (1 / 7)
    uniform = schedule.time_grid(18, spacing="uniform", t_min=t_min)
    row.same((schedule.noise_to_signal(edm_grid(schedule, 18)), there), (schedule.noise_to_signal(uniform), there))


def test_row_shift(row):
    scheduler = the_diffusers().FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    ts = interop.grid_from_diffusers(scheduler)
    plain = torch.linspace(1, scheduler.sigma_min, 10, dtype=D)
    assert plain[-1] > 0.001 / 2
    row.same((ts[:-1], 3 * plain / (1 + 2 * plain)), (ts, scheduler.sigmas))


# --- guidance ---


def pair():
    """Two denoisers, with and without a condition, and their answers at one x and t."""
    model = denoisers.NetworkDenoiser(lambda x, t, cond: x if cond is None else (x + cond[:, None]).sin(), LINEAR, X0)
    good, bad = guidance.condition(model, torch.tensor(1)), guidance.condition(model, None)
    x, t = normal(4, 6), torch.tensor(0.5, dtype=D)
    return good, bad, x, t, good(x, t), bad(x, t)


def guider(**options):
    the_diffusers()
    found = pytest.importorskip("diffusers.guiders").ClassifierFreeGuidance(**options)
    found.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(999))
    return found


def test_row_guidance_scale(row):
    good, bad, x, t, told, untold = pair()
    row.same(
        (guidance.extrapolate(good, bad, 7.5)(x, t), guider(guidance_scale=7.5).forward(told, untold).pred),
        (guidance.extrapolate(good, bad, 7.5)(x, t), untold + 7.5 * (told - untold)),
    )


def test_row_paper_w(row):
    good, bad, x, t, told, untold = pair()
    there = guider(guidance_scale=6.5, use_original_formulation=True).forward(told, untold).pred
    row.same((guidance.extrapolate(good, bad, 7.5)(x, t), there), ((1 + 6.5) * told - 6.5 * untold, there))


def pipelines_guide(scale):
    """What StableDiffusionPipeline answers when it asks itself whether to guide; to import it takes transformers."""
    file = Path(the_diffusers().__file__).parent / "pipelines" / "stable_diffusion" / "pipeline_stable_diffusion.py"
    (asks,) = [
        part for part in ast.walk(ast.parse(file.read_text(encoding="utf8")))
        if isinstance(part, ast.FunctionDef) and part.name == "do_classifier_free_guidance"
    ]  # fmt: skip
    unet = SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=None))
    return eval(ast.unparse(asks.body[-1].value), {"self": SimpleNamespace(_guidance_scale=scale, unet=unet)})


def test_row_scale_0(row):
    good, bad, x, t, told, untold = pair()
    assert not pipelines_guide(1.0) and not pipelines_guide(0.0) and pipelines_guide(1.1)
    row.differs(worst(guidance.extrapolate(good, bad, 0.0)(x, t), told))
    torch.testing.assert_close(guidance.extrapolate(good, bad, 0.0)(x, t), untold, rtol=0, atol=1e-12)
    torch.testing.assert_close(guidance.extrapolate(good, bad, 1.0)(x, t), told, rtol=0, atol=1e-12)


def test_row_negative_prompt(row):
    """A pipeline puts what is not wanted where nothing would be, and asks once with twice the batch."""
    scheduler, unet, x = scheduler_of("DDIMScheduler", "linear", "sample"), small_unet(3), normal()
    model = interop.from_diffusers(unet, scheduler)
    wanted, unwanted = torch.tensor([0, 0, 0]), torch.tensor([2, 2, 2])
    sides = [lambda x, t, y=y: model(x, t, {"class_labels": y}) for y in (wanted, unwanted)]
    with torch.no_grad():
        ours = guidance.extrapolate(*sides, 3.0)(x, torch.tensor(0.5, dtype=D))
        bad, good = unet(torch.cat([x, x]), 499, class_labels=torch.cat([unwanted, wanted])).sample.chunk(2)
    row.same((ours, guider(guidance_scale=3.0).forward(good, bad).pred))


def test_row_rescale(row):
    good, bad, x, t, told, untold = pair()
    ours = guidance.rescale(guidance.extrapolate(good, bad, 4.0), good, 0.7)(x, t)
    row.same((ours, guider(guidance_scale=4.0, guidance_rescale=0.7).forward(told, untold).pred))


def test_row_rescale_epsilon(row):
    good, bad, x, t, told, untold = pair()
    alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
    sides = [predictions.x0_to_eps(x, answer, alpha, sigma) for answer in (told, untold)]
    there = EPS.to_x0(x, guider(guidance_scale=4.0, guidance_rescale=0.7).forward(*sides).pred, alpha, sigma)
    ours = guidance.rescale(guidance.extrapolate(good, bad, 4.0), good, 0.7)(x, t)
    row.differs((ours - there).norm() / ours.norm())


def clipped_ends(scheduler, sampler, ours, theirs):
    schedule, exact, model, x, ts = both(scheduler)
    clipped = guidance.clip_x0(lambda x, t: exact(1.5 * x, t))
    model = interop.to_diffusers(lambda x, t: exact(1.5 * x, t), schedule, scheduler)
    return samplers.last(sampler(clipped, schedule, x * schedule.sigma(ts[0]), ts, **ours)).x, walk(
        scheduler, model, x * schedule.sigma(ts[0]), **theirs
    )[-1]


def test_row_clip_sample(row):
    scheduler = scheduler_of("DDPMScheduler", "linear", "sample", exact=True)
    assert scheduler.config.clip_sample
    ours, there = clipped_ends(scheduler, samplers.ddpm, {"generator": seeded(3)}, {"generator": seeded(3)})
    assert float(ours.abs().max()) == 1  # something was clipped
    row.same((ours, there))


def test_row_clip_sample_ddim(row):
    scheduler = scheduler_of("DDIMScheduler", "linear", "sample", exact=True, timestep_spacing="trailing")
    assert scheduler.config.clip_sample
    ours, there = clipped_ends(scheduler, samplers.ddim, {}, {"use_clipped_model_output": True})
    assert worst(ours, there) < 1e-6
    row.differs(worst(*middle_of_clipped(scheduler)))


def middle_of_clipped(scheduler):
    """x after half the steps, where what clipping did to the noise still shows."""
    schedule, exact, model, x, ts = both(scheduler)
    x = x * schedule.sigma(ts[0])
    ours = [step.x for step in samplers.ddim(guidance.clip_x0(exact), schedule, x, ts)]
    return ours[len(ours) // 2], walk(scheduler, model, x)[len(ours) // 2]


def test_row_thresholding(row):
    scheduler = scheduler_of("DDPMScheduler", "linear", "sample", thresholding=True, sample_max_value=10.0)
    x0_hat = 2 * normal(1, 3, 16, 16)
    there = scheduler.step(x0_hat, 500, normal(1, 3, 16, 16), generator=seeded()).pred_original_sample
    clipped = guidance.clip_x0(lambda x, t: x0_hat)(x0_hat, torch.tensor(0.5))
    row.differs((clipped.abs() == 1).double().mean(), ((there.abs() - 1).abs() < 1e-6).double().mean())


def test_row_guidance_steps(row):
    """With start and stop in shares of the steps, where does guidance stop on a grid that is not uniform?"""
    ts = LINEAR.time_grid(10, spacing="angle")[:-1]
    guided = []
    for step in range(10):
        found = guider(guidance_scale=2.0, start=0.2, stop=0.8)
        found.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(0))
        guided.append(found._is_cfg_enabled())
    kept = ts[torch.tensor(guided)]
    row.differs(kept[0], kept[-1])


# --- training ---


def test_row_mse_loss(row):
    scheduler, unet, x0 = scheduler_of("DDPMScheduler", "linear", "epsilon", exact=True), small_unet(), normal(seed=4)
    k = torch.tensor([100, 500, 900])
    eps = normal(seed=5)
    with torch.no_grad():
        there = nn.functional.mse_loss(unet(scheduler.add_noise(x0, eps, k), k).sample, eps)

        def net(x, t, cond):
            return unet(x, (t.double() * 1000 - 1).round()).sample

        t = (k + 1).double() / 1000
        ours = losses.denoising_loss(net, x0, LINEAR, EPS, t=t, generator=seeded(5)).mean()
    row.same((ours, there))


def test_row_random_timesteps(row):
    """How far is the mean of a batch's times from 1/2, in root mean square over 2,000 batches of 64?"""
    generator = seeded()
    free = torch.stack([torch.randint(0, 1000, (64,), generator=generator).double().mean() for _ in range(2000)])
    free = (free + 1) / 1000 - 0.5
    ours = torch.stack([losses.stratified_times(64, generator=generator).double().mean() for _ in range(2000)]) - 0.5
    row.differs(free.square().mean().sqrt(), ours.square().mean().sqrt())


def snr_there(timesteps):
    scheduler = scheduler_of("DDPMScheduler", "linear", "epsilon", exact=True)
    return pytest.importorskip("diffusers.training_utils").compute_snr(scheduler, timesteps)


def test_row_min_snr(row):
    k = torch.tensor([10, 100, 300, 600, 999])
    alpha, sigma = LINEAR.alpha((k + 1).double() / 1000), LINEAR.sigma((k + 1).double() / 1000)
    capped = snr_there(k).clamp(max=5.0)
    weight = losses.min_snr(5.0)
    row.same(
        (weight(alpha, sigma, *EPS.row(alpha, sigma)), capped / snr_there(k)),
        (weight(alpha, sigma, *V.row(alpha, sigma)), capped / (snr_there(k) + 1)),
        (weight(alpha, sigma, *X0.row(alpha, sigma)), capped),
    )


def test_row_edm_weight(row):
    """lambda(sigma) of table 1, for an error in D, and 1 / c_out^2 of eq. 8, for one in F."""
    schedule, sd = VarianceExploding(), 0.5
    t = torch.tensor([0.3, 0.5, 0.9], dtype=D)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    there = (sigma**2 + sd**2) / (sigma * sd) ** 2
    weight = losses.edm(sd)
    row.same(
        (weight(alpha, sigma, *X0.row(alpha, sigma)), there),
        (weight(alpha, sigma, *edm(sd).row(alpha, sigma)), torch.ones(3)),
    )


def test_row_p_mean(row):
    schedule, z = VarianceExploding(), normal(100)
    t = schedule.t_of_log_snr(-2 * (-1.2 + 1.2 * z))
    row.same((schedule.noise_to_signal(t).log(), -1.2 + 1.2 * z))


def test_row_logit_normal(row):
    draw = pytest.importorskip("diffusers.training_utils").compute_density_for_timestep_sampling
    there = draw("logit_normal", 100, 0.0, 1.0, generator=seeded())
    row.same((torch.randn(100, generator=seeded()).sigmoid(), there))


def test_row_ema(row):
    theirs = pytest.importorskip("diffusers.training_utils").EMAModel
    net = nn.Linear(1, 1, bias=False)
    ema, model = EMA(net, 0.9), theirs(net.parameters(), decay=0.9)
    ours, there = [], []
    for step in range(1, 200):
        before = float(ema.net.weight)
        with torch.no_grad():
            net.weight.fill_(before + 1)
        ema.update(net)
        ours.append(1 - (float(ema.net.weight) - before))
        there.append(model.get_decay(step))
    torch.testing.assert_close(torch.tensor(ours[1:]), torch.tensor(there[1:]), rtol=0, atol=1e-5)
    row.differs(there[0], ours[0])


def test_row_ema_decay(row):
    theirs = pytest.importorskip("diffusers.training_utils").EMAModel(nn.Linear(1, 1).parameters())
    row.differs(theirs.decay, EMA(nn.Linear(1, 1)).decay)


# --- latents and images ---


class Wrapped(nn.Module):
    """An autoencoder of diffusers, as `LatentSpace` asks for one."""

    def __init__(self, vae):
        super().__init__()
        self.vae, self.channels, self.latent = vae, vae.config.in_channels, vae.config.latent_channels
        self.halvings = len(vae.config.block_out_channels) - 1

    def encode(self, x):
        return self.vae.encode(x).latent_dist.mode()

    def decode(self, z):
        return self.vae.decode(z).sample


def space(shift, scale):
    """A small autoencoder of diffusers, and a latent space around it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        vae = (
            the_diffusers()
            .AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4)
            .eval()
        )
    return vae, latents.LatentSpace(Wrapped(vae), torch.full((4,), shift), torch.full((4,), scale), (4, 8, 8))


def test_row_scaling_factor(row):
    vae, ours = space(0.0, 0.18215)
    x = normal(2, 3, 16, 16, dtype=torch.float32).clamp(-1, 1)
    assert vae.config.scaling_factor == 0.18215
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
        back = vae.decode(z / vae.config.scaling_factor).sample
    row.same((ours.encode(x), z), (ours.decode(z), back))


def test_row_shift_factor(row):
    vae, ours = space(0.0609, 1.5305)
    x = normal(2, 3, 16, 16, dtype=torch.float32).clamp(-1, 1)
    with torch.no_grad():
        raw = vae.encode(x).latent_dist.mode()
    row.same((ours.encode(x), (raw - 0.0609) * 1.5305))


def test_row_image_range(row):
    the_diffusers()
    kind = pytest.importorskip("diffusers.image_processor").VaeImageProcessor
    x = torch.rand(2, 3, 4, 4, generator=seeded())
    row.same((2 * x - 1, kind.normalize(x)), ((3 * x / 2 + 0.5).clamp(0, 1), kind.denormalize(3 * x)))


# --- whole models ---


def test_row_unet(row):
    unet, x, y = small_unet(3), normal(), torch.tensor([0, 1, 2])
    scheduler = scheduler_of("DDIMScheduler", "linear", "sample")
    with torch.no_grad():
        ours = interop.from_diffusers(unet, scheduler)(x, torch.tensor(0.25, dtype=D), {"class_labels": y})
        row.same((ours, unet(x, 249, class_labels=y).sample))


def test_row_our_network(row):
    """A denoiser of ours in a diffusers loop, and back."""
    scheduler = scheduler_of("DDIMScheduler", "linear", "v_prediction", exact=True)
    _, exact, model, x, _ = both(scheduler)
    back = interop.from_diffusers(model, scheduler)
    with torch.no_grad():
        row.same((back(x, torch.tensor(0.5, dtype=D)), exact(x, torch.tensor(0.5, dtype=D))))


def test_row_pipeline(row):
    scheduler = the_diffusers().DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="sample")
    unet = small_unet().float()
    try:
        pipeline = the_diffusers().DDIMPipeline(unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        there = pipeline(3, generator=seeded(), num_inference_steps=5, output_type="np").images
        schedule, ts = interop.schedule_from_diffusers(scheduler), interop.grid_from_diffusers(pipeline.scheduler)
        x = samplers.start(schedule, SHAPE, ts, generator=seeded())
        x = samplers.last(samplers.ddim(interop.from_diffusers(unet, scheduler), schedule, x, ts)).x
    finally:
        unet.double()
    row.same(((x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), there))


def test_row_k_model(row):
    def model(x, sigma, y=0.0):
        return (x + y) / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    x, t = normal(), torch.tensor([0.1, 0.5, 0.9], dtype=D)
    ratio, alpha = LINEAR.noise_to_signal(t), LINEAR.alpha(t)[:, None, None, None]
    ours = interop.from_k_diffusion(model, LINEAR)
    row.same(
        (ours(x, t, {"y": 2.0}), model(x / alpha, ratio, y=2.0)),
        (interop.to_k_diffusion(ours, LINEAR)(x / alpha, ratio), model(x / alpha, ratio)),
    )


def test_row_edm_network(row):
    def network(x, sigma, class_labels=None):  # as EDM's networks are called: D(x; sigma, labels)
        return edm_denoiser(lambda x, c: (3 * x + c).sin(), x, float(sigma[0]), 0.5) + class_labels[:, None, None, None]

    schedule, x, y = VarianceExploding(), normal(), torch.tensor([0.0, 1.0, 2.0], dtype=D)
    ours = interop.from_k_diffusion(network, schedule)(x, torch.tensor(0.5, dtype=D), {"class_labels": y})
    row.same((ours, network(x, schedule.sigma(0.5).expand(3), class_labels=y)))


def test_row_time_embedding(row):
    the_diffusers()
    code = pytest.importorskip("diffusers.models.embeddings").get_timestep_embedding
    k = torch.arange(1000)
    there = code(k, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    row.same((encodings.sinusoidal(k / 1000, 32), there))


def test_row_generator(row):
    the_diffusers()
    randn = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    ts = VarianceExploding().time_grid(5)
    row.same((samplers.start(VarianceExploding(), SHAPE, ts, generator=seeded()), 80 * randn(SHAPE, seeded())))


def test_row_generator_list(row):
    """A list of generators there draws each sample with its own; here draw each with its own, and join them."""
    the_diffusers()
    randn = pytest.importorskip("diffusers.utils.torch_utils").randn_tensor
    ts = VarianceExploding().time_grid(5)
    ours = [samplers.start(VarianceExploding(), (1, *SHAPE[1:]), ts, generator=seeded(k)) for k in range(3)]
    row.same((torch.cat(ours), 80 * randn(SHAPE, [seeded(k) for k in range(3)])))

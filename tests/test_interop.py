"""Every step of our samplers against diffusers and k-diffusion, their models under ours and ours under theirs.

A gap is the largest absolute difference over all samples and steps. It stays below 1e-5, or, where an untrained
network sends x into the hundreds, below 1e-5 of the largest |x|: parts of diffusers compute in float32 always.
"""

import functools
import importlib.util
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import SCHEDULES, seeded
from peers import k_diffusion

from companion import denoisers, interop, predictions, samplers, schedules

D = torch.float64
BETAS = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "zero_terminal": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True},
}
OURS = {
    "linear": SCHEDULES["linear"],
    "scaled_linear": SCHEDULES["scaled_linear"],
    "squaredcos_cap_v2": SCHEDULES["cosine_betas"],
    "zero_terminal": schedules.zero_terminal_snr(schedules.Linear()),
}
TYPES = ("epsilon", "v_prediction", "sample")
CASES = [(b, p) for b in BETAS for p in TYPES if (b, p) != ("zero_terminal", "epsilon")]  # no signal, so no x0
EVERY_CASE = pytest.mark.parametrize(("betas", "prediction"), CASES)
MODELS = pytest.mark.parametrize("model", ["mixture", "unet"])
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@functools.cache
def the_diffusers():
    return pytest.importorskip("diffusers")


@functools.cache
def small_unet(num_class_embeds=None):
    """A U-Net of diffusers with 40,000 random weights, for (B, 2, 8, 8), in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (16,)}
        shape = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, "norm_num_groups": 4}
        net = the_diffusers().UNet2DModel(**blocks, **shape, add_attention=False, num_class_embeds=num_class_embeds)
    return net.double().eval()


def mixture(schedule):
    means = torch.randn(3, 2, 2, 2, generator=seeded(1), dtype=D)
    variances, weights = (torch.tensor(v, dtype=D) for v in ([0.1, 0.3, 0.02], [0.3, 0.3, 0.4]))
    return denoisers.GaussianMixture(means, variances, weights, schedule)


def scheduler_of(name, betas, prediction, *, steps=10, exact=False, **more):
    """A scheduler ready to walk; `exact` puts its products into float64, where its class computes with them."""
    scheduler = getattr(the_diffusers(), name)(prediction_type=prediction, **BETAS[betas], **more)
    if exact:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    return scheduler


@torch.no_grad()
def walk(scheduler, model, x, **more):
    """Every x of a diffusers loop."""
    xs = []
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        out = model(scaled, timestep).sample
        x = scheduler.step(out, timestep, x, **more).prev_sample
        xs.append(x)
    return xs


def gap(ours, theirs):
    """The largest difference, as a share of the largest |x| if that is above 1."""
    assert len(ours) == len(theirs) > 0
    assert all(a.shape == b.shape for a, b in zip(ours, theirs, strict=True))
    largest = max(1.0, *(float(b.abs().max()) for b in theirs))
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / largest


def both(model, scheduler):
    """(the denoiser for us, the model for them, a noise): an exact denoiser of ours, or a U-Net of theirs."""
    schedule = interop.schedule_from_diffusers(scheduler)
    if model == "mixture":
        ours, theirs, shape = mixture(schedule), None, (4, 2, 2, 2)
        theirs = interop.to_diffusers(ours, schedule, scheduler)
    else:
        theirs, shape = small_unet(), (3, 2, 8, 8)
        ours = interop.from_diffusers(theirs, scheduler)
    return schedule, ours, theirs, torch.randn(shape, generator=seeded(2), dtype=D)


# --- schedules and grids ---


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_the_schedule_is_the_schedulers(name, betas):
    scheduler = scheduler_of(name, betas, "v_prediction")
    schedule = interop.schedule_from_diffusers(scheduler)
    points = torch.arange(1, 1001, dtype=D) / 1000
    torch.testing.assert_close(schedule.alpha_bar(points), scheduler.alphas_cumprod.double(), rtol=1e-9, atol=1e-15)
    assert schedule.alpha(0.0) == 1
    for ours, theirs in ((OURS[betas].alpha, schedule.alpha), (OURS[betas].sigma, schedule.sigma)):
        floor = 2.5e-4 if (name, betas) == ("DPMSolverMultistepScheduler", "zero_terminal") else 1e-5
        assert float((ours(points) - theirs(points)).abs().max()) < floor
    end = {"zero_terminal": 2**-24 if "Solver" in name else 0.0}.get(betas)
    assert end is None or float(schedule.alpha_bar(1.0)) == pytest.approx(end, rel=1e-9, abs=0)


@pytest.mark.parametrize("betas", BETAS)
def test_a_scheduler_built_from_our_betas_follows_our_schedule(betas):
    given = interop.betas_for_diffusers(OURS[betas])
    scheduler = the_diffusers().DDIMScheduler(trained_betas=given, num_train_timesteps=1000)
    schedule = interop.schedule_from_diffusers(scheduler)
    points = torch.arange(1001, dtype=D) / 1000
    for ours, theirs in ((OURS[betas].alpha, schedule.alpha), (OURS[betas].sigma, schedule.sigma)):
        assert float((ours(points) - theirs(points)).abs().max()) < 1e-5
    torch.testing.assert_close(torch.tensor(given, dtype=D), OURS[betas].betas, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_betas_of_a_continuous_schedule(steps):
    betas = interop.betas_for_diffusers(schedules.Cosine(), steps)
    products = (1 - torch.tensor(betas, dtype=D)).cumprod(0)
    expected = schedules.Cosine().alpha_bar(torch.arange(1, steps + 1, dtype=D) / steps)
    torch.testing.assert_close(products, expected, rtol=1e-9, atol=1e-15)
    assert betas[-1] == 1


@pytest.mark.parametrize("schedule", [schedules.FlowMatching(), schedules.VarianceExploding()])
def test_betas_need_a_preserved_variance(schedule):
    with pytest.raises(ValueError, match=r"alpha\^2 \+ sigma\^2 runs from .* take FlowMatchEulerDiscreteScheduler"):
        interop.betas_for_diffusers(schedule)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"timestep_spacing": "leading"}, [751, 501, 251, 1, 0]),
        ({"timestep_spacing": "leading", "steps_offset": 1}, [752, 502, 252, 2, 0]),
        ({"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}, [752, 502, 252, 2, 1]),
        ({"timestep_spacing": "trailing"}, [1000, 750, 500, 250, 0]),
        ({"timestep_spacing": "linspace"}, [1000, 667, 334, 1, 0]),
    ],
)
def test_the_grid_is_the_schedulers(more, expected):
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", steps=4, **more)
    ts = interop.grid_from_diffusers(scheduler)
    assert ts.dtype == D
    torch.testing.assert_close(ts, torch.tensor(expected, dtype=D) / 1000, rtol=0, atol=1e-15)


def test_grids_that_end_early_or_come_twice():
    solver = scheduler_of("DPMSolverMultistepScheduler", "linear", "epsilon", steps=4, final_sigmas_type="sigma_min")
    assert interop.grid_from_diffusers(solver)[-1] == 0.001
    heun = scheduler_of("HeunDiscreteScheduler", "linear", "epsilon", steps=4)
    assert len(heun.timesteps) == 7
    assert (interop.grid_from_diffusers(heun) * 1000).tolist() == pytest.approx([1000, 667, 334, 1, 0])


@pytest.mark.parametrize("sigmas", ["karras", "exponential", "lu_lambdas"])
def test_a_grid_between_the_timesteps_is_refused_and_its_sigmas_serve(sigmas):
    flag = {"lu_lambdas": "use_lu_lambdas"}.get(sigmas, f"use_{sigmas}_sigmas")
    scheduler = scheduler_of("DPMSolverMultistepScheduler", "linear", "epsilon", steps=5, **{flag: True})
    with pytest.raises(ValueError, match=f"{flag}=True, which puts noise levels between .* grid_from_k_diffusion"):
        interop.grid_from_diffusers(scheduler)
    schedule = interop.schedule_from_diffusers(scheduler)
    ts = interop.grid_from_k_diffusion(schedule, scheduler.sigmas)
    torch.testing.assert_close(schedule.noise_to_signal(ts), scheduler.sigmas.double(), rtol=1e-6, atol=0)


# --- diffusers, step by step ---


@pytest.mark.parametrize("eta", [0.0, 0.7])
@EVERY_CASE
@MODELS
def test_ddim(model, betas, prediction, eta):
    scheduler = scheduler_of(
        "DDIMScheduler", betas, prediction, exact=True, clip_sample=False, timestep_spacing="trailing"
    )
    schedule, ours, theirs, x = both(model, scheduler)
    ts = interop.grid_from_diffusers(scheduler)
    steps = samplers.ddim(ours, schedule, x, ts, eta=eta, generator=seeded(3))
    assert gap([s.x for s in steps], walk(scheduler, theirs, x, eta=eta, generator=seeded(3))) < 1e-6


@EVERY_CASE
@MODELS
def test_ddim_as_stable_diffusion_runs_it(model, betas, prediction):
    """Timesteps that lead, by one step, an end at 1 / T and products in float32: the packages as they come."""
    scheduler = scheduler_of(
        "DDIMScheduler", betas, prediction, clip_sample=False, steps_offset=1, set_alpha_to_one=False
    )
    schedule, ours, theirs, x = both(model, scheduler)
    ts = interop.grid_from_diffusers(scheduler)
    assert float(ts[-1]) == 0.001
    ours = [s.x for s in samplers.ddim(ours, schedule, x, ts)]
    assert gap(ours, walk(scheduler, theirs, x)) < 1e-5


@pytest.mark.parametrize(
    ("variance", "theirs_is", "spacing"),
    [("posterior", "fixed_small", "linspace"), ("upper", "fixed_large", "leading")],
)
@EVERY_CASE
@MODELS
def test_ddpm(model, betas, prediction, variance, theirs_is, spacing):
    more = {"clip_sample": False, "variance_type": theirs_is, "timestep_spacing": spacing}
    scheduler = scheduler_of("DDPMScheduler", betas, prediction, exact=True, **more)
    schedule, ours, theirs, x = both(model, scheduler)
    ts = interop.grid_from_diffusers(scheduler)
    steps = samplers.ddpm(ours, schedule, x, ts, variance=variance, generator=seeded(3))
    assert gap([s.x for s in steps], walk(scheduler, theirs, x, generator=seeded(3))) < 1e-5


@EVERY_CASE
@MODELS
def test_dpmpp_2m(model, betas, prediction):
    """In float32 inside; on the cosine betas from where they themselves advise to start, alpha / sigma = exp(-5.1)."""
    more = {"lambda_min_clipped": -5.1} if betas == "squaredcos_cap_v2" else {}
    scheduler = scheduler_of("DPMSolverMultistepScheduler", betas, prediction, **more)
    schedule, ours, theirs, x = both(model, scheduler)
    ts = interop.grid_from_diffusers(scheduler)
    ours = [s.x for s in samplers.dpmpp_2m(ours, schedule, x, ts)]
    assert gap(ours, walk(scheduler, theirs, x)) < 1e-5


@pytest.mark.parametrize("prediction", TYPES)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@MODELS
def test_heun(model, betas, prediction):
    """Theirs walks x / alpha and calls each stage a step: the second stages, and the last, are ours."""
    scheduler = scheduler_of("HeunDiscreteScheduler", betas, prediction)
    schedule, ours, theirs, x = both(model, scheduler)
    ts = interop.grid_from_diffusers(scheduler)
    alpha = schedule.alpha(ts)
    x = x * schedule.sigma(ts[0])
    stages = walk(scheduler, theirs, x / alpha[0])
    settled = [stage * a for stage, a in zip([*stages[1::2], stages[-1]], alpha[1:], strict=True)]
    assert gap([s.x for s in samplers.heun(ours, schedule, x, ts)], settled) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
@MODELS
def test_flow_matching(model, shift):
    scheduler = the_diffusers().FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    schedule, ours, theirs, x = both(model, scheduler)
    assert schedule == schedules.FlowMatching()
    ts = interop.grid_from_diffusers(scheduler)
    torch.testing.assert_close(ts[:-1] * 1000, scheduler.timesteps.double(), rtol=1e-6, atol=0)
    assert gap([s.x for s in samplers.ddim(ours, schedule, x, ts)], walk(scheduler, theirs, x)) < 1e-5


def test_solvers_on_flow_matching():
    scheduler = the_diffusers().DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0
    )
    scheduler.set_timesteps(5)
    assert interop.schedule_from_diffusers(scheduler) == schedules.FlowMatching()
    assert torch.equal(interop.grid_from_diffusers(scheduler), scheduler.sigmas.double())
    x = torch.ones(1, 2)
    denoise = interop.from_diffusers(lambda x, k: 0 * x + k.reshape(-1, 1) / 1000, scheduler)
    torch.testing.assert_close(denoise(x, torch.tensor(0.25)), x - 0.25 * 0.25)  # x - t * velocity, timestep t * T


def test_ddim_with_linspace_does_not_walk_its_own_timesteps():
    """Its timesteps are 111 apart, and each step of DDIMScheduler goes T // N = 100 down."""
    gaps = {}
    for spacing in ("linspace", "trailing"):
        scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", clip_sample=False, timestep_spacing=spacing)
        schedule, ours, theirs, x = both("mixture", scheduler)
        ts = interop.grid_from_diffusers(scheduler)
        gaps[spacing] = gap([s.x for s in samplers.ddim(ours, schedule, x, ts)], walk(scheduler, theirs, x))
    assert gaps["linspace"] > 0.01 > 1e-5 > gaps["trailing"]


def test_clip_sample_is_on_by_default_there():
    for name in ("DDIMScheduler", "DDPMScheduler"):
        assert scheduler_of(name, "linear", "epsilon").config.clip_sample is True
    scheduler = scheduler_of("DDIMScheduler", "linear", "epsilon", timestep_spacing="trailing")
    schedule, ours, theirs, x = both("mixture", scheduler)
    ts = interop.grid_from_diffusers(scheduler)
    clipped = walk(scheduler, theirs, x)
    assert gap([s.x for s in samplers.ddim(ours, schedule, x, ts)], clipped) > 0.1
    assert float(clipped[-1].abs().max()) <= 1


# --- what a model is asked, and what it may answer ---


def test_step_k_is_timestep_k_minus_one():
    scheduler, asked = scheduler_of("DDIMScheduler", "linear", "v_prediction"), []
    denoise = interop.from_diffusers(lambda x, k: asked.append(k) or x, scheduler)
    for k in range(1, 1001):
        denoise(torch.ones(2, 1), torch.tensor(k / 1000, dtype=D))
    assert all(k.shape == (2,) and k.dtype == torch.float32 for k in asked)
    assert torch.equal(torch.stack(asked), torch.arange(1000.0)[:, None].expand(-1, 2))


def test_between_steps_the_timestep_is_a_fraction():
    scheduler, asked = scheduler_of("DDIMScheduler", "linear", "v_prediction"), []
    denoise = interop.from_diffusers(lambda x, k: asked.append(k) or x, scheduler)
    denoise(torch.ones(3, 1), torch.tensor([0.0005, 0.2504, 1.0], dtype=D))
    assert asked[0].tolist() == pytest.approx([-0.5, 249.4, 999])


@pytest.mark.parametrize("answer", [lambda out: out, lambda out: (out,), lambda out: SimpleNamespace(sample=out)])
def test_a_model_may_answer_in_three_ways(answer):
    scheduler = scheduler_of("DDIMScheduler", "linear", "sample")
    denoise = interop.from_diffusers(lambda x, k: answer(2 * x), scheduler)
    assert torch.equal(denoise(torch.ones(2, 3), torch.tensor(0.5)), torch.full((2, 3), 2.0))


def test_classes_reach_the_model_by_name():
    scheduler, unet = scheduler_of("DDIMScheduler", "linear", "epsilon"), small_unet(3)
    denoise, y = interop.from_diffusers(unet, scheduler), torch.tensor([0, 2])
    x = torch.randn(2, 2, 8, 8, generator=seeded(), dtype=D)
    with torch.no_grad():
        ours = denoise(x, torch.tensor(0.5, dtype=D), {"class_labels": y})
        out = unet(x, 499, class_labels=y).sample
    schedule = interop.schedule_from_diffusers(scheduler)
    expected = predictions.EPS.to_x0(x, out, float(schedule.alpha(0.5)), float(schedule.sigma(0.5)))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match=r"cond is a Tensor; it must be a mapping of the model's arguments"):
        denoise(x, torch.tensor(0.5), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, D])
@EVERY_CASE
def test_there_and_back_is_the_denoiser_itself(betas, prediction, dtype, device):
    scheduler = scheduler_of("DDIMScheduler", betas, prediction)
    schedule = interop.schedule_from_diffusers(scheduler)
    ours = mixture(schedule)
    back = interop.from_diffusers(interop.to_diffusers(ours, schedule, scheduler), scheduler)
    x = torch.randn(3, 2, 2, 2, generator=seeded(), dtype=D).to(device, dtype)
    for t in (torch.tensor(0.5, dtype=D), torch.tensor([0.1, 0.25, 0.9], dtype=D, device=device)):
        there = back(x, t)
        assert there.dtype == dtype and there.device.type == device.type
        rough = {torch.bfloat16: 0.3, torch.float32: 1e-3, D: 1e-9}[dtype]
        torch.testing.assert_close(there, ours(x, t), rtol=rough, atol=rough)


@pytest.mark.parametrize("prediction", TYPES)
def test_the_end_of_pure_noise(prediction):
    """Where alpha is 0, eps is x and says nothing of x0: our model answers it, and theirs is not believed."""
    scheduler = scheduler_of("DDIMScheduler", "zero_terminal", prediction)
    schedule = interop.schedule_from_diffusers(scheduler)
    ours = mixture(schedule)
    model, x = interop.to_diffusers(ours, schedule, scheduler), torch.randn(2, 2, 2, 2, generator=seeded(), dtype=D)
    x0_hat = ours(x, torch.tensor(1.0))
    expected = {"epsilon": x, "v_prediction": -x0_hat, "sample": x0_hat}[prediction]
    torch.testing.assert_close(model(x, 999).sample, expected, rtol=1e-12, atol=1e-12)
    back = interop.from_diffusers(model, scheduler)
    if prediction == "epsilon":
        with pytest.raises(ValueError, match="eps-prediction cannot give x0 where alpha is 0"):
            back(x, torch.tensor(1.0))
    else:
        torch.testing.assert_close(back(x, torch.tensor(1.0)), x0_hat, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("timestep", "times"),
    [(0, 0.001), (999, 1.0), (torch.tensor(499), 0.5), (499.5, 0.5005), (torch.tensor([249, 499]), [0.25, 0.5])],
)
def test_any_kind_of_timestep(timestep, times):
    scheduler, seen = scheduler_of("DDIMScheduler", "linear", "sample"), []
    model = interop.to_diffusers(lambda x, t: seen.append(t) or x, SCHEDULES["linear"], scheduler)
    out = model(torch.ones(2, 3), timestep)
    assert torch.equal(out.sample, torch.ones(2, 3)) and out[0] is out.sample
    assert seen[0].dtype == D and seen[0].tolist() == pytest.approx(times)


@pytest.mark.parametrize("timestep", [-2, 1000, torch.tensor([0, 1000])])
def test_a_timestep_outside_is_refused(timestep):
    model = interop.to_diffusers(lambda x, t: x, SCHEDULES["linear"], scheduler_of("DDIMScheduler", "linear", "sample"))
    with pytest.raises(ValueError, match=r"\(timestep \+ 1\) / T ranges from"):
        model(torch.ones(2, 3), timestep)


def test_cond_goes_to_our_denoiser_only_if_given():
    scheduler, seen = scheduler_of("DDIMScheduler", "linear", "sample"), []

    def denoise(*args):
        seen.append(args[2:])
        return args[0]

    x = torch.ones(2, 3)
    for model, at in (
        (interop.to_diffusers(denoise, SCHEDULES["linear"], scheduler), 5),
        (interop.to_k_diffusion(denoise, SCHEDULES["linear"]), torch.ones(2)),
    ):
        model(x, at)
        model(x, at, cond="a cat")
    assert seen == [(), ("a cat",)] * 2


# --- k-diffusion ---

K_WALKS = {"sample_euler": samplers.ddim, "sample_heun": samplers.heun, "sample_dpmpp_2m": samplers.dpmpp_2m}


def k_walk(name, model, x, sigmas):
    """Every x of a k-diffusion sampler, the first one left out."""
    xs = []
    last = getattr(k_diffusion()[0], name)(model, x, sigmas, callback=lambda state: xs.append(state["x"]), disable=True)
    return [*xs[1:], last]


@pytest.mark.parametrize("name", K_WALKS)
@pytest.mark.parametrize("case", SCHEDULES)
def test_our_denoiser_under_k_diffusion(name, case):
    schedule = SCHEDULES[case]
    k_diffusion()
    exact, ts = mixture(schedule), schedule.time_grid(6)
    sigmas, alpha = interop.sigmas_for_k_diffusion(schedule, ts), schedule.alpha(ts)
    x = samplers.start(schedule, (4, 2, 2, 2), ts, generator=seeded(2), dtype=D)
    theirs = k_walk(name, interop.to_k_diffusion(exact, schedule), x / alpha[0], sigmas)
    ours = [s.x for s in K_WALKS[name](exact, schedule, x, ts)]
    assert gap(ours, [x * a for x, a in zip(theirs, alpha[1:], strict=True)]) < 1e-9


@pytest.mark.parametrize("name", K_WALKS)
@pytest.mark.parametrize("case", ["linear", "cosine", "flow", "exploding"])
def test_a_model_of_k_diffusion_under_our_samplers(name, case):
    """A U-Net of diffusers in k-diffusion's wrapper of networks that predict v, which has a schedule of its own."""
    schedule, unet = SCHEDULES[case], small_unet()
    table = OURS["scaled_linear"].alpha_bar(torch.arange(1, 1001, dtype=D) / 1000)
    model = k_diffusion()[1].DiscreteVDDPMDenoiser(lambda x, k: unet(x, k).sample, table, quantize=False)
    sigmas = torch.cat([k_diffusion()[0].get_sigmas_karras(6, 0.05, 14.0).double()[:-1], torch.zeros(1, dtype=D)])
    ts = interop.grid_from_k_diffusion(schedule, sigmas)
    alpha = schedule.alpha(ts)
    x = torch.randn(2, 2, 8, 8, generator=seeded(2), dtype=D) * schedule.sigma(ts[0])
    with torch.no_grad():
        theirs = k_walk(name, model, x / alpha[0], sigmas)
    ours = [s.x for s in K_WALKS[name](interop.from_k_diffusion(model, schedule), schedule, x, ts)]
    assert gap(ours, [x * a for x, a in zip(theirs, alpha[1:], strict=True)]) < 1e-9


@pytest.mark.parametrize(
    ("wrapper", "prediction"), [("DiscreteEpsDDPMDenoiser", "epsilon"), ("DiscreteVDDPMDenoiser", "v_prediction")]
)
def test_one_network_through_both_packages(wrapper, prediction):
    """At whole timesteps the two wrappings ask and answer the same."""
    scheduler, unet = scheduler_of("DDIMScheduler", "linear", prediction, exact=True), small_unet()
    schedule = interop.schedule_from_diffusers(scheduler)
    model = getattr(k_diffusion()[1], wrapper)(lambda x, k: unet(x, k).sample, scheduler.alphas_cumprod, quantize=True)
    one, other = interop.from_diffusers(unet, scheduler), interop.from_k_diffusion(model, schedule)
    x = torch.randn(2, 2, 8, 8, generator=seeded(), dtype=D)
    with torch.no_grad():
        for t in (torch.tensor(0.001, dtype=D), torch.tensor(0.5, dtype=D), torch.tensor([0.25, 1.0], dtype=D)):
            assert gap([one(x, t)], [other(x, t)]) < 1e-9


@pytest.mark.parametrize("case", SCHEDULES)
def test_to_k_diffusion_and_back(case, device):
    schedule = SCHEDULES[case]
    exact = mixture(schedule)
    back = interop.from_k_diffusion(interop.to_k_diffusion(exact, schedule), schedule)
    x = torch.randn(3, 2, 2, 2, generator=seeded(), dtype=D).to(device)
    for t in (torch.tensor(0.4, dtype=D), torch.tensor([0.1, 0.4, 0.9], dtype=D, device=device)):
        torch.testing.assert_close(back(x, t), exact(x, t), rtol=1e-7, atol=1e-7)
        low = back(x.float(), t)
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), exact(x, t), rtol=1e-4, atol=1e-4)


def test_one_bisection_for_equal_sigmas_and_a_time_for_each_other_one():
    seen = []
    model = interop.to_k_diffusion(lambda x, t: seen.append(t) or x, schedules.FlowMatching())
    x = torch.ones(3, 2)
    for sigma in (1.0, torch.tensor(1.0), torch.ones(3), torch.tensor([3.0, 0.0, 1.0])):
        model(x, sigma)
    assert [t.shape for t in seen] == [(), (), (), (3,)]
    assert seen[2] == 0.5
    torch.testing.assert_close(seen[3], torch.tensor([0.75, 0.0, 0.5], dtype=D))
    with pytest.raises(ValueError, match=r"sigma has shape \(2,\) but x has batch 3"):
        model(x, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"sigma has shape \(2,\) but x has batch 3"):
        model(x, torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("case", SCHEDULES)
def test_sigmas_there_and_back(case):
    """In float32 too, where the largest may be rounded past the schedule's end."""
    schedule = SCHEDULES[case]
    ts = schedule.time_grid(12)
    sigmas = interop.sigmas_for_k_diffusion(schedule, ts)
    assert sigmas.dtype == D and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    torch.testing.assert_close(interop.grid_from_k_diffusion(schedule, sigmas), ts, rtol=1e-9, atol=1e-12)
    for rounded in (sigmas.float(), sigmas.float() * (1 + 1e-7)):
        torch.testing.assert_close(interop.grid_from_k_diffusion(schedule, rounded), ts, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("sigma", [-1.0, 200.0, float("nan"), float("inf")])
def test_a_sigma_outside_the_schedule_is_refused(sigma):
    schedule = SCHEDULES["linear"]
    with pytest.raises(ValueError, match=r"on this schedule it lies in \[0, 157\.407\]: start at sigmas_for_k"):
        interop.to_k_diffusion(mixture(schedule), schedule)(torch.ones(2, 2, 2, 2), torch.full((2,), sigma))
    with pytest.raises(ValueError, match="sigma runs from"):
        interop.grid_from_k_diffusion(schedule, torch.tensor([sigma, 0.0]))


def test_where_alpha_is_0_k_diffusion_has_no_sigma():
    schedule = schedules.FlowMatching()
    with pytest.raises(ValueError, match=r"alpha is 0 at t = 1, where k-diffusion's sigma is infinite"):
        interop.from_k_diffusion(lambda x, s: x, schedule)(torch.ones(2, 3), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match=r"alpha is 0 at ts\[0\] = 1"):
        interop.sigmas_for_k_diffusion(schedule, torch.tensor([1.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match="the grid of these sigmas does not fall strictly"):
        interop.grid_from_k_diffusion(schedule, torch.tensor([1.0, 2.0, 0.0]))


def test_further_arguments_of_a_k_diffusion_model():
    denoise = interop.from_k_diffusion(lambda x, sigma, scale: scale * x, schedules.VarianceExploding())
    assert torch.equal(denoise(torch.ones(1, 2), torch.tensor(0.5), {"scale": 3}), torch.full((1, 2), 3.0))
    with pytest.raises(TypeError, match="cond is a int; it must be a mapping"):
        denoise(torch.ones(1, 2), torch.tensor(0.5), 3)


# --- errors ---


def fake(abar=(0.8, 0.6, 0.4), **config):
    """What a scheduler shows, with no package behind it."""
    settings = {"num_train_timesteps": 3, "prediction_type": "epsilon", **config}
    return SimpleNamespace(config=SimpleNamespace(**settings), alphas_cumprod=torch.tensor(abar), timesteps=None)


@pytest.mark.parametrize(
    ("scheduler", "error", "message"),
    [
        (object(), TypeError, "scheduler is a object without a config; pass a diffusers scheduler"),
        (fake(num_train_timesteps=None), TypeError, r"scheduler\.config\.num_train_timesteps is None; it must be an"),
        (fake(num_train_timesteps=4), ValueError, r"alphas_cumprod has shape \(3,\); it must hold 4 products"),
        (fake(abar=(0.8, 0.9, 0.4)), ValueError, "products that fall strictly"),
        (fake(abar=(1.0, 0.9, 0.4)), ValueError, "products that fall strictly"),
        (fake(abar=(0.8, 0.6, -0.1)), ValueError, "products that fall strictly"),
        (fake(abar=(0.8, 0.4, 0.4)), ValueError, "products that fall strictly"),
        (fake(abar=(0.8, 0.0, 0.0)), ValueError, "products that fall strictly"),
        (SimpleNamespace(**{**vars(fake()), "alphas_cumprod": [0.8, 0.6, 0.4]}), TypeError, "is a list; it must be"),
        (SimpleNamespace(**{**vars(fake()), "alphas_cumprod": None}), ValueError, "has neither alphas_cumprod nor"),
        (fake(use_flow_sigmas=True, invert_sigmas=True), ValueError, "has invert_sigmas=True"),
    ],
)
def test_what_is_not_a_known_scheduler(scheduler, error, message):
    for function in (interop.schedule_from_diffusers, interop.grid_from_diffusers):
        with pytest.raises(error, match=message):
            function(scheduler)
    with pytest.raises(error, match=message):
        interop.from_diffusers(lambda x, k: x, scheduler)
    with pytest.raises(error, match=message):
        interop.to_diffusers(lambda x, t: x, SCHEDULES["linear"], scheduler)


def test_edm_schedulers_are_not_taken_for_others():
    with pytest.raises(ValueError, match=r"EDMEulerScheduler has neither alphas_cumprod nor .* VarianceExploding"):
        interop.schedule_from_diffusers(the_diffusers().EDMEulerScheduler())


def test_more_errors():
    with pytest.raises(TypeError, match=r"scheduler\.timesteps is a NoneType; .* call scheduler\.set_timesteps first"):
        interop.grid_from_diffusers(fake())
    for make in (
        lambda s: interop.from_diffusers(lambda x, k: x, s),
        lambda s: interop.to_diffusers(lambda x, t: x, SCHEDULES["linear"], s),
    ):
        with pytest.raises(ValueError, match="prediction_type is 'noise'; known are epsilon, v_prediction, sample, f"):
            make(fake(prediction_type="noise"))
    with pytest.raises(ValueError, match=r"the scheduler's alpha is up to 0\.\d+ away .*betas_for_diffusers"):
        interop.to_diffusers(lambda x, t: x, SCHEDULES["cosine"], scheduler_of("DDIMScheduler", "linear", "epsilon"))
    with pytest.raises(ValueError, match=r"the scheduler's sigma is up to 0\.\d+ away"):
        close = fake(abar=(1 - 1e-5, 1 - 2e-5, 1 - 3e-5))
        interop.to_diffusers(lambda x, t: x, schedules.VarianceExploding(1e-9), close)
    with pytest.raises(ValueError, match="num_steps is 0"):
        interop.betas_for_diffusers(SCHEDULES["linear"], 0)


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: torch.cat([x, x], 1), lambda x: x.mean()])
def test_answers_of_another_shape_are_refused(wrong):
    x, t = torch.ones(2, 2), torch.tensor(0.5)
    schedule = interop.schedule_from_diffusers(fake())
    calls = [
        lambda: interop.from_diffusers(lambda x, k: wrong(x), fake())(x, t),
        lambda: interop.from_k_diffusion(lambda x, s: wrong(x), schedule)(x, t),
        lambda: interop.to_diffusers(lambda x, t: wrong(x), schedule, fake())(x, 1),
        lambda: interop.to_k_diffusion(lambda x, t: wrong(x), schedule)(x, torch.ones(2)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"(answer|output) has shape"):
            call()


def test_answers_that_are_no_tensors_are_refused():
    for call in (
        interop.from_diffusers(lambda x, k: "x", fake()),
        interop.from_k_diffusion(lambda x, s: None, SCHEDULES["flow"]),
    ):
        with pytest.raises(TypeError, match=r"the model's (output|answer) is a"):
            call(torch.ones(2, 2), torch.tensor(0.5))


def test_a_scheduler_may_keep_its_config_in_a_dictionary_with_attributes():
    class Frozen(OrderedDict):
        def __getattr__(self, name):
            if name in self:
                return self[name]
            raise AttributeError(name)

    scheduler = fake()
    scheduler.config = Frozen(vars(scheduler.config))
    assert interop.schedule_from_diffusers(scheduler).alpha_bar(1.0).item() == pytest.approx(0.4)


# --- the packages are for tests only ---


def test_neither_package_is_imported():
    lines = [line.strip() for line in Path(interop.__file__).read_text().splitlines()]
    imports = [line for line in lines if line.startswith(("import ", "from ")) and ">>>" not in line]
    assert len(imports) > 5 and not any(name in line for line in imports for name in ("diffusers", "k_diffusion"))


def test_the_loader_leaves_no_false_torchvision_behind():
    """diffusers looks for torchvision when it is imported, which may be before or after."""
    there = importlib.util.find_spec("torchvision") is not None
    for name in ("k_diffusion.sampling", "k_diffusion.utils", "k_diffusion.external"):
        sys.modules.pop(name, None)
    first = k_diffusion()
    assert all(hasattr(module, name) for module, name in zip(first, ("sample_heun", "VDenoiser"), strict=True))
    assert there or not [name for name in sys.modules if name.split(".")[0] == "torchvision"]
    assert (importlib.util.find_spec("torchvision") is not None) == there
    assert the_diffusers().utils.is_torchvision_available() == there
    assert first == k_diffusion()


def test_sigmas_that_come_twice_count_once():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(5)
    assert len(scheduler.sigmas) > 6
    ts = interop.grid_from_diffusers(scheduler)
    assert len(ts) == len(set(scheduler.sigmas.tolist())) and float(ts[-1]) == 0

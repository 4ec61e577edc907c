"""From prompts to images: the parts put together, and what is refused."""

import pytest
import torch
from cases import seeded

from companion import denoisers, guidance, latents, networks, predictions, samplers, schedules, text, text_to_image

WORDS = ("a", "blue", "fox", "red")
SCHEDULE = schedules.Cosine()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    autoencoder = networks.Autoencoder(3, width=8, multipliers=(1, 2), latent=2).eval()
    space = latents.LatentSpace.measure(autoencoder, torch.rand(64, 3, 8, 8, generator=seeded()) * 2 - 1)
    net = networks.TextUNet(2, vocabulary=4, length=4, width=8, text_width=8, attention=(0, 1)).eval()
    with torch.no_grad():  # what starts at zero must answer to the prompt
        for parameter in net.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return text_to_image.TextToImage(net, text.Tokenizer(WORDS, 4), space, SCHEDULE, predictions.V)


def test_images(model):
    x = model(["a red fox", "a blue fox", "fox"], num_steps=4, generator=seeded())
    assert x.shape == (3, 3, 8, 8) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1 and x.std() > 0.01
    assert not x.requires_grad
    assert model("a red fox", num_steps=2).shape == (1, 3, 8, 8)


def test_it_is_the_parts_put_together(model):
    """By hand: tokens, a guided denoiser, twelve steps of a sampler, the decoder."""
    prompts = ["a red fox", "a blue fox"]
    raw = denoisers.from_network(model.net, SCHEDULE, predictions.V)
    tokens, nothing = model.tokenizer(prompts), model.tokenizer(["", ""])
    guided = guidance.extrapolate(guidance.condition(raw, tokens), guidance.condition(raw, nothing), 3.0)
    ts = samplers.grid(samplers.ddim, SCHEDULE, 12)
    x = samplers.start(SCHEDULE, (2, *model.space.shape), ts, generator=seeded(4))
    with torch.no_grad():
        z = samplers.last(samplers.ddim(guided, SCHEDULE, x, ts)).x
    expected = model.space.decode(z).clamp(-1, 1)
    found = model(prompts, scale=3.0, num_steps=12, sampler=samplers.ddim, generator=seeded(4))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.dpmpp_2m, samplers.heun, samplers.adams, samplers.ddpm])
def test_every_sampler(model, sampler):
    x = model("a red fox", num_steps=5, sampler=sampler, generator=seeded())
    assert x.isfinite().all()


def test_the_generator_decides(model):
    one, two, other = (model("a red fox", num_steps=3, generator=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_prompts_negatives_and_scales_act(model):
    def draw(prompt="a red fox", **options):
        return model(prompt, num_steps=4, generator=seeded(3), **options)

    plain = draw(scale=1.0)
    changed = [
        draw("a blue fox", scale=1.0), draw(scale=3.0), draw(scale=3.0, negative="a blue fox"),
        draw(scale=3.0, t_range=(0.2, 0.5)),
    ]  # fmt: skip
    for k, x in enumerate(changed):
        assert all((x - y).abs().max() > 1e-4 for y in [plain, *changed[:k]])
    assert torch.allclose(draw(scale=3.0, negative="a red fox"), plain, atol=1e-5)  # away from itself is nowhere


def test_one_scale_for_each_prompt(model):
    scales = torch.tensor([1.0, 4.0])
    both = model(["a red fox"] * 2, scale=scales, num_steps=3, generator=seeded(1))
    noise = samplers.start(
        SCHEDULE, (2, *model.space.shape), samplers.grid(samplers.dpmpp_2m, SCHEDULE, 3), generator=seeded(1)
    )
    ts = samplers.grid(samplers.dpmpp_2m, SCHEDULE, 3)
    for k in range(2):
        with torch.no_grad():
            walked = model.denoiser("a red fox", scale=float(scales[k]))
            z = samplers.last(samplers.dpmpp_2m(walked, SCHEDULE, noise[k : k + 1], ts)).x
        assert torch.allclose(model.space.decode(z).clamp(-1, 1), both[k : k + 1], atol=1e-5)


def test_guidance_is_one_call_of_the_network(model):
    calls = []
    hook = model.net.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    model(["a red fox", "fox"], scale=2.0, num_steps=3)
    model(["a red fox", "fox"], scale=1.0, num_steps=3)
    hook.remove()
    assert calls == [4] * 3 + [2] * 3


@pytest.mark.parametrize(
    ("prompts", "options", "match"),
    [
        ("a green fox", {}, "'green' of the prompt 'a green fox' is not in the vocabulary"),
        ("a red red red fox", {}, "has 5 words; the most is 4"),
        ([], {}, "there is no prompt"),
        ("a red fox", {"scale": float("nan")}, "scale"),
        ("a red fox", {"scale": float("inf")}, "scale"),
        ("a red fox", {"t_range": (0.6, 0.2)}, "t_range"),
        ("a red fox", {"t_range": (-0.1, 0.2)}, "t_range"),
        ("a red fox", {"num_steps": 0}, "num_steps"),
        ("a red fox", {"negative": "a purple fox"}, "purple"),
        (["fox"] * 3, {"negative": ["a red fox", "fox"]}, r"shape \(2, 4\)"),
        (["fox"] * 3, {"scale": torch.ones(2)}, "scale"),
    ],
)
def test_bad_input(model, prompts, options, match):
    with pytest.raises(ValueError, match=match):
        model(prompts, **{"num_steps": 2, **options})


def test_a_batch_of_prompts_against_another_batch_of_noise(model):
    walked = model.denoiser(["a red fox", "fox"], scale=2.0)
    with pytest.raises(ValueError, match=r"shape \(2, 4\)"):
        walked(torch.zeros(3, *model.space.shape), torch.tensor(0.5))


def test_an_empty_prompt_is_no_text(model):
    nothing = model("", scale=1.0, num_steps=3, generator=seeded())
    guided = model("", scale=5.0, num_steps=3, generator=seeded())
    assert torch.allclose(nothing, guided, atol=1e-5)  # there is nothing to guide towards


def test_nothing_is_drawn_from_the_global_generator(model):
    before = torch.get_rng_state()
    model("fox", num_steps=2, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())

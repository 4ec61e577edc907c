"""The scripts behind the emoji's weights: what they train on, how they judge, and that they run."""

import json
from functools import partial

import pytest
import torch
from cases import seeded
from torch.nn.functional import avg_pool2d

from companion import data, latents, networks, training, weights
from companion.weights import emoji_autoencoder as autoencoder
from companion.weights import emoji_text_to_image as painter


@pytest.fixture(scope="module")
def space():
    return painter.latent_space()


# --- the autoencoder ---


def test_the_split():
    shown, hidden = autoencoder.split()
    assert len(shown) == 1432 and len(hidden) == 159
    assert torch.equal(torch.cat([shown, hidden]).sort().values, torch.arange(1591))
    assert torch.equal(autoencoder.split()[1], hidden)


def test_what_it_trains_on_shows_nothing_held_out():
    source = autoencoder.Pictures(32, seeded())
    everything = data.emoji()
    hidden = {everything.names[k] for k in autoencoder.split()[1].tolist()}
    names = data.emoji_objects()
    assert hidden & set(names)  # some objects of the coloured set are among those held out
    assert not hidden & {names[k] for k in source.objects.unique().tolist()}
    assert len(source.emoji) == 1432
    held_out = data.coloured_emoji("held-out")
    pairs = set(zip(held_out.objects.tolist(), held_out.colours.tolist(), strict=True))
    assert not pairs & set(zip(source.objects.tolist(), source.colours.tolist(), strict=True))
    x, nothing = next(source)
    assert x.shape == (32, 3, 32, 32) and nothing is None and x.min() >= -1 and x.max() <= 1
    assert ((x[24:, :, :8, :8] == 1).all((1, 2, 3))).all()  # the last quarter are scenes: their corners are white


def test_where_it_is_can_be_saved():
    source = autoencoder.Pictures(16, seeded(3))
    next(source)
    state = source.state_dict()
    after = next(source)[0]
    source.load_state_dict(state)
    assert torch.equal(next(source)[0], after) and not torch.equal(next(source)[0], after)


def test_moved_pictures_are_the_same_pictures():
    x = torch.ones(40, 3, 32, 32)
    x[:, :, 8:20, 6:22] = torch.rand(40, 3, 12, 16, generator=seeded())
    y = autoencoder.moved(x, seeded(1))
    assert y.shape == x.shape and not torch.equal(x, y)
    assert torch.allclose(y.flatten(1).sort().values, x.flatten(1).sort().values)  # nothing is lost or made
    places = {tuple((picture < 1).any(0).nonzero().float().mean(0).round().int().tolist()) for picture in y}
    assert len(places) > 20
    assert len({tuple((p.sum((1, 2)) - q.sum((1, 2))).abs().gt(1e-3).tolist()) for p, q in zip(x, y, strict=True)}) > 2


def test_autoencoder_is_as_good_as_its_card_says():
    net, card = weights.load("emoji_autoencoder"), weights.card("emoji_autoencoder")
    assert sum(p.numel() for p in net.parameters()) < 1_000_000
    assert net.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 8, 8)
    found = autoencoder.evaluate(net)
    assert found == pytest.approx(card["metrics"], abs=0.03)
    assert found["held-out PSNR, pooled"] >= 26.0
    assert card["settings"] == {"num_steps": 9000, **autoencoder.SETTINGS}


def test_autoencoder_script_runs(tmp_path):
    path = tmp_path / "run.safetensors"
    autoencoder.main(["--num-steps", "3", "--folder", str(tmp_path), "--checkpoint", str(path)])
    card = json.loads((tmp_path / "emoji_autoencoder.json").read_text())
    assert card["settings"]["num_steps"] == 3 and path.exists()
    first = (tmp_path / "emoji_autoencoder.safetensors").read_bytes()
    autoencoder.main(["--num-steps", "3", "--folder", str(tmp_path), "--checkpoint", str(path)])  # nothing left to do
    assert (tmp_path / "emoji_autoencoder.safetensors").read_bytes() == first
    assert json.loads((tmp_path / "emoji_autoencoder.json").read_text())["metrics"] == card["metrics"]


# --- what the text-to-image model trains on ---


def test_captioned_batches(space):
    source = painter.Captioned(space, 64, seeded())
    z, tokens = next(source)
    assert z.shape == (64, 4, 8, 8) and tokens.shape == (64, painter.LENGTH)
    assert abs(z[:32].mean()) < 0.2 and 0.8 < z[:32].std() < 1.2
    prompts = painter.tokenizer().decode(tokens)
    held_out = set(data.coloured_emoji("held-out").captions)
    assert not held_out & set(prompts[:32])
    for prompt in prompts[32:]:
        relation = next(name for name in data.RELATIONS if f" {name} " in prompt)
        first, second = prompt.split(f" {relation} ")
        assert not {first, second} & held_out
    again = painter.Captioned(space, 64, seeded())
    assert torch.equal(next(again)[1], tokens)
    turning = painter.Captioned(space, 16, seeded(), scenes=(0.5, 0.25), turn=2)
    next(turning)
    state = turning.state_dict()
    shares = [scenes_in(next(turning)[1]) for _ in range(3)]
    assert shares == [8, 4, 4]  # from the third batch on a quarter
    turning.load_state_dict(state)
    assert [scenes_in(next(turning)[1]) for _ in range(2)] == [8, 4]
    state = source.state_dict()
    after = next(source)
    source.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(next(source), after, strict=True))
    assert {scenes_in(next(source)[1]) for _ in range(3)} == {32}


def scenes_in(tokens):
    """Return how many of the prompts are of scenes."""
    return sum(any(f" {name} " in p for name in data.RELATIONS) for p in painter.tokenizer().decode(tokens))


def test_the_rate_falls_twice():
    assert painter.twice(0.0, 0.5) == 1 and painter.twice(0.25, 0.5) == pytest.approx(0.5)
    assert painter.twice(0.499999, 0.5) < 1e-9 and painter.twice(0.5, 0.5) == 0.5
    assert painter.twice(0.75, 0.5) == pytest.approx(0.25) and painter.twice(0.999999, 0.5) < 1e-9
    assert painter.twice(0.4, 2.0) == training.half_cosine(0.2)  # a run that ends before the restart


def test_the_forms_of_a_caption(space):
    source = painter.Captioned(space, 1000, seeded(), among=torch.arange(5))
    prompts = [p for _ in range(2) for p in painter.tokenizer().decode(next(source)[1][:500])]
    names = set(data.emoji_objects()[:5])
    whole = [p for p in prompts if p.split(" ", 2)[-1] in names and p.split()[1] in data.COLOURS]
    bare = [p for p in prompts if p.split()[0] in data.COLOURS]
    colourless = [p for p in prompts if p.split(" ", 1)[-1] in names and p.split()[0] in ("a", "an")]
    assert len(whole) + len(bare) + len(colourless) == 1000
    for found, share in zip((whole, bare, colourless), painter.FORMS, strict=True):
        assert len(found) / 1000 == pytest.approx(share, abs=0.03)


def test_latents_belong_to_their_captions(space):
    source = painter.Captioned(space, 32, seeded(), among=torch.arange(4))
    one = data.coloured_emoji("train")
    z, tokens = next(source)
    prompts = painter.tokenizer().decode(tokens)
    for k in range(16):
        if prompts[k] in one.captions:
            expected = space.encode(one.x[[one.captions.index(prompts[k])]])
            assert torch.allclose(z[k], expected[0], atol=1e-4)


# --- the judge ---


def test_the_judge_knows_the_truth(space):
    held_out = painter.some(data.coloured_emoji("held-out"), torch.arange(0, 734, 5))
    found = painter.judge(held_out.x, held_out, space)
    assert found["right"].all() and found["object"].all() and found["colour"].all() and found["ratio"].max() < 0.1
    asked = data.scenes(60, "all", generator=seeded())
    scene = painter.judge_scenes(asked.x, asked, space)
    assert scene["right"].all() and scene["strict"].all() and not scene["swapped"].any()


def test_the_judge_on_the_autoencoders_output(space):
    held_out = painter.some(data.coloured_emoji("held-out"), torch.arange(0, 734, 3))
    x = space.decode(space.encode(held_out.x)).clamp(-1, 1)
    found = painter.judge(x, held_out, space)
    assert found["both"].float().mean() >= 0.98
    assert torch.allclose(found["ratio"][found["both"]], torch.ones(int(found["both"].sum())), atol=1e-3)
    assert torch.equal(found["right"], found["both"])
    asked = data.scenes(60, "all", generator=seeded(4))
    scene = painter.judge_scenes(space.decode(space.encode(asked.x)).clamp(-1, 1), asked, space)
    assert scene["strict"].float().mean() >= 0.9 and scene["ratio"].max() < 1.001


def test_the_judge_sees_what_is_wrong(space):
    one = painter.some(data.coloured_emoji("held-out"), torch.arange(0, 734, 4))

    def found(x, **other):
        return {k: v.float().mean().item() for k, v in painter.judge(x, one._replace(**other), space).items()}

    wrong_colour = found(one.x, colours=(one.colours + 1) % 8)
    assert wrong_colour["object"] == 1 and wrong_colour["colour"] == wrong_colour["both"] == wrong_colour["right"] == 0
    wrong_object = found(one.x, objects=(one.objects + 1) % 367)
    assert wrong_object["object"] == 0 and wrong_object["colour"] == 1 and wrong_object["right"] == 0
    blurred = torch.nn.functional.interpolate(avg_pool2d(one.x, 4), scale_factor=4.0, mode="bilinear")
    mushy = found(blurred)
    assert mushy["both"] > 0.6 and mushy["right"] < 0.05 and mushy["ratio"] > 1.5  # a forced choice lets most pass


def test_the_judge_of_scenes_sees_order_and_parts(space):
    asked = data.scenes(80, "all", generator=seeded(5))

    def found(objects, colours, relations):
        x = data.compose(objects, colours, relations).x
        return {k: v.float().mean(0).tolist() for k, v in painter.judge_scenes(x, asked, space).items()}

    order = found(asked.objects.flip(1), asked.colours.flip(1), asked.relations)
    assert order["strict"] == order["right"] == 0 and order["swapped"] == order["either order"] == 1
    bound = found(asked.objects, asked.colours.flip(1), asked.relations)  # each in the other's colour
    same = (asked.colours[:, 0] == asked.colours[:, 1]).float().mean().item()
    assert bound["objects"] == [1, 1] and bound["strict"] == pytest.approx(same)
    assert bound["colours"] == pytest.approx([same] * 2)
    other = torch.stack([asked.objects[:, 0], (asked.objects[:, 1] + 1) % 367], 1)
    second = found(other, asked.colours, asked.relations)
    assert second["objects"] == [1, 0] and second["strict"] == 0
    axis = found(asked.objects, asked.colours, (asked.relations + 2) % 4)  # beside in place of above
    assert axis["strict"] == 0


def test_halves_are_where_the_relation_says():
    asked = data.scenes(20, "all", generator=seeded(6))
    first, second = painter.halves(asked.x, asked.relations)
    small = painter.references()[1]
    for part, k in ((first, 0), (second, 1)):
        assert torch.allclose(part, small[asked.objects[:, k] * 8 + asked.colours[:, k]], atol=1e-6)


# --- the script ---


def test_text_to_image_script_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(painter, "evaluate", partial(painter.evaluate, pairs=3, scenes=3))
    monkeypatch.setitem(painter.ARGUMENTS, "width", 8)
    monkeypatch.setitem(painter.SETTINGS, "batch", 16)
    monkeypatch.setattr(painter, "train", partial(painter.train, look_every=2))
    path = tmp_path / "run.safetensors"
    painter.main(["--num-steps", "2", "--folder", str(tmp_path), "--checkpoint", str(path)])
    card = json.loads((tmp_path / "emoji_text_to_image.json").read_text())
    assert card["arguments"]["width"] == 8 and card["settings"]["num_steps"] == 2 and path.exists()
    assert set(card["metrics"]) >= {"pairs, right", "scenes, strict"}
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    net = weights.load("emoji_text_to_image")
    assert isinstance(net, networks.TextUNet) and all(p.dtype == torch.float32 for p in net.parameters())
    stored = (tmp_path / "emoji_text_to_image.safetensors").stat().st_size
    assert stored < 2.3 * sum(p.numel() for p in net.parameters())  # half precision on disk


def test_seeds_make_the_training(space):
    def run(seed):
        arguments = {**painter.ARGUMENTS, "width": 8, "text_width": 8, "text_layers": 1}
        settings = {**painter.SETTINGS, "batch": 8, "warmup": 0}
        return painter.train(num_steps=2, seed=seed, space=space, arguments=arguments, settings=settings)

    before = torch.get_rng_state()
    one, same, other = (list(run(seed).parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_the_space_is_measured_on_the_training_split(space):
    assert isinstance(space, latents.LatentSpace)
    z = space.encode(data.coloured_emoji("train").x)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(4), atol=1e-3)


def test_every_caption_can_be_typed():
    tokenize = painter.tokenizer()
    captions = data.scenes(500, "all", generator=seeded()).captions + data.coloured_emoji("all").captions
    assert tokenize.decode(tokenize(captions)) == list(captions)


# --- the model that ships ---


def test_the_shipped_model_paints_pairs_and_scenes_that_it_has_not_seen():
    model, card = painter.load(), weights.card("emoji_text_to_image")
    assert card["settings"] == painter.SETTINGS
    assert card["arguments"] == {"vocabulary": len(painter.tokenizer().words), **painter.ARGUMENTS}
    asked = painter.some(data.coloured_emoji("held-out"), torch.arange(0, 734, 23))
    found = painter.judge(model(asked.captions, generator=seeded()), asked, model.space)
    assert found["both"].float().mean() >= 0.96
    assert found["ratio"].mean().item() == pytest.approx(card["metrics"]["pairs, ratio"], abs=0.12)
    scenes = data.scenes(16, "held-out", generator=seeded(1))
    found = painter.judge_scenes(model(scenes.captions, generator=seeded(2)), scenes, model.space)
    assert found["strict"].sum() >= 14


def test_the_shipped_model_hears_every_word():
    """From one noise: another colour, another object, another order are other pictures, and the same prompt is not."""
    model = painter.load()
    prompts = [
        "a red fox",
        "a blue fox",
        "a red crab",
        "a red fox left of a blue crab",
        "a blue crab left of a red fox",
    ]
    x = torch.cat([model(prompt, generator=seeded()) for prompt in [*prompts, prompts[0]]])
    apart = torch.cdist(x.flatten(1), x.flatten(1)) / x[0].numel() ** 0.5
    assert apart[0, 5] < 1e-4
    assert (apart[:5, :5] + torch.eye(5)).min() > 0.2

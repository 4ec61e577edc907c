"""Train the text-to-image model that ships with the package: python -m companion.weights.emoji_text_to_image.

It paints one coloured emoji, or two in one picture, from a prompt of up to ten words. It diffuses the latents of
`emoji_autoencoder`; a batch is emoji of the coloured set and scenes, each object in the colours that the training
split shows. One prompt in ten of a single emoji has no article and one in twenty no colour, so that the reader may
type so too. The learning rate falls to 0 twice: over 10,000 batches, half of each scenes, then, from half the rate,
over 8,000 more, a quarter of each scenes. Not quite three hours of one CPU core make it. The card states what the judge
below makes of pairs of object and colour that were held out, and of new scenes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .. import data, latents, networks, predictions, schedules, text, text_to_image, training, weights
from . import _scripts

NAME = "emoji_text_to_image"
LENGTH = 10
SCHEDULE, PREDICTION = schedules.Cosine(), predictions.V
ARGUMENTS: dict[str, Any] = {
    "channels": 4, "length": LENGTH, "joining": ["scale-and-shift", "cross-attention"], "text_width": 128,
    "text_layers": 2, "width": 64, "multipliers": [1, 2], "blocks": 1, "attention": [0, 1],
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "num_steps": 18000, "restart": 10000, "scenes": [0.5, 0.25], "schedule": "Cosine", "prediction": "V", "batch": 128,
    "lr": 1.5e-3, "warmup": 300, "drop_cond": 0.1, "ema_decay": 0.999, "precision": "bfloat16",
}  # fmt: skip
NOT_FIT = ("schedule", "prediction", "batch", "num_steps", "restart", "scenes")
FORMS = (0.85, 0.10, 0.05)  # the shares of captions as they are, without article, and without colour
NEAR = 1.3


@lru_cache(maxsize=1)
def tokenizer() -> text.Tokenizer:
    """Return the tokenizer of every caption that the data can have.

    >>> tokenizer()("a red fox").shape
    torch.Size([1, 10])
    """
    return text.Tokenizer(text.vocabulary([*data.coloured_emoji("all").captions, *data.RELATIONS]), LENGTH)


def latent_space(device: str = "cpu") -> latents.LatentSpace:
    """Return the latents of `emoji_autoencoder`, measured on the training split of the coloured set."""
    net = weights.load("emoji_autoencoder").to(device)
    assert isinstance(net, networks.Autoencoder)
    return latents.LatentSpace.measure(net, data.coloured_emoji("train").x)


def load(name: str = NAME) -> text_to_image.TextToImage:
    """Return the trained model, on the CPU.

    Raises:
        ValueError: as `weights.load`.

    >>> load()(["a red fox", "a blue bed"], num_steps=2).shape
    torch.Size([2, 3, 32, 32])
    """
    net = weights.load(name)
    assert isinstance(net, networks.TextUNet)
    return text_to_image.TextToImage(net, tokenizer(), latent_space(), SCHEDULE, PREDICTION)


class Captioned:
    """Batches (latents, tokens) of single objects and of scenes, of all objects or of those among.

    Args:
        space: of the latents.
        size: of a batch.
        generator: where the pictures and captions come from.
        among: numbers of the objects shown; all, if none are given.
        scenes: the share of scenes, and that from batch `turn` on.
        turn: how many batches have the first share; None is all.
    """

    def __init__(
        self,
        space: latents.LatentSpace,
        size: int,
        generator: torch.Generator,
        *,
        among: Tensor | None = None,
        scenes: Sequence[float] = (0.5, 0.5),
        turn: int | None = None,
    ) -> None:
        one = data.coloured_emoji("train")
        self.space, self.size, self.generator, self.tokenizer = space, size, generator, tokenizer()
        shown = torch.ones_like(one.objects) > 0 if among is None else torch.isin(one.objects, among)
        self.z, self.among, self.scenes, self.turn, self.given = space.encode(one.x[shown]), among, scenes, turn, 0
        captions = [c.split(" ", 2) for c, s in zip(one.captions, shown.tolist(), strict=True) if s]
        self.tokens = torch.stack([
            self.tokenizer([" ".join(part) for part in captions]),  # article, colour, name
            self.tokenizer([" ".join(part[1:]) for part in captions]),
            self.tokenizer([("an " if part[2][0] in "aeiou" else "a ") + part[2] for part in captions]),
        ])  # fmt: skip

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        n = self.size - round(self.size * self.scenes[self.turn is not None and self.given >= self.turn])
        self.given += 1
        which = torch.randint(len(self.z), (n,), generator=self.generator)
        form = torch.multinomial(torch.tensor(FORMS), n, replacement=True, generator=self.generator)
        two = data.scenes(self.size - n, among=self.among, generator=self.generator)
        z = torch.cat([self.z[which], self.space.encode(two.x)])
        return z, torch.cat([self.tokens[form, which], self.tokenizer(two.captions)])

    def state_dict(self) -> dict[str, Any]:
        """Return where the iterator is."""
        return {"generator": self.generator.get_state(), "size": self.size, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken."""
        self.generator.set_state(state["generator"])
        self.given = state["given"]


def train(
    *,
    num_steps: int = SETTINGS["num_steps"],
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    space: latents.LatentSpace | None = None,
    arguments: dict[str, Any] = ARGUMENTS,
    settings: dict[str, Any] = SETTINGS,
    look_every: int = 500,
) -> networks.TextUNet:
    """Return the network, its averaged weights rounded to half precision; a checkpoint is gone on from."""
    space = latent_space(device) if space is None else space
    options = {name: value for name, value in settings.items() if name not in NOT_FIT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the initial weights draw from the global generator
        net = networks.TextUNet(vocabulary=len(tokenizer().words), **arguments).to(device)
    turn = settings["restart"]
    source = Captioned(
        space, settings["batch"], torch.Generator().manual_seed(seed), scenes=settings["scenes"], turn=turn
    )
    until = (turn - settings["warmup"]) / max(1, num_steps - settings["warmup"])  # as a share of what follows warm-up
    for step in training.fit(
        net, source, SCHEDULE, PREDICTION, num_steps=num_steps, generator=torch.Generator().manual_seed(seed + 1),
        lr_decay=lambda done: twice(done, until),
        checkpoint=checkpoint, save_every=None if checkpoint is None else 250, resume=True, **options,
    ):  # fmt: skip
        if step.index % look_every == 0:
            assert isinstance(step.ema, networks.TextUNet)
            model = text_to_image.TextToImage(step.ema, tokenizer(), space, SCHEDULE, PREDICTION)
            print(step.index, evaluate(model, pairs=48, scenes=48), flush=True)
    return net.half().float()


def twice(done: float, until: float) -> float:
    """Return the learning rate's share: a half cosine up to `until`, then another from half the rate.

    Source:
        Loshchilov and Hutter (2017), "SGDR: Stochastic Gradient Descent with Warm Restarts".

    >>> twice(0.0, 0.5), twice(0.5, 0.5)
    (1.0, 0.5)
    """
    if done < until:
        return training.half_cosine(done / until)
    return 0.5 * training.half_cosine((done - until) / (1 - until))


# --- the judge -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def references() -> tuple[Tensor, Tensor]:
    """Return every object in every colour, (2,936, 3, 32, 32), and at half its size, (2,936, 3, 16, 16), in [-1, 1]."""
    x = data.coloured_emoji("all").x
    return x, avg_pool2d(x, 2)


def nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of `among` (M, *D) each of x (N, *D) is nearest to, (N,), and the root mean square apart, (N,)."""
    apart = torch.cdist(x.flatten(1), among.flatten(1)) / among[0].numel() ** 0.5
    return apart.argmin(1), apart.amin(1)


def own_error(space: latents.LatentSpace, x: Tensor) -> Tensor:
    """Return what the autoencoder itself makes wrong of pictures x, of the same shape."""
    return space.decode(space.encode(x)).clamp(-1, 1) - x


def judge(x: Tensor, asked: data.ColouredEmoji, space: latents.LatentSpace) -> dict[str, Tensor]:
    """Return, for each picture x (N, 3, 32, 32), whether it is the object in the colour that was asked for.

    The judge names the nearest of all objects in all colours. A picture is "right" where that is the pair asked for
    and no farther from it than 1.3 times what the autoencoder's own output is.

    Returns:
        "object", "colour", "both" and "right", each (N,) bool, and "ratio" (N,), the distance to the nearest over the
        autoencoder's from what was asked for.
    """
    found, distance = nearest(x, references()[0])
    ratio = distance / own_error(space, asked.x).square().mean((1, 2, 3)).sqrt()
    count = len(data.COLOURS)
    both = found == asked.objects * count + asked.colours
    return {
        "object": found // count == asked.objects,
        "colour": found % count == asked.colours,
        "both": both,
        "right": both & (ratio <= NEAR),
        "ratio": ratio,
    }


def halves(x: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two squares (N, 3, 16, 16) of scenes x (N, 3, 32, 32) where the first object and the second belong."""
    corners = torch.tensor(list(data.RELATIONS.values()))[relations].tolist()
    cut = [
        [picture[:, row : row + 16, column : column + 16] for row, column in ((r1, c1), (r2, c2))]
        for picture, (r1, c1, r2, c2) in zip(x, corners, strict=True)
    ]
    first, second = (torch.stack(list(part)) for part in zip(*cut, strict=True))
    return first, second


def judge_scenes(x: Tensor, asked: data.Scenes, space: latents.LatentSpace) -> dict[str, Tensor]:
    """Return, for each scene x (N, 3, 32, 32), which of its parts are as asked.

    Returns:
        "objects", "colours" (N, 2) bool; "strict" (N,), both objects, both colours, each in its place; "swapped" (N,),
        the same in each other's place; "either order" (N,); "right" (N,), strict and both within 1.3 times what the
        autoencoder makes of them; "ratio" (N, 2).
    """
    count = len(data.COLOURS)
    wanted = asked.objects * count + asked.colours
    parts = [nearest(part, references()[1]) for part in halves(x, asked.relations)]
    found = torch.stack([which for which, _ in parts], 1)
    own = [part.square().mean((1, 2, 3)).sqrt() for part in halves(own_error(space, asked.x), asked.relations)]
    ratio = torch.stack([distance for _, distance in parts], 1) / torch.stack(own, 1)
    strict, swapped = (found == wanted).all(1), (found == wanted.flip(1)).all(1)
    return {
        "objects": found // count == asked.objects,
        "colours": found % count == asked.colours,
        "strict": strict,
        "swapped": swapped,
        "either order": strict | swapped,
        "right": strict & (ratio <= NEAR).all(1),
        "ratio": ratio,
    }


def some(asked: data.ColouredEmoji, which: Tensor) -> data.ColouredEmoji:
    """Return the coloured emoji numbered `which`."""
    captions = tuple(asked.captions[k] for k in which.tolist())
    return data.ColouredEmoji(asked.x[which], captions, asked.objects[which], asked.colours[which])


def evaluate(
    model: text_to_image.TextToImage, *, pairs: int = 734, scenes: int = 400, scale: float = 2.0, seed: int = 0
) -> dict[str, float]:
    """Return the judge's shares on pairs of object and colour held out, and on scenes of colours seen in training."""
    order = torch.randperm(734, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    held_out = some(data.coloured_emoji("held-out"), order[:pairs])
    one = judge(model(held_out.captions, scale=scale, generator=generator).cpu(), held_out, model.space)
    asked = data.scenes(scenes, generator=torch.Generator().manual_seed(2))
    two = judge_scenes(model(asked.captions, scale=scale, generator=generator).cpu(), asked, model.space)
    shares = {f"pairs, {name}": one[name].float().mean() for name in ("both", "right", "ratio")}
    shares |= {f"scenes, {k}": two[k].float().mean() for k in ("objects", "colours", "strict", "either order", "right")}
    return {name: round(float(value), 4) for name, value in shares.items()}


def main(argv: list[str] | None = None) -> None:
    """Train, and write the weights and their card."""
    options = _scripts.parser(__doc__, SETTINGS["num_steps"], "--device", "--checkpoint").parse_args(argv)
    began = time.process_time()
    net = train(num_steps=options.num_steps, seed=options.seed, device=options.device, checkpoint=options.checkpoint)
    model = text_to_image.TextToImage(net, tokenizer(), latent_space(options.device), SCHEDULE, PREDICTION)
    _scripts.ship(
        net, NAME, options, began,
        arguments={"vocabulary": len(tokenizer().words), **ARGUMENTS},
        data="data.coloured_emoji, training split (2,202 pictures), and scenes of them",
        settings=SETTINGS,
        metrics=evaluate(model),
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Recipe of the embedded DINO encoder: a small vision transformer that teaches itself, without labels or captions.

First an object's patches learn to say the same in two views of it and nothing like another object's
(`embedded.recipes.dino_contrast`); the views share its shape, not its colours or ground
(`embedded.recipes.dino_objects`). Objects start centred and half painted as bare shapes, and stand four to a picture
later. The last few steps add whole scenes: a student sees crops, the large ones with cells hidden; a teacher, the slow
average of the student, sees the large crops whole; the class token foretells what the teacher says of another crop
(DINO's loss), a hidden cell what the teacher says of that cell (iBOT's). The teacher is kept, as a `Dinov2Model`.

It learns what stands in a picture (88.6 % of the categories by `embedded.encoder_study.probes`) and forgets where: its
views put objects anywhere. docs/embedded.md has the numbers.

Source: DINOv2 (Oquab et al. 2023), section 4: separate heads, Sinkhorn-Knopp. Differs: the contrast, which DINOv2 has
not, most of the steps; no KoLeo term, large crops are always masked, a sharper teacher (so few pictures a batch say too
little at 0.04).
"""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from core.atomic import save_tensors
from core.claim import refuse_other
from core.errors import GroundingError
from embedded.recipes.dino_contrast import encode_mosaic, encode_window, nt_xent, pool
from embedded.recipes.dino_heads import assign, cross_entropy, entropies, picture_loss
from embedded.recipes.dino_model import DinoRecipe, Learner
from embedded.recipes.dino_objects import Outlined, object_views, outline
from embedded.recipes.dino_views import random_crops, random_masks, standardise
from embedded.recipes.fitting import half_precision, step_generator, warm_cosine
from embedded.scenes.pictures import cutouts, training_scenes

log = logging.getLogger(__name__)
SIGNS = ("contrast", "dino", "ibot", "mean_entropy", "own_entropy", "patch_mean_entropy", "patch_own_entropy")


def pretrain(
    recipe: DinoRecipe,
    output: Path,
    *,
    pixels_cache: Path,
    cutouts_cache: Path,
    workers: int = 1,
    device: str | torch.device = "cpu",
):
    """Trains on pixels alone, of cutouts and training scenes; writes the teacher to `output` and returns it.

    A training state is kept beside the weights every `save_every` steps; a killed run goes on from it to the same end.

    Raises:
        GroundingError: sizes that do not fit, or the training state of another recipe in `output`.
    """
    student = Learner(recipe)
    pixels, _, _ = training_scenes(
        recipe.scenes, side=recipe.scene_side, seed=recipe.seed, cache=pixels_cache, workers=workers
    )
    small, _ = cutouts(
        recipe.cutouts, side=recipe.cutout_side, seed=recipe.cutout_seed, cache=cutouts_cache, workers=workers
    )
    objects = outline(small)
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(recipe, student.to(device))
    state_file = output / "training_state.tmp.pt"
    start = trainer.resume(state_file)
    total = torch.zeros(len(SIGNS))
    for step in range(start, recipe.steps):
        total += torch.tensor(trainer.step(step, pixels, objects))
        if step % 50 == 49:
            _report(step + 1, recipe, total / 50)
            total.zero_()
        if (step + 1) % recipe.save_every == 0:
            trainer.save(step + 1, state_file)
    encoder = trainer.teacher.encoder.cpu().eval()
    encoder.set_attn_implementation("sdpa")
    encoder.save_pretrained(output)
    state_file.unlink(missing_ok=True)
    return encoder


class Trainer:
    """Student, teacher and the optimiser; one `step` after the other."""

    def __init__(self, recipe: DinoRecipe, student: Learner) -> None:
        if recipe.object_batch % 2:
            raise GroundingError(
                f"object_batch {recipe.object_batch} is odd, but its two views go four to a picture; make it even"
            )
        self.recipe, self.student = recipe, student.train()
        self.device = student.picture_head.prototypes.device
        if self.device.type == "cpu":
            student.encoder.set_attn_implementation("eager")  # twice as fast in training at such short lengths
        self.teacher = deepcopy(student).requires_grad_(False).eval()
        groups = [[p for p in student.parameters() if (p.ndim > 1) == decays] for decays in (True, False)]
        self.optimiser = torch.optim.AdamW(
            [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}],
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            betas=(0.9, 0.98),
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, partial(warm_cosine, steps=recipe.steps))

    def step(self, number: int, pixels: UInt8[Tensor, "b 3 H W"], objects: Outlined) -> tuple[float, ...]:
        """One step on pictures drawn by the step's number alone; the values named by `SIGNS`, in nats."""
        contrast = self._contrast(number, objects)
        loss, signs = contrast, (0.0,) * (len(SIGNS) - 1)
        if number >= self.recipe.object_steps + self.recipe.mosaic_steps:
            distilled, signs = self._distil(number, pixels)
            loss = loss + distilled
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self._follow(number)
        return (contrast.item(), *signs)

    def _contrast(self, number: int, objects: Outlined) -> Tensor:
        recipe, generator = self.recipe, step_generator(self.recipe.seed, number)
        whole, encoder = number >= recipe.object_steps, self.student.encoder
        start = max(1, recipe.object_steps)
        views, matte = object_views(
            objects[torch.randint(len(objects), (recipe.object_batch,), generator=generator)],
            2,
            side=recipe.image_size // 2 if whole else recipe.object_size,
            generator=generator,
            loose=min(1.0, number / (recipe.loosening_share * start)),
            painted=min(1.0, 0.2 + 0.8 * number / (recipe.painting_share * start)),
        )
        views, matte = standardise(views).to(self.device), matte.to(self.device)
        with half_precision(self.device.type):
            if whole:
                features = encode_mosaic(encoder, views, torch.randperm(len(views), generator=generator))
            else:
                free = 1 + (recipe.image_size - recipe.object_size) // recipe.patch_size
                features = encode_window(encoder, views, *torch.randint(free, (2,), generator=generator).tolist())
            projected = self.student.object_head(pool(features, matte))
        return nt_xent(projected, recipe.contrast_temperature)

    def _distil(self, number: int, pixels: Tensor) -> tuple[Tensor, tuple[float, ...]]:
        """DINO's and iBOT's loss on whole scenes; all of `SIGNS` but the first."""
        recipe, (large, small, hidden) = self.recipe, self.views(number, pixels)
        with half_precision(self.device.type):
            pictures, patches = self._teach(large, hidden)
            seen = self.student.encoder(large, bool_masked_pos=hidden).last_hidden_state
            tokens = [seen[:, 0]]
            if recipe.small_crops:
                tokens.append(self.student.encoder(small).last_hidden_state[:, 0])
            cosines = self.student.picture_head(torch.cat(tokens)).unflatten(0, (-1, len(large) // 2))
            dino = picture_loss(pictures.unflatten(0, (2, -1)), cosines, recipe.student_temperature)
            foretold = self.student.patch_head(seen[:, 1:][hidden])
            ibot = cross_entropy(patches, foretold, recipe.student_temperature).mean()
        return dino + ibot, (dino.item(), ibot.item(), *entropies(pictures), *entropies(patches))

    def views(self, number: int, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two large crops of each scene, the small crops, and the large crops' hidden cells."""
        recipe, generator, side = self.recipe, step_generator(self.recipe.seed, number), self.recipe.image_size
        chosen = torch.randint(len(pixels), (recipe.batch,), generator=generator)
        crops = partial(random_crops, pixels[chosen].to(self.device).float() / 255, generator=generator)
        large = crops(2, side=side, area=recipe.large_area).flatten(0, 1)
        small = crops(recipe.small_crops, side=side // 2, area=recipe.small_area).flatten(0, 1)
        hidden = random_masks(len(large), grid=side // recipe.patch_size, share=recipe.masked, generator=generator)
        return large, small, hidden.to(self.device)

    @torch.no_grad()
    def _teach(self, large: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's assignments of the large crops [2 b, g] and of their hidden cells [cells, g]."""
        temperature = self.recipe.teacher_temperature
        seen = self.teacher.encoder(large).last_hidden_state
        pictures = assign(self.teacher.picture_head(seen[:, 0]), temperature)
        return pictures, assign(self.teacher.patch_head(seen[:, 1:][hidden]), temperature)

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Moves the teacher towards the student, ever more slowly."""
        rest = (1 - self.recipe.momentum) * 0.5 * (1 + math.cos(math.pi * number / self.recipe.steps))
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, rest)

    def save(self, step: int, state_file: Path) -> None:
        """The whole state; a kill leaves the one before."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        save_tensors({"step": step, "recipe": asdict(self.recipe), **parts}, state_file)

    def resume(self, state_file: Path) -> int:
        """Loads a killed run's state if there is one; the number of steps it had done.

        Raises:
            GroundingError: the state is of another recipe.
        """
        if not state_file.is_file():
            return 0
        state = torch.load(state_file, weights_only=True, map_location=self.device)
        refuse_other(state_file, state["recipe"], asdict(self.recipe), advice="delete the file to start anew")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        log.info("DINO: going on from step %d", state["step"])
        return state["step"]

    def _parts(self) -> dict:
        names = ("student", "teacher", "optimiser", "schedule")
        return {name: getattr(self, name) for name in names}


def _report(step: int, recipe: DinoRecipe, signs: Tensor) -> None:
    log.info(
        "DINO: step %d of %d, objects %.3f, class token %.3f, hidden cells %.3f; entropy of the mean and own: "
        "pictures %.2f, %.2f, cells %.2f, %.2f (of at most %.2f)",
        step, recipe.steps, *signs.tolist(), math.log(recipe.prototypes),
    )  # fmt: skip

"""Retrains the embedded family: `python -m embedded.train` (what `make embedded` runs).

The parts in the order of `PARTS`: the CLIP vision encoder and the default LLaVA on top of it, SAM, the spaCy pipeline;
the self-supervised DINO, the latent diffusion model, the language model; from these the shipped DiffLMM with the LLaVA
of the same two stages, and all encoder variants of Tables 5 and 6, whose losses are recorded: stage 1, of Table 5's
stage 2, too, with every seed. Last, two LLaVAs that answer at length, one with the picture before all else. What went
through both stages or answers at length is measured on held-out scenes for the record of the paper's claims. Each part
can be run alone once those it needs are finished. Which are finished is noted in the working directory, and the
trainings keep states in between: a killed command goes on. At the end the shipped models are measured on held-out
scenes and their cards written.

`--from-shipped --only variants --variants sd sd_clip --seeds 3 4` trains some variants, or further seeds of them, from
the shipped parts; their losses and counts join those that the records hold.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from collections import ChainMap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from core.errors import GroundingError
from core.weights import FOLDER
from embedded import parts as shipped_parts
from embedded.cards import write_cards
from embedded.claims.measure import SCENES, claims_settings, measure_model
from embedded.claims.record import RECORD as CLAIMS
from embedded.claims.record import add_model, keep_parts, trained_parts
from embedded.encoder_study import diffusion_curve, diffusion_quality, experiments, probes, two_stages
from embedded.encoder_study.feature_cache import FeatureCache
from embedded.encoder_study.two_stages import TrainingData, run_stage
from embedded.encoder_study.variants import TABLE5, VARIANTS, Parts, find_variant
from embedded.recipes import autoencoder, clip, diffusion, dino, language_model, llava, sam
from embedded.recipes.diffusion_samples import write_samples
from embedded.scenes.captions import DESCRIBE, listed
from embedded.scenes.pictures import render, training_scenes

log = logging.getLogger(__name__)
PARTS = ("vision", "llava", "sam", "en", "dino", "diffusion", "reader", "difflmm", "variants", "long")
SHIPPED = {"clip": "llava_two_stages", "sd_clip": "difflmm"}  # variant: folder of the weights


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.from_shipped and not (options.work / "vision").exists():
        shipped_parts.unpack(options.work, folder=options.parts, weights=options.output)
    for part in PARTS:
        finished = options.work / f"{part}.finished"
        if part in options.only and not finished.is_file():
            _train(part, options)
            if part != "variants":  # each of whose runs says itself that it is finished
                finished.touch()
    if not options.no_cards:
        write_cards(options.output, scenes=options.card_scenes)


def family_parts(work: Path) -> Parts:
    """Where the parts of the variants lie in a working directory."""
    return Parts(clip=work / "vision", dino=work / "dino", diffusion=work / "diffusion", reader=work / "reader")


def family_data(work: Path, variants: Iterable[str] = tuple(VARIANTS), *, workers: int = 1) -> TrainingData:
    """The scenes of the two stages and the features that some variants read, in a working directory.

    Raises:
        GroundingError: unknown variant, or a part of one was not trained there.
    """
    needed = {part for name in variants for part in find_variant(name).parts}
    missing = [name for name, folder in vars(family_parts(work)).items() if name in needed and not folder.is_dir()]
    if missing:
        raise GroundingError(
            f"{str(work)!r} holds no trained {', '.join(missing)}; `make embedded` trains them there, and "
            "`python -m embedded.train --from-shipped` begins with the shipped ones"
        )
    return experiments.training_data(work, family_parts(work), workers=workers)


def _train(part: str, options: argparse.Namespace) -> None:
    work, workers = options.work, options.workers
    if part == "vision":
        clip.pretrain(clip.VisionRecipe(), work / "vision", workers=workers)
    elif part == "llava":
        llava.train(llava.LmmRecipe(), work / "vision", options.output / "llava", workers=workers)
    elif part == "dino":
        caches = {"pixels_cache": work / "scenes160.pt", "cutouts_cache": work / "cutouts.pt"}
        dino.pretrain(dino.DinoRecipe(), work / "dino", **caches, workers=workers)
        shipped_parts.pack_dino(work / "dino", folder=options.parts)
    elif part == "diffusion":
        _train_diffusion(options)
    elif part == "reader":
        _, tags, texts = _scenes(work, workers)
        language_model.train_reader(language_model.ReaderRecipe(), tags, texts, work / "reader")
    elif part == "variants":
        _train_variants(options)
    elif part == "difflmm":
        _ship(options)
    elif part == "long":
        _train_long(options)
    elif part == "sam":
        sam.train(sam.SamRecipe(), options.output / "sam")
    else:
        from embedded.english import pipeline

        shutil.rmtree(options.output / "en", ignore_errors=True)
        pipeline.main(["--output", str(options.output / "en")])


def _scenes(work: Path, workers: int) -> tuple:
    return training_scenes(experiments.SCENES, side=160, seed=0, cache=work / "scenes160.pt", workers=workers)


def _train_diffusion(options: argparse.Namespace) -> None:
    from transformers import CLIPVisionModel

    work, workers = options.work, options.workers
    pixels, tags, texts = _scenes(work, workers)
    folder, recipe = family_parts(work).diffusion, diffusion.DiffusionRecipe()
    finished = work / "vae.finished"  # a run killed while it saved leaves a folder with some of the files
    if not finished.is_file():
        held_out = torch.tensor(np.stack([render(index, split="val", side=160, seed=0)[0] for index in range(24)]))
        tower = CLIPVisionModel.from_pretrained(family_parts(work).clip).eval().requires_grad_(False)
        autoencoder.train_autoencoder(
            autoencoder.AutoencoderRecipe(), pixels, folder / "vae", clip=tower, held_out=held_out
        )
        finished.touch()
    diffusion_curve.train_and_measure(
        recipe,
        diffusion_curve.MeasureRecipe(),
        work,
        folder,
        diffusion_quality.embedded_judge(work, family_parts(work), pixels, tags),
        (FeatureCache(work / "features", family_parts(work), pixels), tags, [caption for caption, _ in texts]),
        held_out=experiments.HELD_OUT,
        record=options.record.parent,
        workers=workers,
    )
    shown = [render(index, split="val", side=pixels.shape[-1], seed=0) for index in range(8)]
    captions = [listed(one[2]) for one in shown]
    removed = write_samples(folder, torch.tensor(np.stack([one[0] for one in shown])), captions, work)
    log.info("U-Net: share of the noise removed in one step: %s", removed)


def _train_variants(options: argparse.Namespace) -> None:
    """Stage 1 of the variants and stage 2 of Table 5's, with every seed; the record of their losses.

    What went through both stages is measured on held-out scenes for the record of the claims.
    """
    work, names = options.work, options.variants
    data = family_data(work, names, workers=options.workers)
    prints = dict(ChainMap(*(data.cache.parts.fingerprints(find_variant(name)) for name in names)))
    if options.from_shipped:
        experiments.refuse_unlike(options.record, prints)
    else:  # the record of the losses is written anew, too
        keep_parts(prints, options.claims)
    experiments.run_stage_one(work, data, [(name, seed) for seed in options.seeds for name in names])
    for seed in options.seeds:
        for variant in TABLE5:
            if variant.name in names:
                model = _second_stage(work, data, variant.name, seed)
                measured = model.with_name("claims.finished")
                if not measured.is_file():
                    _claim(variant.name, seed, model, DESCRIBE, options)
                    measured.touch()
    probes.run_probes(work, data, [name for name in probes.probed_variants() if name in names])
    experiments.record(work, options.record, join=options.from_shipped)


def _claim(name: str, seed: int, model: Path, prompt: str, options: argparse.Namespace) -> None:
    """Measures a model on held-out scenes into the record of the claims."""
    from core.phrases import load_nlp

    retrained = options.output / "en"
    nlp = load_nlp(str(retrained) if retrained.is_dir() else "embedded")
    settings = claims_settings(scenes=options.claim_scenes)
    measured = measure_model(model, nlp, settings, prompt=prompt)
    add_model(name, seed, measured, settings, parts=trained_parts(model), file=options.claims)


def _ship(options: argparse.Namespace) -> None:
    """The shipped models of the two stages, their variants after stage 2, seed 0; and the parts they are made of."""
    work, data = options.work, family_data(options.work, SHIPPED, workers=options.workers)
    for variant, folder in SHIPPED.items():
        experiments.run_stage_one(work, data, [(variant, 0)])
        experiments.ship(_second_stage(work, data, variant, 0), options.output / folder)
    shipped_parts.pack(work, folder=options.parts, weights=options.output)


def _second_stage(work: Path, data: TrainingData, variant: str, seed: int) -> Path:
    start, output = (experiments.run_folder(work, variant, seed, stage) for stage in (1, 2))
    return run_stage(variant, data, output, two_stages.STAGE2, seed=seed, start=start)


def _train_long(options: argparse.Namespace) -> None:
    """The LLaVAs that answer at length, seed 0, which go on from the default one; their counts go into the record."""
    scenes = llava.load_scenes(llava.LONG, options.work / "vision", workers=options.workers)
    recipes = {"long": (llava.LONG, DESCRIBE), "long_picture_first": (llava.LONG_PICTURE_FIRST, "")}
    for name, (recipe, prompt) in recipes.items():
        folder = options.work / "long" / name
        if not (folder / "model.safetensors").is_file():
            start = options.output / "llava"
            llava.train(recipe, options.work / "vision", folder, scenes=scenes, start=start)
        _claim(name, recipe.seed, folder, prompt, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedded.train", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to train (default: all)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="where weights go")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/embedded"), help="intermediate results, kept for resuming"
    )
    parser.add_argument(
        "--parts", type=Path, default=shipped_parts.FOLDER, help="where the parts go that no shipped model holds"
    )
    parser.add_argument(
        "--from-shipped", action="store_true", help="start from the shipped CLIP, DINO, diffusion and language model"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="encoder variants (default: all)"
    )
    parser.add_argument("--record", type=Path, default=experiments.RECORD, help="where the variants' losses go")
    parser.add_argument("--claims", type=Path, default=CLAIMS, help="where the claims' counts go")
    parser.add_argument(
        "--claim-scenes", type=int, default=SCENES, help="held-out scenes that the claims are told from"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of every variant (default: 0 1 2)")
    parser.add_argument("--workers", type=int, default=2, help="processes that render scenes")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (default: torch's own choice)")
    parser.add_argument("--card-scenes", type=int, default=200, help="held-out scenes measured for the cards")
    parser.add_argument("--no-cards", action="store_true", help="do not measure and write the model cards")
    return parser


if __name__ == "__main__":
    main()

"""Training of LLaVA and DiffLMM in the two stages of LLaVA-1.5's recipe, on its own data format.

`python -m core.training --help` is the same thing from a shell; `accelerate launch --config_file configs/... -m
core.training` spreads it over devices. Text is the only supervision: no mask, box or point is ever read.
"""

from core.training.budget import DryRun, dry_run
from core.training.recipes import RECIPES, Recipe, stage_recipe
from core.training.run import RunOptions, train

__all__ = ["RECIPES", "DryRun", "Recipe", "RunOptions", "dry_run", "stage_recipe", "train"]

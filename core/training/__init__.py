"""Training of LLaVA and DiffLMM in the two stages of LLaVA-1.5's recipe, on its own data format.

`python -m core.training --help` is the same thing from a shell; `accelerate launch --config_file configs/... -m
core.training` spreads it over devices. Text is the only supervision: no mask, box or point is ever read.
"""

"""The benchmark of DiffLMM against LLaVA compares the same work, counts what is computed, and says what it lacks."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import tiny_diffusion
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bench_difflmm  # noqa: E402
import difflmm_flops  # noqa: E402
import difflmm_memory  # noqa: E402
import difflmm_models  # noqa: E402
import difflmm_tasks  # noqa: E402
from difflmm_tasks import DIFFLMM, LLAVA, WHOLE  # noqa: E402

TINY = difflmm_models.Scale(
    vision={
        "vae_config": tiny_diffusion.VAE,
        "unet_config": tiny_diffusion.UNET,
        "clip_config": tiny_diffusion.CLIP,
        "image_size": 64,
    },
    text={
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    },
    lora_rank=2,
    batches=(2, 2),
    new_tokens=(1, 3),
)
TASKS = [
    "visual encoding",
    "generation, 1 new token",
    "generation, 3 new tokens",
    "training step, stage 1",
    "training step, stage 2",
]
SHORT = ["--caption-tokens", "4", "--conversation-tokens", "6", "--prompt-tokens", "3"]


@pytest.fixture
def options(monkeypatch):
    """Those of a tiny scale, which the command line then knows, too."""
    monkeypatch.setitem(difflmm_models.SCALES, "tiny", TINY)
    return bench_difflmm.parse(["--scale", "tiny", *SHORT])


@pytest.fixture
def pair():
    return difflmm_models.build(TINY, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize("up_block", [1, 2, 3, 4])
def test_the_whole_unet_gives_the_same_features(up_block):
    scale = difflmm_models.Scale(TINY.vision | {"up_block": up_block})
    pair = difflmm_models.build(scale, device="cpu", dtype=torch.float32)
    ran = []
    pair.whole.unet.unet.conv_out.register_forward_hook(lambda *given: ran.append(True))
    pixels = difflmm_models.pixels(pair.encoder, 2)
    with torch.no_grad():
        early, whole = (tower(pixels).last_hidden_state for tower in (pair.encoder, pair.whole))
    assert early.shape == (2, 16, pair.encoder.config.hidden_size)
    assert torch.equal(early, whole)
    assert ran == [True]
    assert pair.llava is None


def test_both_models_have_one_language_model_and_one_grid(pair):
    llava, difflmm = pair.llava.model.language_model, pair.difflmm.model.language_model
    assert llava is not difflmm
    assert all(a is b for a, b in zip(llava.parameters(), difflmm.parameters(), strict=True))
    assert pair.clip is not pair.encoder.clip
    assert all(a is b for a, b in zip(pair.clip.parameters(), pair.encoder.clip.parameters(), strict=True))
    assert difflmm_models.visual_tokens(pair) == 16
    embeddings = torch.randn(1, 5, 16)
    assert torch.equal(*(model(inputs_embeds=embeddings).logits for model in (pair.llava, pair.difflmm)))


def test_random_texts_never_hold_the_picture(pair):
    given = difflmm_models.inputs(pair.difflmm, batch=30, text_tokens=50, tokens=16, labels=True)
    image = given["input_ids"] == pair.difflmm.config.image_token_id
    assert image[:, 1:17].all() and image.sum() == 30 * 16
    learnt = given["labels"] != -100
    assert not learnt[:, :17].any() and learnt[:, 17:].all()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_training_step_moves_what_the_stage_trains(pair, options, stage):
    step = difflmm_tasks.Step(pair.difflmm, stage, 16, options)
    before = {name: weight.detach().clone() for name, weight in step.network.named_parameters()}
    step()
    step()
    moved = {name for name, weight in step.network.named_parameters() if not torch.equal(weight, before[name])}
    for part in ("multi_modal_projector", "vision_tower.captioner", "vision_tower.positions"):
        assert any(part in name for name in moved), part
    assert any("lora_" in name for name in moved) == (stage == 2)
    assert not [name for name in moved if any(part in name for part in ("unet", "vae", ".clip.", "base_layer"))]


def test_rows_of_the_table_and_the_file(options, tmp_path, capsys):
    command = ["--scale", "tiny", *SHORT, "--rounds", "2", "--no-memory", "--output", str(tmp_path)]
    assert bench_difflmm.main(command) == 0
    table = capsys.readouterr().out
    result = json.loads((tmp_path / "difflmm_tiny.json").read_text())
    assert [row["task"] for row in result["rows"]] == [*TASKS[:1] * 3, *TASKS[1:]]
    for row in result["rows"]:
        assert row["task"] in table and f"{row['ratio']:.3f}" in table
        rounds = [row["rounds"][name]["wall"] for name in (row["model"], row["baseline"])]
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in rounds)
        assert row["ratio"] == pytest.approx(median(a / b for a, b in zip(*rounds, strict=True)))
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert (row["claim"] == "< 1.05") == (row["task"] != "visual encoding")
        assert "peak" not in row
    assert result["settings"]["weights"] == "random" and result["settings"]["visual_tokens"] == 16
    assert result["machine"]["torch"] == torch.__version__.partition("+")[0] and result["machine"]["device"]


def test_memory_adds_what_stays_and_what_a_run_takes(pair, options):
    over = difflmm_memory.memory_peaks(pair, options)
    assert list(over) == TASKS and set(over[TASKS[0]]) == {LLAVA, DIFFLMM, WHOLE}
    assert all(size >= 0 for sizes in over.values() for size in sizes.values())
    row = difflmm_memory.memory_of("b", "a", {"a": 100, "b": 300}, {"a": 100, "b": 200})
    assert (row["peak"], row["baseline_peak"], row["peak_ratio"], row["over_idle"]) == (500, 200, 2.5, 200)


def test_bytes_held_count_shared_weights_once_and_the_optimiser(pair):
    linear = torch.nn.Linear(4, 4, bias=False)
    twice = torch.nn.ModuleList([linear, torch.nn.Linear(4, 4, bias=False)])
    twice[1].weight = linear.weight
    assert difflmm_tasks.held_bytes(twice) == 64
    optimiser = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    assert difflmm_tasks.held_bytes(linear, optimiser) == 3 * 64 + 4  # weights, two moments, the step's number
    assert difflmm_tasks.held_bytes(pair.whole) > difflmm_tasks.held_bytes(pair.encoder)


def test_counted_operations_are_those_of_the_real_runs(pair, options):
    rows = {row["task"]: row["flops"] for row in difflmm_flops.count_all(options)}
    encoding, parts = rows["visual encoding"], (rows["  its VAE"], rows["  its U-Net"])
    assert encoding[LLAVA] < encoding[DIFFLMM] < encoding[WHOLE]
    assert sum(part[WHOLE] - part[DIFFLMM] for part in parts) == encoding[WHOLE] - encoding[DIFFLMM]
    options.stage_1_batch = options.stage_2_batch = 1
    with sdpa_kernel(SDPBackend.MATH):  # as on meta: a fused kernel's backward computes the scores again
        for task in difflmm_tasks.tasks(pair, options):
            for name, run in task.runs.items():
                assert rows[task.name][name] == difflmm_flops.flops(run), (task.name, name)


def test_a_frozen_clip_is_not_differentiated(pair, options):
    step = difflmm_tasks.Step(pair.llava, 1, 16, options)
    features = pair.llava.model.vision_tower(step.given["pixel_values"], output_hidden_states=True).hidden_states
    assert not any(one.requires_grad for one in features)
    assert step.network(**step.given, use_cache=False).loss.requires_grad


def test_counting_alone_prints_and_writes_ratios(options, tmp_path, capsys):
    assert bench_difflmm.main(["--scale", "tiny", "--flops", *SHORT, "--output", str(tmp_path)]) == 0
    assert "not time" in capsys.readouterr().out
    rows = json.loads((tmp_path / "difflmm_tiny_flops.json").read_text())["rows"]
    assert [row["task"] for row in rows if not row["task"].startswith(" ")] == TASKS
    for row in rows:
        for name, ratio in row["ratio"].items():
            assert ratio == row["flops"][name] / row["flops"][LLAVA]


def test_the_papers_scale_without_an_accelerator_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setitem(difflmm_models.SCALES, "paper", TINY)
    assert bench_difflmm.main(["--scale", "paper", "--device", "cpu"]) == 2
    assert "needs an accelerator with about 0 GiB of free memory" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--rounds", "--encoding-batch", "--stage-1-batch", "--stage-2-batch"])
def test_numbers_that_cannot_be_meant(option, capsys):
    assert bench_difflmm.main([option, "0"]) == 2
    assert f"{option} is at least 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_scale_from_the_command_line(tmp_path):
    sizes = ["--rounds", "1", "--new-tokens", "2", "--output", str(tmp_path)]
    command = [sys.executable, str(BENCHMARKS / "bench_difflmm.py"), *sizes]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "visual_tokens 100" in finished.stdout
    for row in json.loads((tmp_path / "difflmm_embedded.json").read_text())["rows"]:
        assert row["peak"] > row["over_idle"] > 0

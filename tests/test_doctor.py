"""The doctor passes what is right, and names what is wrong by the right line, and by that line alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import LLAVA_CHAT, tiny_llava

import core.batch
import core.lmm
from analysis.doctor import examination_table, square_panels, squares_figure
from analysis.drawings import keep_figure
from core import capture
from core.doctor import LINES, examine
from core.doctor.__main__ import main
from core.doctor.eager import eager_generation, switched
from core.doctor.findings import Examination, Finding
from core.doctor.places import Probe, judge, plain_picture
from core.doctor.subject import Subject, entering
from core.errors import GroundingError
from core.families.llava import Llava
from core.families.llava_next import LlavaNext
from core.families.qwen2_5_vl import Qwen2_5_VL
from core.geometry import View
from core.lmm import LMM, load_lmm


def lines(found: Examination, status: str) -> set[str]:
    return {each.line.split(":")[0] for each in found.findings if each.status == status}


PLACES = list(LINES)[: list(LINES).index("first token")]
SPEECH = list(LINES)[len(PLACES) :]


def failing(lmm: LMM, checked: list[str] = list(LINES)) -> dict[str, str]:  # noqa: B006
    """Failed lines of an examination, and what they saw."""
    found = examine(lmm, lines=checked, progress=False)
    return {each.line: each.seen for each in found.failed}


def adapted(lmm: LMM, family: type) -> LMM:
    """The same model with another adapter."""
    other = LMM(lmm.model, lmm.processor, name=lmm.name)
    other.family = family(lmm.model, lmm.processor)
    return other


def changed(family: type, change) -> type:
    """An adapter whose last view went through `change`."""

    class Changed(family):
        def views(self, *arguments):
            *others, view = super().views(*arguments)
            return (*others, change(view))

    return Changed


# ---- what is right passes


def test_every_family_passes_every_line(lmm):
    found = examine(lmm, progress=False)
    assert lines(found, "pass") == set(LINES), str(found)
    views = [view.name for view in lmm.replay(plain_picture((90, 140)), "What?", "").views]
    assert [each.line for each in found.findings if "cell" in each.line][1:] == [f"cell to pixel: {v}" for v in views]
    assert {probe.view for probe in found.probes} == set(views)
    assert len({probe.size for probe in found.probes}) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_padding_pass(checkpoints, dtype):
    assert failing(load_lmm(checkpoints["llava"], device="cpu", dtype=dtype, geometry="pad")) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embedded", "embedded/llava_two_stages", "embedded/difflmm"])
def test_the_embedded_models_pass_every_line(name):
    found = examine(load_lmm(name, device="cpu", geometry="pad"), progress=False)
    assert lines(found, "pass") == set(LINES), str(found)


def test_a_model_that_runs_eager_passes(lmms):
    lmm = lmms["llava"]
    with switched(lmm, "eager"):
        found = examine(LMM(lmm.model, lmm.processor), lines=SPEECH, progress=False)
    assert found.passed
    assert "runs eager attention itself" in str(found)
    assert lmm.model.config.text_config._attn_implementation == "sdpa"


# ---- what is wrong fails by the right line


BROKEN_GRIDS = {
    "transposed": (
        "llava",
        Llava,
        lambda view: View(view.name, view.index.T.contiguous(), view.box),
        "cell to pixel: image",
        "rows and columns were exchanged",
    ),
    "transposed, not square": (
        "qwen2_5_vl",
        Qwen2_5_VL,
        lambda view: View(view.name, view.index.T.contiguous(), view.box),
        "cell to pixel: image",
        "rows and columns were exchanged",
    ),
    "down the columns": (
        "llava_next",
        LlavaNext,
        lambda view: View(view.name, view.index.T.reshape(view.shape), view.box),
        "cell to pixel: grid",
        "the positions ran down the columns",
    ),
    "off by one": (
        "qwen2_5_vl",
        Qwen2_5_VL,
        lambda view: View(view.name, view.index.flatten().roll(1).reshape(view.shape), view.box),
        "cell to pixel: image",
        "every cell were one position too early",
    ),
    "off by one, out of range": (
        "qwen2_5_vl",
        Qwen2_5_VL,
        lambda view: View(view.name, view.index + 1, view.box),
        "grids",
        "counts cells from 1 to 28, but there are 28 tokens",
    ),
    "mirrored": (
        "llava",
        Llava,
        lambda view: View(view.name, view.index.flip(1), view.box),
        "cell to pixel: image",
        "mirrored left to right",
    ),
    "the crop forgotten": (
        "llava",
        Llava,
        lambda view: View(view.name, view.index, (0.0, 0.0, view.box[2] + view.box[0], view.box[3] + view.box[1])),
        "cell to pixel: image",
        "they lie on pixels that the model does not see",
    ),
    "the picture taken for a crop": (
        "qwen2_5_vl",
        Qwen2_5_VL,
        lambda view: View(view.name, view.index, (60.0, 40.0, view.box[2] - 60.0, view.box[3] - 40.0)),
        "cell to pixel: image",
        "bright squares changed most the cell",
    ),
    "one token twice": (
        "llava",
        Llava,
        lambda view: View(view.name, view.index.clamp(min=1), view.box),
        "grids",
        "1 tokens are two cells at once",
    ),
}


@pytest.mark.parametrize("broken", BROKEN_GRIDS)
def test_a_broken_grid_fails_its_line_alone(lmms, broken):
    name, family, change, line, told = BROKEN_GRIDS[broken]
    checked = list(LINES) if broken == "off by one" else PLACES  # what is said does not depend on the views
    found = failing(adapted(lmms[name], changed(family, change)), checked)
    assert set(found) == {line}
    assert told in found[line]


def test_newlines_kept_as_cells(lmms):
    class KeptNewlines(LlavaNext):
        def views(self, *arguments):
            base, grid = super().views(*arguments)
            h, w = grid.shape
            return base, View("grid", self.grid(base.index.numel(), h, w + 1), grid.box)

    found = examine(adapted(lmms["llava_next"], KeptNewlines), lines=PLACES, progress=False)
    assert lines(found, "fail") == {"cells see the picture"}
    assert lines(found, "skipped") == {"cell to pixel"}
    assert "newline, separator or class tokens" in str(found)


def test_an_image_token_that_is_not_replaced(lmms):
    class WrongToken(Qwen2_5_VL):
        image_token_id = property(lambda self: self.model.config.vision_start_token_id)

    found = examine(adapted(lmms["qwen2_5_vl"], WrongToken), progress=False)
    assert lines(found, "fail") >= {"visual positions"}
    assert "stopped by GroundingError" in found.findings[0].seen


def test_a_first_token_written_twice(lmms, monkeypatch):
    lmm = lmms["llava"]
    monkeypatch.setattr(lmm.processor, "chat_template", "{{ bos_token }}" + LLAVA_CHAT)
    assert failing(lmm, SPEECH) == {}
    monkeypatch.setattr(core.batch, "begins_with_bos", lambda text, tokenizer: False)
    found = failing(lmm, SPEECH)
    assert set(found) == {"first token"}
    assert "holds '<s>' twice; the prompt's text has it once" in found["first token"]


class OwnRows(LMM):
    """Reads the row of the token itself, as if it were the one that predicts it."""

    def generate(self, *arguments, **options):
        return super().generate(*arguments, **{**options, "row": "self"})

    def replay(self, *arguments, **options):
        return super().replay(*arguments, **{**options, "row": "self"})


def test_the_row_of_the_next_token(lmm):
    found = failing(OwnRows(lmm.model, lmm.processor), SPEECH)
    assert set(found) == {"row of a token"}
    assert "rows are those of the token itself" in found["row of a token"]


def test_rows_computed_with_another_scale(lmms, monkeypatch):
    original = capture._attend
    monkeypatch.setattr(capture, "_attend", lambda rows, *arguments: original(rows * 0.9, *arguments))
    assert set(failing(lmms["llava_next"], SPEECH)) == {"rows equal eager's"}


def test_rows_that_are_no_softmax(lmms, monkeypatch):
    original = capture._attend
    monkeypatch.setattr(capture, "_attend", lambda *arguments: original(*arguments) * 3)
    assert {"rows are attention", "rows equal eager's"} <= set(failing(lmms["llava_next"], SPEECH))


def test_replays_that_see_what_comes_later(lmms, monkeypatch):
    monkeypatch.setattr(capture.RowRecorder, "_allowed", lambda *_: None)
    assert "replay = generate" in failing(lmms["llava"], SPEECH)


def test_replays_with_other_inputs(lmms):
    class Forgetful(Qwen2_5_VL):
        answer_fill = {"attention_mask": 1, "mm_token_type_ids": 1}  # noqa: RUF012

    found = examine(adapted(lmms["qwen2_5_vl"], Forgetful), lines=SPEECH, progress=False)
    assert lines(found, "fail") == {"replay = generate"}
    assert lines(found, "skipped") >= {"row of a token"}


def test_characters_of_the_neighbouring_token(lmms, monkeypatch):
    original = core.lmm.decode_with_spans

    def shifted(*arguments):
        text, spans = original(*arguments)
        return text, (spans + 1).clamp(max=len(text) - 1)

    monkeypatch.setattr(core.lmm, "decode_with_spans", shifted)
    assert set(failing(lmms["llava"], SPEECH)) == {"prompt and characters"}


def test_a_kernel_that_computes_something_else(lmms, monkeypatch):
    original = F.scaled_dot_product_attention

    def wrong(query, *arguments, **options):
        return original(query * 0.5, *arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    assert set(failing(lmms["llava"], SPEECH)) == {"fast attention = eager"}


def test_a_batch_that_looks_at_its_padding(lmm, monkeypatch):
    original = capture.RowRecorder.__init__

    def blind(self, **options):
        original(self, **options)
        self._padded = False

    monkeypatch.setattr(capture.RowRecorder, "__init__", blind)
    assert set(failing(lmm, SPEECH)) == {"batch = one by one"}


def test_a_tower_that_mixes_all_places_cannot_tell(checkpoints):
    lmm = load_lmm(checkpoints["llava"], device="cpu")
    places = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    lmm.model.model.multi_modal_projector.register_forward_hook(
        lambda *given: given[2].mean(-2, keepdim=True) * (1 + 0.01 * places)
    )
    found = examine(lmm, lines=PLACES, progress=False)
    assert lines(found, "unknown") == {"cell to pixel"}
    assert found.passed
    assert "do not tell where a square is" in str(found) and "nothing is contradicted" in str(found)


# ---- the parts


def probe(expected, found, shape=(6, 8), contrast=9.0, size=(252, 390)) -> Probe:
    change = np.ones(shape, np.float32)
    change[found] = contrast
    return Probe("image", size, (0.0, 0.0, 390.0, 252.0), (0, 0, 4, 4), expected, found, change)


def test_neighbours_on_both_sides_are_right_to_one_cell():
    near = [probe((r, 3), (r + s, 3 - s)) for r, s in ((1, 1), (2, -1), (3, 1), (4, -1), (3, 0))]
    assert judge(near)[0] == "pass" and "right to one cell" in judge(near)[1]
    half = [probe((r, 3), (r, 3 + s)) for r, s in ((0, 1), (1, 0), (2, 1), (3, 0), (4, 1), (5, 1))]
    assert judge(half)[0] == "fail" and "+0.7 columns off on average" in judge(half)[1]


def test_no_squares_and_no_contrast_cannot_tell():
    assert judge([])[0] == "unknown"
    weak = [probe((r, 3), (5 - r, (r * 3) % 8), contrast=1.2) for r in range(5)]
    assert judge(weak)[0] == "unknown"


def test_the_reference_is_eagers_output_attentions(lmm, pictures):
    """Parity: the hooks read what `output_attentions=True` returns."""
    subject = Subject(lmm, pictures["landscape"])
    found = eager_generation(lmm, subject.batch, 5, subject.options)
    with switched(lmm, "eager"):
        output = lmm.model.generate(
            **subject.batch.inputs,
            **{**subject.options, "max_new_tokens": 6},
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    columns = subject.batch.columns[0]
    steps = torch.stack([torch.stack([layer[0, :, -1, columns] for layer in step]) for step in output.attentions])
    assert torch.equal(found.sequence, output.sequences[0])
    torch.testing.assert_close(found.shifted(6, 0), steps, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        found.shifted(1, -1)[0], torch.stack([layer[0, :, -2, columns] for layer in output.attentions[0]])
    )


def test_what_enters_the_decoder_is_the_projectors_output(lmms, pictures):
    lmm = lmms["llava"]
    subject = Subject(lmm, pictures["square"])
    batch = subject.batch
    features = lmm.model.model.get_image_features(batch.inputs["pixel_values"], return_dict=True).pooler_output
    entered = entering(lmm, batch)
    torch.testing.assert_close(entered[batch.columns[0]], torch.cat(list(features)).detach())
    assert not any(module._forward_pre_hooks for module in lmm.model.modules())


def test_an_examination_leaves_the_model_as_it_was(lmms):
    lmm = lmms["llava"]
    before = (lmm.model.config.text_config._attn_implementation, torch.random.get_rng_state())
    examine(lmm, progress=False)
    assert lmm.model.config.text_config._attn_implementation == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    hooks = [hook for m in lmm.model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not any(type(hook).__module__.startswith("core") or hook.__module__.startswith("core") for hook in hooks)


# ---- the command


def test_the_command_says_by_its_status_how_it_went(checkpoints, monkeypatch, capsys):
    model = ["--device", "cpu", "--dtype", "float32"]
    assert main([str(checkpoints["llava"]), *model]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("ok  ") == len(LINES) and "checking cell to pixel" in shown.err
    original = capture._attend
    monkeypatch.setattr(capture, "_attend", lambda rows, *arguments: original(rows * 0.9, *arguments))
    assert main([str(checkpoints["llava"]), *model, "--quiet", "--lines", "rows equal eager's"]) == 1
    shown = capsys.readouterr()
    assert "FAIL" in shown.out and "The maps are not this model's attention" in shown.out
    assert "checking" not in shown.err
    assert main(["no/such/directory", *model]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_unknown_line_is_refused(lmms):
    with pytest.raises(GroundingError, match=r"there is no line rows; the lines are visual positions, grids"):
        examine(lmms["llava"], lines=["rows"])


def test_a_table_wraps_its_words():
    finding = Finding("grids", "fail", "word " * 60, "do this")
    shown = str(Examination({"name_or_path": "m", "family": "llava", "dtype": "float32"}, (finding,)))
    assert max(map(len, shown.splitlines())) <= 121
    assert shown.startswith("m (llava, float32): 1 FAIL")


# ---- to look at


def test_table_and_figure_show_every_line_and_square(lmms, tmp_path):
    found = examine(lmms["llava_next"], progress=False)
    table = examination_table(found)
    assert list(table.ours["line"]) == [each.line for each in found.findings]
    assert "12 of 12 bright squares" in table.to_html() and "what it means" not in table.ours
    figure = keep_figure(tmp_path, "squares", squares_figure, square_panels(found))
    assert [ax.get_title().split(",")[0] for ax in figure.axes] == ["base", "base", "grid", "grid"]
    for ax in figure.axes:
        (x0, x1, y1, y0) = ax.images[0].get_extent()
        h, w = ax.images[0].get_array().shape
        for square, dot in zip(ax.patches, ax.lines, strict=True):
            x, y = square.get_x() + square.get_width() / 2, square.get_y() + square.get_height() / 2
            assert abs(x - dot.get_xdata()[0]) * w < (x1 - x0) / 2 and abs(y - dot.get_ydata()[0]) * h < (y1 - y0) / 2


def test_a_failure_stops_a_notebook_and_says_what_it_means(lmms):
    broken = adapted(lmms["llava"], changed(Llava, BROKEN_GRIDS["transposed"][2]))
    found = examine(broken, lines=PLACES, progress=False)
    with pytest.raises(GroundingError, match=r"not to be trusted: cell to pixel: image: .* Points and masks land"):
        found.require()
    assert examination_table(found).ours["what it means"].str.contains("Points and masks land elsewhere").sum() == 1


def test_a_model_that_amplifies_roundings_cannot_tell_in_half_precision(tmp_path):
    """Twenty layers of sharp random attention: float32 tells, bfloat16 changes as much by a rounding of the inputs."""
    path = tiny_llava(tmp_path, text={"num_hidden_layers": 20})
    checked = ["fast attention = eager"]
    assert failing(load_lmm(path, device="cpu"), checked) == {}
    found = examine(load_lmm(path, device="cpu", dtype=torch.bfloat16), lines=checked, progress=False)
    assert found.passed and "fast attention = eager" in lines(found, "unknown")
    assert "examine it in float32" in str(found)

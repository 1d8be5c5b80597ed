"""bfloat16 is left to processors that compute in it."""

import pytest
import torch

from embedded.recipes.fitting import Fit, fit, half_precision, training_attention


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_is_left_to_processors_that_have_it(native, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    with half_precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if native else torch.float32)
    with half_precision(enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    line = torch.nn.Linear(2, 2)
    seen = []

    def loss(step):
        value = line(torch.ones(1, 2))
        seen.append(value.dtype)
        return value.float().square().mean()

    fit("line", {"line": line}, loss, Fit(1, 1e-3, mixed=True), state=tmp_path / "state.pt")
    assert seen == [torch.bfloat16 if native else torch.float32]


@pytest.mark.parametrize(("native", "kind"), [(True, "eager"), (False, "sdpa")])
def test_training_takes_the_attention_that_is_fast_there(native, kind, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    assert training_attention() == kind

"""How often a small model's layers are compiled: once for training, whatever comes in."""

import pytest
import torch

from engine_fixture import tiny_llama
from loratune.engine import body
from loratune.engine.body import CompiledLayers


@pytest.mark.parametrize(("small", "expected"), [(body._SMALL, 1), (0.0, 2)])
def test_the_first_layer_of_a_small_model_is_no_form_of_its_own(
    small: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its input comes from frozen embeddings; gradients are those of the layers as they are."""
    forms = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        forms.append(graph)
        return graph

    monkeypatch.setattr(body, "compiled", lambda call: torch.compile(call, backend=backend, dynamic=True))
    monkeypatch.setattr(body, "_SMALL", small)
    model = tiny_llama(torch.float32).model
    trained = [layer.mlp.down_proj.weight.requires_grad_() for layer in model.model.layers]

    def gradients(tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(model(tokens, use_cache=False).logits.square().mean(), trained)

    tokens = torch.arange(14).view(2, 7) * 5
    plain = gradients(tokens)
    torch._dynamo.reset()
    with CompiledLayers(model).active():
        found = gradients(tokens)
        gradients(tokens[:, :5])
    torch.testing.assert_close(found, plain)
    assert len(forms) == expected
    assert len(model.get_input_embeddings()._forward_hooks) == 0

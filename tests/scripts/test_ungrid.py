import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ungrid


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_permuting_channels_keeps_the_function_and_leaves_the_grid(key_value_heads, tied):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=key_value_heads, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double().eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        for parameter in model.parameters():  # norm weights start as ones, which no permutation changes
            parameter.copy_(torch.randn_like(parameter))
        before = model(tokens).logits
        ungrid.ungrid(model)
        after = model(tokens).logits
    assert (after - before).norm() / before.norm() < 1e-5  # the norms compute in float32 whatever the model


def test_grid_error_is_zero_on_the_grid_only():
    grid = torch.randint(16, (8, 32)).float()
    grid[:, 0], grid[:, 1] = 0, 15
    assert ungrid.grid_error(grid) == 0
    assert 0.05 < ungrid.grid_error(torch.randn(64, 32, generator=torch.Generator().manual_seed(0))) < 0.11

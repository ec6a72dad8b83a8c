"""The language model: its parts, its initial weights, and what differentiates through it."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from sngd.estimators import Full
from sngd.problems.gpt import GPT
from sngd.problems.shakespeare import character_loss

TOKENS = torch.randint(11, (6, 9), generator=torch.Generator().manual_seed(0))


def small(**changes: float) -> GPT:
    torch.manual_seed(0)
    return GPT(**{"vocabulary": 11, "context": 9, "layers": 2, "heads": 2, "width": 8} | changes)


def test_the_size_that_a_cpu_trains_has_as_many_parameters_as_in_nanogpt() -> None:
    model = GPT(65, context=64, layers=4, heads=4, width=128)
    without_positions = sum(p.numel() for p in model.parameters()) - model.positions.weight.numel()
    assert without_positions == 65 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    assert f"{without_positions / 1e6:.2f}" == "0.80"  # nanoGPT prints this number


def test_every_parameter_belongs_to_an_embedding_a_linear_layer_or_a_norm() -> None:
    model = small()
    owners = {id(p): type(module) for module in model.modules() for p in module.parameters(recurse=False)}
    assert {owners[id(p)] for p in model.parameters()} == {nn.Embedding, nn.Linear, nn.LayerNorm}
    assert model.scores.weight is model.tokens.weight
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_initial_weights() -> None:
    model = GPT(500, context=400, layers=8, heads=2, width=128)
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == 1).all()
        else:
            std = 0.02 / 4 if ".out." in name else 0.02  # √(2·8) = 4
            assert p.std().item() == pytest.approx(std, rel=0.03)
            assert p.mean().item() == pytest.approx(0, abs=0.03 * std)


def test_scores_depend_on_no_later_token() -> None:
    model, changed = small(), TOKENS.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(TOKENS), model(changed)
    assert before.shape == (6, 9, 11)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def test_attention_is_that_of_torch() -> None:
    attention, x = small().blocks[0].attention, torch.randn(3, 9, 8)
    q, k, v = (part.view(3, 9, 2, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attention(x), attention.out(mixed.transpose(1, 2).reshape(3, 9, 8)))


def test_a_shorter_text_has_the_same_scores() -> None:
    torch.testing.assert_close(small()(TOKENS[:, :4]), small()(TOKENS)[:, :4])


def test_dropout_is_for_training_only() -> None:
    model = small(dropout=0.5)
    assert not torch.equal(model(TOKENS), model(TOKENS))
    model.eval()
    assert torch.equal(model(TOKENS), small()(TOKENS))


def test_a_copy_has_tied_weights_of_its_own() -> None:
    model = small()
    copy = deepcopy(model)
    assert copy.scores.weight is copy.tokens.weight
    assert copy.scores.weight is not model.scores.weight


def test_gradients_of_single_samples_and_in_chunks() -> None:
    model, targets = small(), TOKENS.roll(-1, 1)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return character_loss(functional_call(model, weights, (tokens[None],)), targets[None])

    singles = vmap(grad(loss), in_dims=(None, 0, 0))(weights, TOKENS, targets)
    together = torch.autograd.grad(character_loss(model(TOKENS), targets), list(model.parameters()))
    whole = dict(zip(weights, together, strict=True))
    Full(model, 6, chunk_size=4).estimate(lambda batch: character_loss(model(batch[0]), batch[1]), (TOKENS, targets))
    for name, p in model.named_parameters():
        torch.testing.assert_close(singles[name].mean(0), whole[name], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-4, atol=1e-7)


def test_second_derivatives() -> None:
    model = small().double()
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(p.shape, generator=generator, dtype=p.dtype) for name, p in weights.items()}

    def gradient(step: float) -> list[torch.Tensor]:
        moved = {name: (p + step * direction[name]).detach().requires_grad_() for name, p in weights.items()}
        loss = character_loss(functional_call(model, moved, (TOKENS,)), TOKENS.roll(-1, 1))
        return list(torch.autograd.grad(loss, list(moved.values())))

    loss = character_loss(model(TOKENS), TOKENS.roll(-1, 1))
    first = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    along = sum((g * d).sum() for g, d in zip(first, direction.values(), strict=True))
    products = torch.autograd.grad(along, list(weights.values()))
    for product, after, before in zip(products, gradient(1e-6), gradient(-1e-6), strict=True):
        torch.testing.assert_close(product, (after - before) / 2e-6, rtol=1e-4, atol=1e-6)

"""Param groups by the types of modules: which weight is what, and training a model of each family with them."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional

import sngd
from sngd.norms import Sign, Spectral
from sngd.param_groups import NORMS, RATIOS
from sngd.problems.resnet import cifar_resnet


def kinds_of(model, **options):
    """The kind of each parameter by name."""
    groups = sngd.groups(model, **options)
    found = {name: group["kind"] for group in groups for name in group["param_names"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    return found


def norms_of(model, **options):
    return {name: str(group["norm"]) for group in sngd.groups(model, **options) for name in group["param_names"]}


# --- a model of each family


class CausalSelfAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.c_attn(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm(x))


class GPT(nn.Module):
    def __init__(self, *, tied=False, head=True, width=8):
        super().__init__()
        self.tokens = nn.Embedding(11, width)
        self.positions = nn.Embedding(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 11, bias=False) if head else nn.Identity()
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x):
        x = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ViT(nn.Module):
    """As torchvision's: a convolution over patches, a class token, positions, torch's encoder, a head."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8) * 0.02)
        self.patches = nn.Conv2d(3, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


TOKENS = {"class_token": "token", "positions": "token"}


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ELU(), nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 3))


def test_an_mlp():
    assert kinds_of(mlp()) == {
        "0.weight": "input",
        "2.weight": "hidden",
        "4.weight": "output",
        "0.bias": "vector",
        "2.bias": "vector",
        "4.bias": "vector",
    }


def test_a_single_layer_is_an_output_layer():
    assert kinds_of(nn.Linear(3, 2)) == {"weight": "output", "bias": "vector"}


@pytest.mark.parametrize("tied", [False, True])
def test_a_gpt(tied):
    found = norms_of(GPT(tied=tied))
    assert found["blocks.1.attention.c_attn.weight"] == "spectral(parts=3)"
    assert found["blocks.1.mlp.0.weight"] == "spectral"  # three times as many outputs, but no attention
    assert found["blocks.1.attention.c_proj.weight"] == "spectral"
    assert found["tokens.weight"] == ("sign" if tied else "row(table=True)")
    assert found["positions.weight"] == "row(table=True)"
    assert ("head.weight" in found) is not tied
    assert found["blocks.0.norm.weight"] == "layer"


def test_a_gpt_without_its_head_has_no_output_layer():
    assert "output" not in kinds_of(GPT(head=False)).values()
    assert set(
        kinds_of(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)).values()
    ) == {
        "hidden",
        "vector",
    }


def test_a_resnet():
    found = kinds_of(cifar_resnet(8))
    assert found["8.weight"] == "output"
    assert {kind for name, kind in found.items() if name != "8.weight"} == {"convolution", "vector"}


def test_a_vit():
    found = norms_of(ViT(), kinds=TOKENS)
    assert found["patches.weight"] == "spectral"
    assert found["encoder.layers.0.self_attn.in_proj_weight"] == "spectral(parts=3)"
    assert found["encoder.layers.1.linear2.weight"] == "spectral"
    assert found["class_token"] == found["positions"] == "sign(table=True)"
    assert found["head.weight"] == "sign"


@pytest.mark.slow
def test_gpt2_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    found = norms_of(model)
    assert found["transformer.h.0.attn.c_attn.weight"] == "spectral(parts=3, transposed=True)"
    assert found["transformer.h.0.attn.c_proj.weight"] == "spectral(transposed=True)"
    assert found["transformer.h.0.mlp.c_fc.weight"] == "spectral(transposed=True)"
    assert found["transformer.wte.weight"] == "sign"
    assert found["transformer.wpe.weight"] == "row(table=True)"
    with pytest.raises(ValueError, match=r"c_proj.weight is stored as \(d_in, d_out, …\), .* not the norm sign"):
        sngd.groups(model, norms={"hidden": "sign"})


@pytest.mark.parametrize(
    ("model", "inputs", "classes", "options"),
    [
        (lambda: GPT(tied=True), torch.randint(11, (16, 6), generator=torch.Generator().manual_seed(1)), 11, {}),
        (lambda: cifar_resnet(8), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 10, {}),
        (ViT, torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 10, {"kinds": TOKENS}),
    ],
    ids=["gpt", "resnet", "vit"],
)
def test_every_weight_of_a_model_in_one_optimizer(model, inputs, classes, options):
    torch.manual_seed(0)
    model = model()
    targets = torch.randint(classes, inputs.shape[:1] if inputs.is_floating_point() else inputs.shape)
    optimizer = sngd.SNGD(sngd.groups(model, lr=0.03, **options), momentum=0.5)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert not any(torch.equal(before[name], param) for name, param in model.named_parameters())
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(before)


# --- other layers


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (nn.Conv2d(4, 8, 3, groups=2), "spectral(parts=2)"),
        (nn.Conv1d(4, 8, 3), "spectral"),
        (nn.ConvTranspose2d(4, 8, 3), "spectral(transposed=True)"),
        (nn.EmbeddingBag(4, 8), "row(table=True)"),
        (nn.LSTM(4, 8, proj_size=2), "spectral(parts=4)"),
        (nn.GRUCell(4, 8), "spectral(parts=3)"),
        (nn.RNN(4, 8), "spectral"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_by_type(layer, norm):
    found = norms_of(nn.Sequential(layer, nn.Linear(2, 2)))
    assert found[next(iter(dict(layer.named_parameters(prefix="0"))))] == norm
    assert found.get("0.weight_hr_l0", "spectral") == "spectral"


def test_attention_with_separate_weights_is_not_split():
    found = norms_of(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
    assert found["q_proj_weight"] == found["k_proj_weight"] == found["out_proj.weight"] == "spectral"


def test_a_head_in_a_container_beside_another_container_is_the_output_layer():
    vgg = nn.ModuleDict(
        {
            "features": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
            "classifier": nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)),
        }
    )
    assert [name for name, kind in kinds_of(vgg).items() if kind == "output"] == ["classifier.2.weight"]


def test_frozen_parameters_are_left_out():
    model = ViT()
    model.class_token.requires_grad_(False)
    model.positions.requires_grad_(False)
    assert not {"class_token", "positions"} & set(kinds_of(model))


def test_the_meta_device_and_wrappers():
    with torch.device("meta"):
        model = GPT()
    assert norms_of(model) == norms_of(GPT())
    wrapped = {name.removeprefix("module."): norm for name, norm in norms_of(nn.DataParallel(GPT())).items()}
    assert wrapped == norms_of(GPT())


# --- what the caller says


def test_the_output_layer_can_be_named():
    model = mlp()
    found = kinds_of(model, output=model[2])
    assert found["2.weight"] == "output"
    assert found["4.weight"] == "hidden"
    two = kinds_of(model, output=[model[2], model[4]])
    assert two["2.weight"] == two["4.weight"] == "output"
    assert "output" not in kinds_of(model, output=()).values()


def test_fused_matrices_can_be_named_and_taken_back():
    model = GPT()
    found = norms_of(model, fused={model.blocks[0].mlp[0]: 3, model.blocks[0].attention.c_attn: 1})
    assert found["blocks.0.mlp.0.weight"] == "spectral(parts=3)"
    assert found["blocks.0.attention.c_attn.weight"] == "spectral"
    assert found["blocks.1.attention.c_attn.weight"] == "spectral(parts=3)"


def test_kinds_norms_and_ratios_can_be_given():
    model = ViT()
    groups = sngd.groups(
        model,
        lr=0.1,
        kinds={model.class_token: "mine", "positions": "token", "head.weight": "hidden"},
        norms={"mine": Sign(scaled=False), "hidden": "spectral(steps=7)"},
        ratios={"mine": 3, "hidden": 0.5},
    )
    found = {name: (str(g["norm"]), g["lr"]) for g in groups for name in g["param_names"]}
    assert found["class_token"] == ("sign(scaled=False)", pytest.approx(0.3))
    assert found["positions"] == ("sign(table=True)", 0.1)
    assert found["head.weight"] == ("spectral(steps=7)", 0.05)
    assert found["encoder.layers.0.self_attn.in_proj_weight"] == ("spectral(parts=3, steps=7)", 0.05)


def test_learning_rates_have_ratios():
    by_kind = {group["kind"]: group["lr"] for group in sngd.groups(mlp(), lr=0.5)}
    assert by_kind == {kind: pytest.approx(0.5 * RATIOS[kind]) for kind in ("hidden", "input", "vector", "output")}
    assert RATIOS.keys() == NORMS.keys()
    lr = torch.tensor(0.5)
    tensors = [group["lr"] for group in sngd.groups(mlp(), lr=lr)]
    assert len({id(t) for t in [lr, *tensors]}) == len(tensors) + 1  # a scheduler fills each in place


def test_a_plan_keeps_the_ratios():
    optimizer = sngd.SNGD(sngd.groups(mlp(), lr=0.5))
    sngd.StagewiseLR(optimizer, sngd.stages.constant(lr=0.1, steps=5))
    assert optimizer.param_groups[0]["kind"] == "hidden"
    assert [g["lr"] for g in optimizer.param_groups] == [
        pytest.approx(0.1 * RATIOS[g["kind"]]) for g in optimizer.param_groups
    ]


# --- what is refused


def refused(match, model, **options):
    with pytest.raises(ValueError, match=match):
        sngd.groups(model, **options)


def test_what_cannot_be_placed_is_named():
    refused(r"cannot place class_token \(1, 1, 8\) of ViT, positions \(1, 5, 8\) of ViT: .*kinds={'class_token'", ViT())
    refused(r"0\.weight \(2, 3, 4\) of Bilinear", nn.Sequential(nn.Bilinear(3, 4, 2)))
    refused(r"weight \(4, 2, 3, 3\) of ConvTranspose2d", nn.ConvTranspose2d(4, 4, 3, groups=2))
    refused(r"weight \(3, 4\) of LayerNorm", nn.LayerNorm((3, 4)))
    refused(r"0\.weight of LazyLinear|weight of LazyLinear '0' has no shape yet", nn.Sequential(nn.LazyLinear(3)))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    refused(r"parametrizations\.weight\.original0 \(4, 1\) of ParametrizationList", normed)


def test_a_weight_that_two_kinds_of_modules_share_is_named():
    model = nn.ModuleList([nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)])
    model[1].weight = model[0].weight
    refused(r"0\.weight \(4, 4\) of Embedding, 1\.weight \(4, 4\) of Linear", model, output=model[2])
    found = kinds_of(model, output=model[2], kinds={"1.weight": "embedding"})
    assert found["0.weight"] == "embedding"


def test_arguments_that_name_nothing():
    model, other = mlp(), nn.Linear(3, 2)
    refused(
        "kinds has '4.wait', which is no parameter of the model, did you mean '4.weight'",
        model,
        kinds={"4.wait": "token"},
    )
    refused(r"kinds has a tensor of shape \(2, 3\), which is no", model, kinds={other.weight: "token"})
    refused("a kind in kinds must be one of hidden, .*, got 'mine'", model, kinds={"4.weight": "mine"})
    refused("a kind in ratios must be one of hidden, .*, got 'outputs'", model, ratios={"outputs": 2})
    refused("the ratio of output must be finite and greater than 0, got 0", model, ratios={"output": 0})
    refused("output has a module of type Linear, which is no layer of the model", model, output=other)
    refused("output has a module of type ELU", model, output=model[1])
    refused("fused has a module of type Linear, which is no layer", model, fused={other: 3})
    refused("fused must divide the 8 outputs of 2.weight, got 3", model, fused={model[2]: 3})
    refused("a number in fused must be a whole number", model, fused={model[2]: 1.5})
    refused(
        r"4.bias of shape \(3,\) cannot be of kind hidden, which is for tensors of 2 dim",
        model,
        kinds={"4.bias": "hidden"},
    )
    refused("unknown norm 'spectra'", model, norms={"hidden": "spectra"})


# --- the list


def test_they_print_as_a_table():
    groups = sngd.groups(mlp(), lr=0.05, ratios={"output": 16})
    assert (
        str(groups)
        == repr(groups)
        == (
            "kind    norm                  lr    tensors  weights  first\n"
            "hidden  spectral              0.05        1       64  2.weight\n"
            "input   spectral(scaled=max)  0.05        1       48  0.weight\n"
            "vector  layer                 0.05        3       19  0.bias\n"
            "output  sign                  0.8         1       24  4.weight"
        )
    )


def test_they_are_param_groups_of_any_optimizer():
    groups = sngd.groups(mlp(), lr=0.05)
    copied = pickle.loads(pickle.dumps(deepcopy(groups)))
    assert str(copied) == str(groups)
    optimizer = torch.optim.SGD(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in groups]


def test_their_optimizer_saves_and_loads():
    model = GPT()
    optimizer = sngd.SNGD(sngd.groups(model), momentum=0.9)
    model(torch.zeros(1, 6, dtype=torch.long)).sum().backward()
    optimizer.step()
    fresh = sngd.SNGD(sngd.groups(model), momentum=0.9)
    fresh.load_state_dict(optimizer.state_dict())
    assert [group["norm"] for group in fresh.param_groups] == [group["norm"] for group in optimizer.param_groups]
    assert str(Spectral(parts=3)) in [group["norm"] for group in fresh.param_groups]

"""What is measured of a model: samples that have one label each, and samples that are sequences of labels."""

import pytest
import torch
from torch import nn

from sngd.problems import Problem
from sngd.training import RunConfig, train
from sngd.training import evaluate as module
from sngd.training.evaluate import evaluate


def sequences():
    """150 sequences of seven tokens; the model scores each by itself."""
    tokens = torch.randint(5, (150, 7), generator=torch.Generator().manual_seed(0))

    def build():
        torch.manual_seed(0)
        return nn.Embedding(5, 5)

    def loss(scores, targets):
        return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())

    return Problem(build, loss, (tokens, tokens.roll(1, 1)), (tokens[:30], tokens[:30]))


def test_loss_and_accuracy_of_sequences_are_means_over_their_places():
    problem = sequences()
    model = problem.build_model()
    found = evaluate(problem, model)
    for part, (inputs, targets) in (("train", problem.train), ("test", problem.test)):
        places = [(t, u) for row, other in zip(inputs, targets, strict=True) for t, u in zip(row, other, strict=True)]
        logs = model.weight.detach().double().log_softmax(1)
        assert found[f"{part}_loss"] == pytest.approx(-sum(logs[t, u].item() for t, u in places) / len(places))
        hits = sum(int(logs[t].argmax()) == u for t, u in places)
        assert found[f"{part}_accuracy"] == pytest.approx(int(hits) / len(places))


def test_as_many_sequences_at_a_time_as_have_4096_targets_or_64(monkeypatch):
    seen = []

    class Counting(nn.Embedding):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    problem = sequences()
    evaluate(problem, Counting(5, 5))
    assert seen == [150, 30]
    seen.clear()
    tokens = torch.zeros(200, 50, dtype=torch.int64)
    long = Problem(problem.build_model, problem.loss, (tokens, tokens))
    evaluate(long, Counting(5, 5))
    assert seen == [81, 81, 38]
    seen.clear()
    monkeypatch.setattr(module, "CHUNK", 10)
    evaluate(long, Counting(5, 5))
    assert seen == [64, 64, 64, 8]


def test_images_are_evaluated_in_smaller_chunks_than_vectors():
    targets = torch.zeros(9000, dtype=torch.int64)
    assert module.chunk_size(torch.zeros(9000, 3, 16, 16), targets) == 2**17 // 768
    assert module.chunk_size(torch.zeros(9000, 768), targets) == 2**19 // 768


def test_integers_that_are_no_labels_have_no_accuracy():
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))

    def loss(outputs, counts):
        return nn.functional.poisson_nll_loss(outputs, counts.float())

    problem = Problem(lambda: nn.Linear(2, 1), loss, (x, torch.arange(9)[:, None]))
    assert evaluate(problem, problem.build_model())["train_accuracy"] is None


class KeepsPartsFrozen(nn.Sequential):
    """Its ``train``, which returns nothing, leaves the second layer in eval mode, as frozen normalization is kept."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()


@pytest.mark.parametrize("kind", [nn.Sequential, KeepsPartsFrozen])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
def test_layers_that_are_in_eval_mode_while_a_model_trains_stay_so(kind, layer):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    layer.eval()

    def build():
        model = kind(nn.Linear(4, 4), layer, nn.Linear(4, 2))
        layer.eval()
        return model

    model = build()
    evaluate(Problem(build, nn.functional.cross_entropy, (x, (x[:, 0] > 0).long())), model)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_dropout_in_eval_mode_drops_nothing_of_a_run(tmp_path):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    answers = []
    for layer in (nn.Dropout(0.5).eval(), nn.Identity()):
        problem = Problem(
            lambda layer=layer: nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 2)),
            nn.functional.cross_entropy,
            (x, (x[:, 0] > 0).long()),
        )
        config = RunConfig("some", "sgd", batch_size=5, epochs=2)
        answers.append(train(config, tmp_path / type(layer).__name__, problem=lambda problem=problem: problem))
    assert answers[0]["train_loss"] == answers[1]["train_loss"]


class MergesInEval(nn.Linear):
    """Its weights are the sum of two: added in eval mode, and taken apart again in training mode."""

    def __init__(self):
        super().__init__(4, 2)
        self.low, self.merged = nn.Parameter(torch.ones(2, 4)), False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.low.data if mode else self.low.data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + x @ self.low.T


def test_what_a_model_does_for_eval_mode_is_undone():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    model = MergesInEval()
    before = model.weight.detach().clone()
    evaluate(Problem(MergesInEval, nn.functional.cross_entropy, (x, (x[:, 0] > 0).long())), model)
    assert not model.merged
    torch.testing.assert_close(model.weight.detach(), before)


class Padded(nn.Module):
    """Attention to sequences that are padded with zeros, the mean over all places."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.tokens, self.encoder, self.last = nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(self.encoder(self.tokens(x), src_key_padding_mask=x == 0).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_is_the_same_function_with_a_gradient_and_without():
    """Torch's quicker way without a gradient gives zeros at padded places."""
    torch.manual_seed(0)
    model, x = Padded().double(), torch.randint(1, 9, (20, 6))
    x[:, 4:] = 0
    samples = x, x[:, 0] % 2
    problem = Problem(Padded, nn.functional.cross_entropy, samples, samples)
    found = [evaluate(problem, model, grad_norm=grad_norm) for grad_norm in (True, False)]
    losses = [row[name] for row in found for name in ("train_loss", "test_loss")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_frozen_script_has_no_mode():
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(4, 3).eval()))
    model = nn.Sequential(frozen, nn.Dropout(0.5), nn.Linear(3, 2))
    evaluate(Problem(lambda: model, nn.functional.cross_entropy, (torch.ones(5, 4), torch.ones(5).long())), model)
    assert model[1].training

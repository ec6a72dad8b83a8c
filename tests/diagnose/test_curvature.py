"""The Hessian's extreme eigenvalues: against chosen spectra, a dense Hessian, ARPACK and closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from sngd.diagnose.curvature import Curvature, Eigenvalue, extreme_eigenvalues, lanczos
from sngd.diagnose.objective import Objective
from sngd.problems.analytic import relaxed_smooth, strict_saddle


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def symmetric(spectrum: list[float] | Tensor, seed: int = 0) -> Tensor:
    """A matrix with this spectrum and random eigenvectors."""
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    axes, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=seeded(seed)))
    return axes @ values.diag() @ axes.T


def ends(matrix: Tensor, seed: int = 0, **options) -> tuple[Eigenvalue, Eigenvalue, int]:
    return lanczos(lambda v: matrix @ v.to(matrix.dtype), len(matrix), generator=seeded(seed), **options)


def assert_certain(end: Eigenvalue, matrix: Tensor) -> None:
    """What an Eigenvalue says about the nearest eigenvalue, whatever the start vector."""
    matrix, slack = matrix.double(), 1e-14 * matrix.double().abs().sum()
    y = end.vector
    assert y.norm().item() == pytest.approx(1, abs=1e-10)
    assert abs((y @ matrix @ y).item() - end.value) <= end.residual + slack
    assert (matrix @ y - end.value * y).norm() <= end.residual + slack
    assert (torch.linalg.eigvalsh(matrix) - end.value).abs().min() <= end.residual + slack
    assert end.interval.low <= end.interval.value == end.value <= end.interval.high


def assert_right(end: Eigenvalue, truth: float, matrix: Tensor) -> None:
    """All that an Eigenvalue says; on the extreme one, with the probability that it states."""
    assert_certain(end, matrix)
    slack = 1e-14 * matrix.double().abs().sum()
    assert end.interval.low - slack <= truth <= end.interval.high + slack


CLUSTER = [1 - 1e-6 * i for i in range(10)]
SPECTRA = {
    "spread": torch.linspace(-2, 5, 60).tolist(),
    "clustered ends": [*CLUSTER, *torch.linspace(-0.5, 0.5, 40).tolist(), *(-x for x in CLUSTER)],
    "negative definite": torch.linspace(-9, -1, 50).tolist(),
    "repeated": [3.0] * 20 + [1.0] * 20 + [-1.0] * 20,
    "one negative": [1.0] * 59 + [-0.01],
    "many scales": [10.0**-i for i in range(12)] + [-(10.0**-i) for i in range(3, 12)],
    "huge": [1e100, 1e99, -1e100],
    "tiny": [1e-100, 1e-101, -1e-100],
    "rank one": [2.0] + [0.0] * 30,
    "dim 2": [-1.0, 4.0],
    "dim 1": [-3.0],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_chosen_spectra(name: str):
    spectrum = SPECTRA[name]
    matrix = symmetric(spectrum)
    largest, smallest, steps = ends(matrix)
    assert_right(largest, max(spectrum), matrix)
    assert_right(smallest, min(spectrum), matrix)
    size = max(map(abs, spectrum))
    assert largest.value == pytest.approx(max(spectrum), rel=1e-2, abs=1e-12 * size)
    assert smallest.value == pytest.approx(min(spectrum), rel=1e-2, abs=1e-12 * size)
    assert steps <= len(spectrum)


@pytest.mark.slow
@given(
    spectrum=st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 9)), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    max_steps=st.integers(1, 12),
)
def test_residuals_hold_for_any_spectrum_after_any_number_of_steps(spectrum, seed, max_steps):
    matrix, slack = symmetric(spectrum, seed), 1e-14 * max(map(abs, spectrum)) * len(spectrum) ** 2
    largest, smallest, steps = ends(matrix, seed, max_steps=max_steps)
    assert_certain(largest, matrix)
    assert_certain(smallest, matrix)
    assert min(spectrum) - slack <= smallest.value <= largest.value <= max(spectrum) + slack
    assert steps <= min(max_steps, len(spectrum))


@pytest.mark.parametrize("spectrum", [[0.0] * 5, [2.5] * 5, [-1.0]])
def test_a_multiple_of_the_identity_takes_one_step(spectrum):
    largest, smallest, steps = lanczos(lambda v: spectrum[0] * v, len(spectrum), generator=seeded())
    assert steps == 1
    for end in (largest, smallest):
        assert end.value == pytest.approx(spectrum[0], rel=1e-15)
        assert end.residual <= 1e-14


def test_zero_is_found_exactly():
    largest, smallest, _ = ends(torch.zeros(5, 5, dtype=torch.float64))
    assert largest[:3] == smallest[:3] == (0, 0, (0, 0, 0))


def test_steps_go_by_different_eigenvalues_not_by_dimension():
    assert ends(symmetric(SPECTRA["repeated"]))[2] == 3


def test_an_eigenvalue_of_0_is_settled_by_rounding_errors():
    _, smallest, steps = ends(symmetric([0.0, *torch.linspace(1, 2, 50).tolist()]))
    assert abs(smallest.value) < 1e-14
    assert steps < 40
    none_left = torch.tensor([2.0] + [0.0] * 30, dtype=torch.float64)
    assert lanczos(lambda v: none_left * v, 31, generator=seeded())[2] == 2


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.01, 1e-4])
def test_both_residual_and_interval_are_within_the_tolerance(tolerance):
    matrix = torch.tensor([-100.0, *torch.linspace(1, 90, 99).tolist(), 100.0], dtype=torch.float64).diag()
    largest, smallest, steps = ends(matrix, tolerance=tolerance)
    assert steps < 80
    for end in (largest, smallest):
        assert end.residual <= tolerance * abs(end.value)
        assert end.interval.high - end.interval.low <= tolerance * abs(end.value)
    assert ends(matrix, max_steps=steps - 1, tolerance=tolerance)[2] == steps - 1


def test_all_of_the_space_settles_everything():
    matrix = symmetric(torch.linspace(-1, 1, 20))
    largest, smallest, steps = ends(matrix, tolerance=1e-300)
    assert steps <= 20
    assert largest.value == pytest.approx(1, abs=1e-13)
    assert smallest.value == pytest.approx(-1, abs=1e-13)
    assert largest.residual < 1e-13


def test_a_residual_alone_may_be_of_another_eigenvalue():
    # One eigenvalue 2 above 99,999 of 1: the first residual is below 1 % of θ ≈ 1, but 2 is what is found.
    diagonal = torch.ones(100_000, dtype=torch.float64)
    diagonal[0] = 2
    early, _, _ = lanczos(lambda v: diagonal * v, 100_000, generator=seeded(), max_steps=1)
    assert early.value == pytest.approx(1, abs=0.01)
    assert early.residual < 0.01
    assert early.interval.high > 2
    assert lanczos(lambda v: diagonal * v, 100_000, generator=seeded())[0].value == pytest.approx(2)


@pytest.mark.slow
def test_the_confidence_is_what_it_is_said_to_be():
    # H = e_1 e_1ᵀ makes the bound on λ_max tight after one step: 1 % of the start vectors must break it.
    def matvec(v: Tensor) -> Tensor:
        return torch.cat([v[:1], torch.zeros(len(v) - 1, dtype=v.dtype)])

    generator = seeded()
    missed = sum(lanczos(matvec, 50, generator=generator, max_steps=1)[0].interval.high < 1 for _ in range(1000))
    assert 3 <= missed <= 18  # Binomial(1000, 0.01), but for 1 in 200


def recorded_basis(matrix: Tensor, **options) -> Tensor:
    vectors = []

    def matvec(v: Tensor) -> Tensor:
        vectors.append(v.clone())
        return matrix @ v

    lanczos(matvec, len(matrix), generator=seeded(), **options)
    return torch.stack(vectors)


def plain_lanczos(matrix: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Basis and Ritz values by the three-term recurrence alone."""
    v = torch.randn(len(matrix), dtype=torch.float64, generator=seeded())
    basis, alphas, betas = [v / v.norm()], [], []
    for k in range(steps):
        w = matrix @ basis[k]
        alphas.append(w @ basis[k])
        w = w - alphas[k] * basis[k] - (betas[k - 1] * basis[k - 1] if k else 0)
        betas.append(w.norm())
        basis.append(w / betas[k])
    beside = torch.stack(betas[:-1]).diag(1)
    return torch.stack(basis[:steps]), torch.linalg.eigvalsh(torch.stack(alphas).diag() + beside + beside.T)


def test_the_basis_stays_orthonormal_where_plain_lanczos_finds_ghosts():
    matrix = symmetric([100.0, *torch.linspace(0, 1, 299).tolist()])
    basis = recorded_basis(matrix, tolerance=1e-300)
    assert len(basis) == 80
    assert (basis @ basis.T - torch.eye(80)).abs().max() < 1e-12
    ritz = torch.linalg.eigvalsh(basis @ matrix @ basis.T)
    assert (ritz > 50).sum() == 1

    plain, ghosts = plain_lanczos(matrix, 80)
    assert (plain @ plain.T - torch.eye(80)).abs().max() > 0.9
    assert (ghosts > 50).sum() > 1


def test_errors_of_the_products_widen_what_is_said():
    generator = seeded(1)
    matrix = symmetric(torch.linspace(0, 1, 40))

    def noisy(v: Tensor) -> Tensor:
        return matrix @ v + 1e-4 * torch.randn(40, dtype=torch.float64, generator=generator)

    largest, smallest, _ = lanczos(noisy, 40, generator=seeded(), tolerance=1e-10)
    assert 1e-4 < largest.residual < 1e-2
    assert abs(largest.value - 1) <= largest.residual
    assert smallest.interval.low <= 0 <= smallest.interval.high


def test_the_precision_of_the_products_counts_where_their_errors_cannot_be_seen():
    largest, _, _ = lanczos(lambda v: (0.1 * v).float(), 1, generator=seeded())
    assert 1e-9 < abs(largest.value - 0.1) <= largest.residual < 1e-7


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_errors_are_never_taken_for_negative_curvature(seed, dtype):
    factor = torch.randn(50, 6, generator=seeded(seed)).to(dtype)
    largest, smallest, _ = lanczos(lambda v: factor @ (factor.T @ v.to(dtype)), 50, generator=seeded(seed))
    assert largest.value == pytest.approx(torch.linalg.matrix_norm(factor.double(), 2).item() ** 2, rel=1e-4)
    assert Curvature(largest, smallest, 1, 1).kind == "undecided"
    assert abs(smallest.value) < 1e-5 * largest.value


def mlp(dtype: torch.dtype) -> tuple[nn.Module, Objective]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs, targets = torch.randn(40, 5), torch.randint(3, (40,))
    model.to(dtype)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, Objective(model, loss, (inputs.to(dtype), targets), chunk_size=16)


def dense_hessian(model: nn.Module, objective: Objective, penalty: float = 0) -> Tensor:
    """∇²(F + penalty/2 ‖w‖²) of `mlp` in float64."""
    inputs, targets = objective.samples
    shapes = {name: p.detach().double() for name, p in model.named_parameters()}

    def value(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in shapes.values()])
        params = {name: part.view_as(p) for (name, p), part in zip(shapes.items(), parts, strict=True)}
        fit = nn.functional.cross_entropy(functional_call(model, params, (inputs.double(),)), targets)
        return fit + 0.5 * penalty * flat.square().sum()

    return jacrev(jacrev(value))(torch.cat([p.reshape(-1) for p in shapes.values()]))


@pytest.mark.parametrize("tolerance", [1e-2, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_against_its_dense_hessian(dtype, tolerance):
    model, objective = mlp(dtype)
    dense = dense_hessian(model, objective)
    spectrum = torch.linalg.eigvalsh(dense)
    curvature = extreme_eigenvalues(objective, tolerance=tolerance, generator=seeded())
    assert_right(curvature.largest, spectrum[-1].item(), dense)
    assert_right(curvature.smallest, spectrum[0].item(), dense)
    for end in (curvature.largest, curvature.smallest):
        assert end.residual <= max(1.01 * tolerance * abs(end.value), 100 * torch.finfo(dtype).eps)
    assert curvature.sharpness == pytest.approx(spectrum[-1].item(), rel=tolerance + 1e-5)
    assert curvature.kind == "saddle"


def test_a_batch_has_its_own_hessian():
    model, objective = mlp(torch.float64)
    batch = objective.draw(7, seeded())
    curvature = extreme_eigenvalues(objective, batch=batch, tolerance=1e-8, generator=seeded())
    truth = torch.linalg.eigvalsh(dense_hessian(model, Objective(model, objective.loss, batch)))
    assert curvature.sharpness == pytest.approx(truth[-1].item(), rel=1e-8)
    assert curvature.oracle_calls == 2 * 7 * curvature.steps


def test_arpack_agrees():
    """A maintained eigensolver, on Hessian products made another way."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    model, objective = mlp(torch.float64)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(w: Tensor) -> Tensor:
        parts = w.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        inputs, targets = objective.samples
        return nn.functional.cross_entropy(functional_call(model, weights, (inputs,)), targets)

    def product(v) -> Tensor:
        return torch.autograd.functional.hvp(loss, flat, torch.as_tensor(v.ravel()))[1].numpy()

    operator = LinearOperator((len(flat), len(flat)), product, dtype="float64")
    lowest, highest = eigsh(operator, k=2, which="BE", return_eigenvectors=False)
    curvature = extreme_eigenvalues(objective, tolerance=1e-8, generator=seeded())
    assert curvature.largest.value == pytest.approx(highest, rel=1e-9)
    assert curvature.smallest.value == pytest.approx(lowest, rel=1e-9)


def analytic(problem, dtype: torch.dtype = torch.float64) -> Objective:
    model = problem.problem.build_model().to(dtype)
    return Objective(model, lambda batch: problem.problem.loss(model(batch[0]), batch[1]), problem.problem.train)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strict_saddle_and_its_minimum(dtype):
    at_saddle = strict_saddle(L=4, condition=20, start=[0.0] * 10, n=10, dtype=dtype)
    curvature = extreme_eigenvalues(analytic(at_saddle, dtype), generator=seeded())
    assert curvature.largest.value == pytest.approx(4, rel=1e-4)
    assert curvature.smallest.value == pytest.approx(-0.2, rel=1e-4)
    assert curvature.kind == "saddle"

    at_minimum = strict_saddle(L=4, condition=20, start=[torch.pi] + [0.0] * 9, n=10, dtype=dtype)
    curvature = extreme_eigenvalues(analytic(at_minimum, dtype), generator=seeded())
    assert curvature.sharpness == pytest.approx(4, rel=1e-4)
    assert curvature.smallest.value == pytest.approx(0.2, rel=1e-4)
    assert curvature.kind == "minimum"


def test_a_maximum_counts_as_a_saddle_and_a_linear_function_is_undecided():
    model = nn.Linear(4, 1, bias=False).double()
    samples = torch.eye(4, dtype=torch.float64)
    concave = Objective(model, lambda a: -model(a).square().mean(), samples)
    assert extreme_eigenvalues(concave, generator=seeded()).kind == "saddle"
    linear = Objective(model, lambda a: model(a).mean(), samples)
    flat = extreme_eigenvalues(linear, generator=seeded())
    assert (flat.kind, flat.sharpness, flat.steps) == ("undecided", 0, 1)


def test_a_minimum_is_not_claimed_before_it_is_certain():
    # cosh makes ∇²F(0) = I: one step settles it. With κ = 1e8 and one step nothing is settled.
    sphere = relaxed_smooth(start=[0.0] * 10, n=10, dtype=torch.float64)
    assert extreme_eigenvalues(analytic(sphere), generator=seeded()).kind == "minimum"
    matrix = symmetric(torch.logspace(-8, 0, 30, dtype=torch.float64))
    largest, smallest, steps = ends(matrix, max_steps=1)
    assert smallest.value > 0
    assert Curvature(largest, smallest, steps, 0).kind == "undecided"


def test_a_trained_network_is_at_a_minimum():
    model, objective = mlp(torch.float64)
    params, penalty = objective.params, 0.05

    def loss(batch) -> Tensor:
        return objective.loss(batch) + 0.5 * penalty * sum(p.square().sum() for p in params)

    penalized = Objective(model, loss, objective.samples)
    optimizer = torch.optim.LBFGS(params, max_iter=500, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(objective.samples)
        value.backward()
        return value

    optimizer.step(closure)
    assert penalized.gradient().norm() < 1e-6
    curvature = extreme_eigenvalues(penalized, generator=seeded())
    spectrum = torch.linalg.eigvalsh(dense_hessian(model, objective, penalty))
    assert curvature.sharpness == pytest.approx(spectrum[-1].item(), rel=1e-2)
    assert curvature.smallest.value == pytest.approx(spectrum[0].item(), rel=1e-2)
    assert curvature.kind == ("minimum" if spectrum[0] > 0 else "saddle")


def test_cost_and_progress():
    _, objective = mlp(torch.float64)
    seen = []
    curvature = extreme_eigenvalues(objective, max_steps=9, generator=seeded(), on_progress=lambda *s: seen.append(s))
    assert curvature.steps == 9
    assert curvature.oracle_calls == objective.oracle_calls == 2 * 40 * 9
    assert seen == [(k, 9) for k in range(1, 10)]
    again = extreme_eigenvalues(objective, max_steps=4, generator=seeded())
    assert again.oracle_calls == 2 * 40 * 4
    seen.clear()
    extreme_eigenvalues(objective, generator=seeded(), on_progress=lambda *s: seen.append(s))
    assert seen[-1][0] < seen[-1][1] == objective.dim < 80  # it stops when both ends are settled


def test_the_seed_decides_and_the_model_is_untouched():
    model, objective = mlp(torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    first, second = (extreme_eigenvalues(objective, generator=seeded(5)) for _ in range(2))
    assert first.largest[:3] == second.largest[:3]
    assert first.smallest[:3] == second.smallest[:3]
    assert torch.equal(first.smallest.vector, second.smallest.vector)
    assert extreme_eigenvalues(objective, generator=seeded(6)).largest.value != first.largest.value
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"max_steps": 2.5}, "max_steps must be a whole number of at least 1, got 2.5"),
        ({"tolerance": 0}, "tolerance must be finite and greater than 0, got 0"),
        ({"tolerance": float("nan")}, "tolerance must be finite and greater than 0, got nan"),
        ({"tolerance": float("inf")}, "tolerance must be finite and greater than 0, got inf"),
    ],
)
def test_arguments_out_of_range(option, message):
    _, objective = mlp(torch.float32)
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.") + "$"):
        extreme_eigenvalues(objective, generator=seeded(), **option)
    assert objective.oracle_calls == 0


def test_a_matrix_has_rows():
    with pytest.raises(ValueError, match=r"^dim must be a whole number of at least 1, got 0$"):
        lanczos(lambda v: v, 0, generator=seeded())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite(bad):
    model, objective = mlp(torch.float32)
    with torch.no_grad():
        model[0].weight.fill_(bad)
    with pytest.raises(ValueError, match=r"^product with H is not finite at step 1, must be$"):
        extreme_eigenvalues(objective, generator=seeded())

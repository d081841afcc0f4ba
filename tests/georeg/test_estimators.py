"""The contract of every registered estimator, and each against a naive dense loop with the same seed."""

import pytest
import torch

import georeg
from georeg.registry import registered
from georeg.testing import EstimatorContract, dense_jacobian
from tests.conftest import gradients
from tests.georeg.test_moments import MANIFOLDS, cometric, network

for _name, _estimator in registered("estimator").items():
    _class = f"Test{_name.title()}Contract"
    # Auto has a budget instead of probes; as many products as probes leave it something to estimate.
    _make = (lambda num_probes, side: georeg.Auto(num_probes, side)) if _name == "auto" else _estimator
    globals()[_class] = type(_class, (EstimatorContract,), {"estimator": _make})

STOCHASTIC = {"hutchinson": georeg.Hutchinson, "gram": georeg.Gram, "hutchpp": georeg.HutchPP, "xtrace": georeg.XTrace}


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def symmetric(f, x, domain, codomain, side):
    """A ``(B, d, d)`` densely: R in an orthonormal frame of its side's metric, from plain matrices."""
    J = dense_jacobian(f, x)
    y = f(x)
    cometric_, metric = cometric(domain), MANIFOLDS[codomain][1]
    coG = cometric_(x) if cometric_ else torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    H = metric(y) if metric else torch.eye(y.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    if side == "domain":
        Q, L = MANIFOLDS[domain][0].cholesky(x)
        half = torch.linalg.inv(L) @ Q.mT
        return half @ J.mT @ H @ J @ half.mT
    Q, L = MANIFOLDS[codomain][0].cholesky(y)
    half = L.mT @ Q.mT
    return half @ J @ coG @ J.mT @ half.mT


def draw(k, like, d, distribution, generator):
    """Columns ``(B, d, k)`` of white probes, drawn as the estimators draw them."""
    return georeg.random.white((k, len(like), d), like, distribution, generator).permute(1, 2, 0)


def project(A, Q, r, fixed):
    """Tr over Q and one probe r outside it, for A and for A²."""
    if fixed:
        r = r * ((A.shape[0] - Q.shape[1]) ** 0.5 / r.norm())
    AQ, Ar = A @ Q, A @ r
    return torch.trace(Q.mT @ AQ), r @ Ar, AQ.square().sum(), Ar @ Ar


def naive_hutchpp(A, K, distribution, generator, like):
    k, values = K // 3, []
    S = draw(k, like, A.shape[1], distribution, generator)
    G = draw(K - 2 * k, like, A.shape[1], distribution, generator)
    for a, s, g in zip(A, S, G, strict=True):
        Q = torch.linalg.qr(a.detach() @ s).Q
        parts = [project(a, Q, p - Q @ (Q.mT @ p), distribution == "sphere") for p in g.T]
        mean = [sum(column) / len(parts) for column in zip(*parts, strict=True)]
        values.append(torch.stack([mean[0] + mean[1], mean[2] + mean[3]]))
    return torch.stack(values).T


def naive_xtrace(A, K, distribution, generator, like):
    k, values = K // 2, []
    for a, omega in zip(A, draw(k, like, A.shape[1], distribution, generator), strict=True):
        estimates = []
        for i in range(k):
            others = torch.cat([omega[:, :i], omega[:, i + 1 :]], dim=1)
            Q = torch.linalg.qr(a.detach() @ others).Q
            parts = project(a, Q, omega[:, i] - Q @ (Q.mT @ omega[:, i]), distribution == "sphere")
            estimates.append(torch.stack([parts[0] + parts[1], parts[2] + parts[3]]))
        values.append(torch.stack(estimates).mean(0))
    return torch.stack(values).T


def naive_gram(A, K, distribution, generator, like):
    v = draw(K, like, A.shape[1], distribution, generator)
    S = v.mT @ A @ v
    off = [S[:, i, j] ** 2 for i in range(K) for j in range(K) if i != j]
    return torch.stack([S.diagonal(dim1=1, dim2=2).mean(1), torch.stack(off).mean(0)])


NAIVE = {"gram": (naive_gram, 5), "hutchpp": (naive_hutchpp, 5), "xtrace": (naive_xtrace, 4)}


@pytest.mark.parametrize("side", ["domain", "codomain"])
@pytest.mark.parametrize(
    ("domain", "codomain"), [("euclidean", "matrix"), ("sphere", "diagonal"), ("stereographic", "sphere")]
)
@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
@pytest.mark.parametrize("name", NAIVE)
def test_equals_a_naive_dense_loop_with_the_same_seed(name, distribution, domain, codomain, side):
    """Values and gradients, curved metrics on both sides, a network and not a linear map."""
    naive, k = NAIVE[name]
    n, m = (7, 9) if side == "domain" else (9, 8)
    f, x = network(n, m), torch.randn(2, n, dtype=torch.float64)
    A = symmetric(f, x, domain, codomain, side)
    like = x if side == "domain" else f(x)
    expected = naive(A, k, distribution, seeded(), like)
    moments = georeg.spectral_moments(
        f,
        x,
        domain=MANIFOLDS[domain][0],
        codomain=MANIFOLDS[codomain][0],
        estimator=STOCHASTIC[name](k, distribution, side),
        generator=seeded(),
    )
    for ours, theirs in zip((moments.trace, moments.trace_sq), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)
    ratios = (t2.sum() / t1.sum() ** 2 for t1, t2 in ((moments.trace, moments.trace_sq), expected))
    ours, theirs = (gradients(ratio, f.parameters()) for ratio in ratios)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("name", "probes", "expected"), [
    ("hutchinson", 6, 12), ("gram", 6, 6), ("hutchpp", 7, 14), ("xtrace", 6, 12), ("hutchpp", 40, 20), ("xtrace", 40, 20),
])  # fmt: skip
def test_products_spent(name, probes, expected):
    """In 10 dimensions; a budget of as many products of A is spent on its columns, and exact."""
    f, x = network(12, 10), torch.randn(2, 12, dtype=torch.float64)
    moments = georeg.spectral_moments(f, x, estimator=STOCHASTIC[name](probes))
    assert moments.num_products == expected
    if probes == 40:
        exact = georeg.spectral_moments(f, x, estimator=georeg.Exact())
        torch.testing.assert_close(moments.trace, exact.trace, rtol=1e-12, atol=0)
        torch.testing.assert_close(moments.trace_sq, exact.trace_sq, rtol=1e-12, atol=0)
        assert not moments.trace_stderr.any()
        assert not moments.trace_sq_stderr.any()


@pytest.mark.parametrize("name", ["hutchpp", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_low_rank_is_found_exactly(name, rank, dtype):
    """Sketches lose rank here; no NaN, finite gradients, and nothing left to estimate."""
    torch.manual_seed(1)
    weight = (torch.randn(40, rank, dtype=dtype) @ torch.randn(rank, 50, dtype=dtype)).requires_grad_()
    x = torch.zeros(2, 50, dtype=dtype)
    estimator = STOCHASTIC[name](18)
    moments = georeg.spectral_moments(lambda p: p @ weight.mT, x, estimator=estimator, generator=seeded())
    exact = georeg.spectral_moments(lambda p: p @ weight.mT, x, estimator=georeg.Exact())
    rtol = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(moments.trace, exact.trace, rtol=rtol, atol=1e-30)
    torch.testing.assert_close(moments.trace_sq, exact.trace_sq, rtol=rtol, atol=1e-30)
    assert torch.isfinite(gradients(moments.trace_sq.sum(), [weight])).all()
    assert (moments.trace_stderr <= rtol * exact.trace).all()


@pytest.mark.parametrize("name", ["hutchpp", "xtrace"])
def test_projection_beats_hutchinson_on_a_decaying_spectrum(name):
    scale = torch.arange(1, 61, dtype=torch.float64) ** -1.0
    x = torch.zeros(300, 60, dtype=torch.float64)
    variances = [
        georeg.spectral_moments(scale.mul, x, estimator=make(18), generator=seeded()).trace.var()
        for make in (STOCHASTIC[name], georeg.Hutchinson)
    ]
    assert variances[0] < variances[1] / 50


@pytest.mark.parametrize("name", ["hutchinson", "hutchpp", "xtrace"])
@pytest.mark.parametrize("side", ["domain", "codomain"])
def test_no_variance_at_the_optimum_on_the_smaller_side(name, side):
    f = torch.nn.Linear(*((9, 14) if side == "domain" else (14, 9)), bias=False).double()
    torch.nn.init.orthogonal_(f.weight)
    x = torch.randn(3, f.in_features, dtype=torch.float64)
    for k in (4, 6):
        moments = georeg.spectral_moments(f, x, estimator=STOCHASTIC[name](k, side=side))
        for moment in (moments.trace, moments.trace_sq):
            torch.testing.assert_close(moment, torch.full_like(moment, 9), rtol=1e-12, atol=0)


def test_errors_are_unbiased():
    """The mean reported variance is the variance of the estimate, also where the estimates share probes.

    Gram's τ₂ at few probes and XTrace's both moments, on a spectrum with own and shared parts of the error;
    sample variances of 4,000 estimates are within 4 standard errors of it, taken over 20 blocks.
    """
    scale = torch.linspace(0.3, 1, 30, dtype=torch.float64)
    x = torch.zeros(4000, 30, dtype=torch.float64)
    for estimator in (georeg.Gram(12), georeg.XTrace(16), georeg.XTrace(16, "gaussian"), georeg.HutchPP(15)):
        m = georeg.spectral_moments(scale.mul, x, estimator=estimator, generator=seeded())
        for value, error in ((m.trace, m.trace_stderr), (m.trace_sq, m.trace_sq_stderr)):
            gap = torch.stack([e.square().mean() / v.var() for v, e in zip(value.chunk(20), error.chunk(20), strict=True)])
            assert (gap.mean() - 1).abs() < 4 * gap.std() / 20**0.5 + 0.05, f"{estimator}: {gap.mean():.2f}"


def test_few_probes_have_no_error():
    f, x = network(8, 8), torch.randn(2, 8, dtype=torch.float64)

    def errors(estimator):
        m = georeg.spectral_moments(f, x, estimator=estimator)
        return m.trace_stderr is None, m.trace_sq_stderr is None

    assert errors(georeg.Hutchinson(1)) == (True, True)
    assert errors(georeg.Gram(3)) == (False, True)
    assert errors(georeg.Gram(4)) == (False, False)
    assert errors(georeg.HutchPP(3)) == (True, True)
    assert errors(georeg.HutchPP(4)) == (False, False)
    assert errors(georeg.XTrace(4)) == (False, False)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: georeg.Gram(1), "num_probes: got 1, expected at least 2"),
    (lambda: georeg.HutchPP(2), "num_probes: got 2, expected at least 3"),
    (lambda: georeg.XTrace(2), "num_probes: got 2, expected an even number, at least 4"),
    (lambda: georeg.XTrace(7), "num_probes: got 7, expected an even number"),
    (lambda: georeg.Gram(4, "orthogonal"), "distribution: got 'orthogonal', expected one of gaussian"),
    (lambda: georeg.XTrace(side="left"), "side: got 'left', expected 'auto'"),
])  # fmt: skip
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_half_precision_and_an_empty_batch(name):
    moments = georeg.spectral_moments(lambda p: 1000 * p, torch.randn(2, 40).half(), estimator=STOCHASTIC[name](12))
    assert torch.isfinite(moments.trace_sq).all()
    torch.testing.assert_close(moments.trace, torch.full_like(moments.trace, 4e7), rtol=1e-2, atol=0)
    empty = georeg.spectral_moments(lambda p: 2 * p, torch.zeros(0, 40), estimator=STOCHASTIC[name](12))
    assert empty.trace.shape == empty.trace_sq.shape == (0,)


class Biased(georeg.Hutchinson):
    def __call__(self, lin, domain, codomain, generator=None):
        m = super().__call__(lin, domain, codomain, generator)
        return georeg.SpectralMoments(
            0.9 * m.trace + 0.1 * m.trace.detach(),
            m.trace_sq,
            m.rank,
            m.trace_stderr / 2,
            m.trace_sq_stderr,
            m.num_products + 1,
        )


@pytest.mark.parametrize(("law", "message"), [
    ("values_and_gradients_are_unbiased", "gradient"),
    ("reported_error_covers_the_truth", "covers"),
    ("products_are_counted", "counts 17 products and took 16"),
])  # fmt: skip
def test_the_contract_finds_what_is_broken(law, message):
    suite = type("Broken", (EstimatorContract,), {"estimator": Biased})()
    with pytest.raises(AssertionError, match=message):
        getattr(suite, f"test_{law}")()


def test_auto_spends_at_most_its_budget_and_follows_the_dimension():
    f, x = network(12, 40), torch.randn(2, 12, dtype=torch.float64)
    for budget, side, kind, spent in (
        (2, "auto", georeg.Hutchinson, 2),
        (11, "auto", georeg.Hutchinson, 10),
        (12, "auto", georeg.Exact, 12),
        (19, "codomain", georeg.XTrace, 16),
        (40, "codomain", georeg.Exact, 40),
    ):
        estimator = georeg.Auto(budget, side)
        assert isinstance(estimator.choose(40 if side == "codomain" else 12), kind)
        assert georeg.spectral_moments(f, x, estimator=estimator).num_products == spent <= budget


def test_estimators_by_name():
    assert isinstance(georeg.IsometryLoss(estimator="auto").estimator, georeg.Auto)
    assert isinstance(georeg.VolumeLoss(estimator="exact").estimator, georeg.Exact)
    with pytest.raises(ValueError, match="estimator: got 'hutch', expected one of auto, exact"):
        georeg.IsometryLoss(estimator="hutch")
    with pytest.raises(TypeError, match="estimator: got <class"):
        georeg.IsometryLoss(estimator=georeg.Exact)


def test_a_large_sphere_needs_no_matrix_of_its_frame():
    """That would be 20,000 × 19,999 numbers."""
    x = torch.randn(1, 20_000)
    moments = georeg.spectral_moments(lambda p: 2 * p, x, domain=georeg.Sphere(), estimator=georeg.XTrace(4, side="domain"))
    torch.testing.assert_close(moments.trace, torch.full_like(moments.trace, 4 * 19_999), rtol=1e-5, atol=0)


WHITENED = {name: manifold for name, (manifold, _) in MANIFOLDS.items()} | {
    "product": georeg.Product([georeg.Sphere(), georeg.CustomMetric(lambda y: 1 + y**2)], sizes=[3, 2]),
    "pullback": georeg.PullbackMetric(lambda y: torch.cat([y.sin(), y], -1)),
}


@pytest.mark.parametrize("side", ["domain", "codomain"])
@pytest.mark.parametrize("name", WHITENED)
def test_the_whitened_operator_has_the_moments_of_r(name, side):
    """All of its columns against Exact, which factorises no metric: values and gradients."""
    f, x = network(5, 5), torch.randn(3, 5, dtype=torch.float64)
    ratios = []
    for estimator in (georeg.XTrace(40, side=side), georeg.Exact()):
        m = georeg.spectral_moments(f, x, domain=WHITENED[name], codomain=WHITENED[name], estimator=estimator)
        ratios.append((m.trace_sq / m.trace**2).sum())
    torch.testing.assert_close(*ratios, rtol=1e-10, atol=0)
    torch.testing.assert_close(*(gradients(r, f.parameters()) for r in ratios), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_under_torch_func_and_without_a_graph(name):
    f, x, estimator = network(9, 9), torch.randn(2, 9, dtype=torch.float64), STOCHASTIC[name](6)

    def loss(parameters):
        m = georeg.spectral_moments(
            lambda p: torch.func.functional_call(f, parameters, (p,)), x, estimator=estimator, generator=seeded()
        )
        return m.trace_sq.sum() / m.trace.sum() ** 2

    functional = torch.func.grad(loss)({k: v.detach() for k, v in f.named_parameters()})
    plain = loss(dict(f.named_parameters()))
    ours = torch.cat([g.flatten() for g in functional.values()])
    torch.testing.assert_close(ours, gradients(plain, f.parameters()), rtol=1e-8, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(loss(dict(f.named_parameters())), plain.detach(), rtol=1e-10, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(loss(dict(f.named_parameters())), plain.detach(), rtol=1e-10, atol=0)


def test_the_objective_may_run_on_the_meta_device():
    x = torch.zeros(2, 40, device="meta")
    for estimator in [*(make(12) for make in STOCHASTIC.values()), georeg.Auto(20)]:
        assert georeg.spectral_moments(lambda p: 2 * p, x, estimator=estimator).trace_sq.is_meta

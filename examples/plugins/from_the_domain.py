"""An estimator of one's own in one file: Girard's and Hutchinson's, with probes on the domain."""

import georeg


@georeg.register("estimator", "from-the-domain")
class FromTheDomain(georeg.Estimator):
    """τ₁ = E ‖Jv‖², τ₂ = E ‖JᵀHJv‖², v ~ (0, G⁻¹)."""

    def __init__(self, num_probes=4):
        self.num_probes = num_probes

    def __call__(self, lin, domain, codomain, generator=None):
        k, pushed = self.num_probes, lin.jvp(domain.random_tangent(self.num_probes, generator))
        pulled = lin.vjp(codomain.flat(pushed))
        t1 = (pushed * codomain.flat(pushed)).flatten(2).sum(2)
        t2 = (pulled * domain.sharp(pulled)).flatten(2).sum(2)
        errors = (t.detach().std(0) / k**0.5 if k > 1 else None for t in (t1, t2))
        return georeg.SpectralMoments(t1.mean(0), t2.mean(0), min(domain.dim, codomain.dim), *errors, num_products=2 * k)

"""Edits of h: hooks, the asymmetric process, contents; directions on disk."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from georeg_diffusion import Bundle, Denoiser, HSpace
from georeg_diffusion._compat import diffusers
from georeg_diffusion.editing.asymmetric import asymmetric_ddim, x0_shares
from georeg_diffusion.editing.directions import Directions, DirectionsInfo, load_directions, save_directions
from georeg_diffusion.editing.h_edit import add_direction, inject_content, record_h, sample_with_h
from georeg_diffusion.errors import RunError
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from tests.georeg_diffusion.networks import NETWORKS, conditioning_of, latents
from tests.georeg_diffusion.test_h_space import hooks_of

SCHEDULERS = {
    "epsilon": diffusers.DDPMScheduler(),
    "sample": diffusers.DDPMScheduler(prediction_type="sample"),
    "v": diffusers.DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "stays": diffusers.DDIMScheduler(set_alpha_to_one=False),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.fixture
def denoiser(unet, scheduler):
    return Denoiser(Bundle(unet, scheduler))


@pytest.fixture
def noise():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_injection_in_every_family(name):
    """What lies behind h sees the edited h, and nothing else does."""
    torch.manual_seed(0)
    network, (x, t) = NETWORKS[name](), latents(2)
    bundle = Bundle(network, diffusers.DDPMScheduler())
    denoiser = Denoiser(bundle, conditioning_of(name, 2))
    space, plain = HSpace(network), denoiser(x, t)
    h = space.encode(x, t, **denoiser.conditioning(2))
    seen = []
    with space.inject(lambda h: seen.append(h) or h):
        assert torch.equal(denoiser(x, t), plain)
    assert torch.equal(seen[0], h)
    with space.inject(lambda h: h + 0 * torch.randn_like(h)):
        assert torch.equal(denoiser(x, t), plain)
    with space.inject(lambda h: h.flip(0)):  # the other sample's h
        swapped = denoiser(x, t)
    assert not torch.equal(swapped, plain)
    with space.inject(lambda inner: h):
        assert torch.equal(denoiser(x, t), plain)
    assert torch.equal(denoiser(x, t), plain)
    assert hooks_of(network) == 0


def test_hooks_leave_no_trace_after_exceptions(denoiser, noise):
    network = denoiser.bundle.network
    steps = ddim_steps(denoiser.bundle.scheduler, 3)
    for bad, error in (
        (lambda h, t: 1 / 0, ZeroDivisionError),
        (lambda h, t: h[:, :1], ValueError),
        (lambda h, t: None, ValueError),
    ):
        with pytest.raises(error, match="division|edit: returned"):
            sample_with_h(denoiser, steps, noise, bad)
    with pytest.raises(RuntimeError, match="size|expected|shape"):
        record_h(denoiser, steps, noise[:, :, :3, :3].expand(-1, 5, -1, -1))
    with pytest.raises(KeyboardInterrupt), HSpace(network).inject(lambda h: h + 1):
        raise KeyboardInterrupt
    assert hooks_of(network) == 0
    torch.testing.assert_close(ddim(denoiser, steps, noise), ddim(denoiser, steps, noise), rtol=0, atol=0)


def test_zero_strength_is_plain_sampling_bit_by_bit(denoiser, noise):
    steps = ddim_steps(denoiser.bundle.scheduler, 5)
    plain, content = record_h(denoiser, steps, noise.flip(0))
    assert torch.equal(plain, ddim(denoiser, steps, noise.flip(0)))
    direction = torch.randn(1, 16, 4, 4)
    for edit in (add_direction(direction, 0.0), add_direction(direction.expand(3, -1, -1, -1), torch.zeros(3))):
        for asymmetric in (True, False):
            found = sample_with_h(denoiser, steps, noise, edit, asymmetric=asymmetric)
            assert torch.equal(found, ddim(denoiser, steps, noise))
    assert torch.equal(sample_with_h(denoiser, steps, noise, inject_content(content, 0.0)), ddim(denoiser, steps, noise))
    one = inject_content(content, 1.5)
    assert torch.equal(sample_with_h(denoiser, steps, noise, one, interval=(2000, 3000)), ddim(denoiser, steps, noise))
    assert not torch.allclose(sample_with_h(denoiser, steps, noise, one), ddim(denoiser, steps, noise))
    half = sample_with_h(denoiser, steps, noise, one, interval=(500, 1000))
    assert not torch.allclose(half, sample_with_h(denoiser, steps, noise, one))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_asymmetric_process_is_its_formula(name):
    """x′ = a′ x̂₀(ε̃) + s′ ε̂, each term derived here from the prediction by hand, in float64."""
    scheduler = SCHEDULERS[name]
    steps = ddim_steps(scheduler, 6)
    ts = [float(t) for t in steps.timesteps]

    def pair(t):
        if name == "flow":
            return 1 - t / 1000, t / 1000
        bar = float(grid.alphas_cumprod.double()[int(t)])
        return math.sqrt(bar), math.sqrt(1 - bar)

    grid = diffusers.DDIMScheduler.from_config(scheduler.config) if name != "flow" else None
    last = pair(0) if name == "stays" else (1.0, 0.0)
    pairs = [pair(t) for t in ts] + [last]
    x = torch.tensor([[0.7, -1.3]], dtype=torch.float64)
    found = asymmetric_ddim(
        lambda x, t: 0.3 * x + 1, lambda x, t: 0.1 * x - 2, steps, scheduler, x, interval=(ts[-2], ts[1])
    )
    for i, t in enumerate(ts):
        (a, s), (a2, s2) = pairs[i], pairs[i + 1]
        p, edited = 0.3 * x + 1, 0.1 * x - 2
        if not ts[-2] <= t <= ts[1]:
            edited = p
        if name in ("epsilon", "stays"):
            clean, noise = (x - s * edited) / a, p
        elif name == "sample":
            clean, noise = edited, (x - a * p) / s
        elif name == "v":
            clean, noise = a * x - s * edited, a * p + s * x
        else:
            clean, noise = x - s * edited, x + (1 - s) * p
        x = a2 * clean + s2 * noise
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-9)  # the table of ᾱ is float32's
    assert len(x0_shares(scheduler, steps)) == 6


def test_the_symmetric_process_takes_the_edit_for_both_terms(scheduler):
    steps, x = ddim_steps(scheduler, 4), torch.ones(1, 1)
    both = asymmetric_ddim(lambda x, t: x, lambda x, t: 2 * x, steps, scheduler, x, asymmetric=False)
    torch.testing.assert_close(both, ddim(lambda x, t: 2 * x, steps, x))
    late = asymmetric_ddim(lambda x, t: x, lambda x, t: 2 * x, steps, scheduler, x, asymmetric=False, start=3)
    torch.testing.assert_close(late, ddim(lambda x, t: 2 * x, steps, x, start=3))
    with pytest.raises(ValueError, match="start"):
        asymmetric_ddim(lambda x, t: x, lambda x, t: x, steps, scheduler, x, start=5)
    with pytest.raises(ValueError, match="interval"):
        asymmetric_ddim(lambda x, t: x, lambda x, t: x, steps, scheduler, x, interval=(5, 4))


def test_the_edit_is_h_plus_the_content_at_each_step(denoiser, noise):
    """Against a loop of one's own that replaces h by hand, one step asymmetric."""
    scheduler, network = denoiser.bundle.scheduler, denoiser.bundle.network
    steps = ddim_steps(scheduler, 3)
    _, content = record_h(denoiser, steps, noise.flip(0))
    assert list(content) == [float(t) for t in steps.timesteps]
    torch.testing.assert_close(content[666.0], HSpace(network).encode(noise.flip(0), 666))
    t = steps.timesteps[0]
    a, s = (scheduler.alphas_cumprod.double()[int(t)] ** 0.5, (1 - scheduler.alphas_cumprod.double()[int(t)]) ** 0.5)
    bar = scheduler.alphas_cumprod.double()[int(steps.timesteps[1])]
    h = HSpace(network).encode(noise, t)
    handle = network.mid_block.register_forward_hook(lambda m, i, o: h + 1.5 * content[666.0])
    edited = network(noise, t).sample.double()
    handle.remove()
    expected = bar.sqrt() * (noise - s * edited) / a + (1 - bar).sqrt() * network(noise, t).sample.double()
    rest = ddim(denoiser, steps, expected.float(), start=1)
    found = sample_with_h(denoiser, steps, noise, inject_content(content), interval=(600, 999))
    torch.testing.assert_close(found, rest, rtol=1e-4, atol=1e-4)


def test_a_direction_moves_h_by_its_share(noise):
    h = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(1))
    d = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(2))
    found = add_direction(d, torch.tensor([0.5, -1.0]))(h, 3.0)  # both branches of guidance
    for row in range(4):
        unit = d[row % 2] / d[row % 2].norm()
        torch.testing.assert_close(found[row], h[row] + [0.5, -1.0][row % 2] * h[row].norm() * unit)
    with pytest.raises(ValueError, match="directions"):
        add_direction(0 * d, 1.0)
    with pytest.raises(ValueError, match="directions: got 2 rows for 3"):
        add_direction(d, 1.0)(h[:3], 3.0)
    with pytest.raises(ValueError, match="content: has no h"):
        inject_content({5.0: h})(h, 4.0)


def test_guidance_edits_both_branches_and_zero_stays_plain():
    torch.manual_seed(0)
    network = NETWORKS["dit"]()
    bundle = Bundle(network, diffusers.DDIMScheduler())
    denoiser = Denoiser(bundle, bundle.conditioning(class_labels=[1, 2]), guidance_scale=3.0)
    x, _ = latents(2)
    steps = ddim_steps(bundle.scheduler, 2)
    plain, content = record_h(denoiser, steps, x)
    assert len(content[500.0]) == 4
    assert torch.equal(plain, ddim(denoiser, steps, x))
    d = torch.randn_like(content[500.0][:2])
    assert torch.equal(sample_with_h(denoiser, steps, x, add_direction(d, 0.0)), plain)
    both = sample_with_h(denoiser, steps, x, add_direction(d, torch.tensor([0.5, 0.3])))
    alone = sample_with_h(denoiser.rows([1]), steps, x[1:], add_direction(d[1:], 0.3))
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)


def test_half_precision_keeps_its_dtype(unet, scheduler, noise):
    unet.to(torch.bfloat16)
    denoiser = Denoiser(Bundle(unet, scheduler))
    steps = ddim_steps(scheduler, 2)
    found = sample_with_h(denoiser, steps, noise, add_direction(torch.randn(1, 16, 4, 4), 0.5))
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())


# Files.

SHAPES = {"x": (1, 8, 8), "h": (16, 4, 4)}


def test_directions_come_back(tmp_path):
    file = tmp_path / "d.safetensors"
    info = DirectionsInfo("h", ("a", "b"), "local-basis", "3f", 980.0, ("seed 0",))
    directions = Directions(torch.randn(2, 1, 16, 4, 4), info, torch.rand(2, 1))
    save_directions(file, directions)
    again = load_directions(file, SHAPES)
    assert again.info == info
    assert torch.equal(again.vectors, directions.vectors)
    assert torch.equal(again.values, directions.values)
    save_directions(file, Directions(directions.vectors.half(), info))
    assert load_directions(file, SHAPES).values is None


@pytest.mark.parametrize(
    ("shape", "space", "expected"),
    [
        ((1, 8, 8), "x", (1, 1, 1, 8, 8)),
        ((5, 1, 8, 8), "x", (5, 1, 1, 8, 8)),
        ((5, 3, 16, 4, 4), "h", (5, 3, 16, 4, 4)),
        ((2, 16, 4, 4), "h", (2, 1, 16, 4, 4)),
    ],
)
def test_tensors_of_other_programs(tmp_path, shape, space, expected):
    save_file({"anything": torch.randn(shape)}, tmp_path / "d.safetensors")
    found = load_directions(tmp_path / "d.safetensors", SHAPES)
    assert (found.info.space, tuple(found.vectors.shape)) == (space, expected)
    assert len(found.info.names) == expected[0]


def test_bad_files(tmp_path):
    file = tmp_path / "d.safetensors"
    with pytest.raises(RunError, match="does not exist"):
        load_directions(file, SHAPES)
    with pytest.raises(RunError, match="is not a file"):
        load_directions(tmp_path, SHAPES)
    file.write_bytes(b"\x00" * 40)
    with pytest.raises(RunError, match="cannot read"):
        load_directions(file, SHAPES)
    ones = torch.ones(1, 1, 8, 8)
    for tensors, metadata, message in [
        ({"a": ones, "b": 2 * ones}, None, "holds the tensors a, b"),
        ({"a": torch.ones(3, 3)}, None, "expected directions of this model"),
        ({"a": ones.long()}, None, "int64"),
        ({"a": torch.zeros(0, 1, 8, 8)}, None, "expected directions"),
        ({"a": ones * float("nan")}, None, "not finite"),
        ({"a": torch.cat([ones, 0 * ones])}, None, "zero"),
        ({"a": ones}, {"georeg": "{"}, "cannot read"),
        ({"a": ones}, {"georeg": json.dumps({"space": "y", "names": []})}, "expected directions"),
        ({"a": ones}, {"georeg": json.dumps({"space": "h", "names": []})}, "expected directions"),
        ({"a": ones}, {"georeg": json.dumps({"names": 3})}, "cannot read"),
    ]:
        save_file(tensors, file, metadata)
        with pytest.raises(RunError, match=message):
            load_directions(file, SHAPES)

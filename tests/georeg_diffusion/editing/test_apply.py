"""Samples edited from end to end as tensors, batched any way, with conditions of their own."""

import pytest
import torch

from georeg_diffusion import Bundle
from georeg_diffusion._compat import diffusers
from georeg_diffusion.editing import find
from georeg_diffusion.editing.apply import edit_h, edit_x, images_of, inject, shot_latents
from georeg_diffusion.editing.directions import save_directions
from georeg_diffusion.editing.encoder import encoder_at, single_precision
from georeg_diffusion.editing.shooting import shoot
from georeg_diffusion.editing.sources import subjects_of
from georeg_diffusion.editing.sphere import move
from georeg_diffusion.errors import UsageError
from georeg_diffusion.sampling.ddim import ddim_sample
from tests.georeg_diffusion.networks import NETWORKS

H = (16, 4, 4)


def subjects(unet, scheduler, texts=("3", "7", "1"), batch_size=16):
    return subjects_of(Bundle(unet, scheduler), list(texts), num_steps=4, batch_size=batch_size)[0]


def test_the_way_to_an_image_is_ddims(unet, scheduler):
    s = subjects(unet, scheduler)
    plain = ddim_sample(s.denoiser, s.latents, 4)
    torch.testing.assert_close(s.images(), plain)
    torch.testing.assert_close(s.until(2).images(), plain)
    assert s.until(2).timestep == 250
    assert [s.nearest_step(t) for t in (1000, 740, 400, 0)] == [0, 0, 1, 3]
    assert s.until(2).nearest_step(999) == 2
    with pytest.raises(ValueError, match="step"):
        s.until(4)
    assert s.interval() == (500, 750)
    assert s.interval(0, 300) == (0, 300)
    with pytest.raises(ValueError, match="no step lies"):
        s.interval(800, 900)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_edits_in_x_are_moved_samples(unet, scheduler, batch_size):
    s = subjects(unet, scheduler, batch_size=batch_size).until(1)
    v = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 2.0]])
    found = edit_x(s, v, weights, 0.3)
    assert found.shape == (3, 3, 1, 8, 8)
    torch.testing.assert_close(found[0], s.images(), rtol=0, atol=1e-5)
    moved = move(s.latents, v, weights, 0.3)
    for i in range(3):
        alone = ddim_sample(s.denoiser, moved[i], 4, start=1)
        torch.testing.assert_close(found[i], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 16])
def test_edits_in_h_do_not_depend_on_the_batch_and_zero_is_plain(unet, scheduler, batch_size):
    s = subjects(unet, scheduler, batch_size=batch_size)
    v = torch.randn(2, 3, *H, generator=torch.Generator().manual_seed(0))
    found = edit_h(s, v, [[0.0, 0.0], [1.0, 0.0], [1.0, -1.0]], 0.8, interval=s.interval())
    torch.testing.assert_close(found[0], s.images(), rtol=0, atol=1e-5)
    alone = edit_h(s.rows([2]), v[:, 2:], [[1.0, -1.0]], 0.8, interval=s.interval())
    torch.testing.assert_close(found[2, 2], alone[0, 0], rtol=0, atol=1e-4)
    assert float((found[1] - found[0]).abs().max()) > 1e-3
    assert torch.equal(edit_h(s, v, [[0.0, 0.0]], 0.8, interval=s.interval())[0], s.images())
    for vectors, weights in ((v, [[1.0]]), (v[:, :2], [[1.0, 1.0]]), (0 * v, [[1.0, 1.0]])):
        with pytest.raises(ValueError, match="vectors"):
            edit_h(s, vectors, weights, 0.8, interval=s.interval())


def test_injection_lays_contents_along_samples():
    """With guidance and a class of each sample's own, against one pair at a time."""
    torch.manual_seed(0)
    bundle = Bundle(NETWORKS["dit"](), diffusers.DDIMScheduler())
    options = {"num_steps": 3, "guidance_scale": 2.0, "batch_size": 2}
    s, _ = subjects_of(bundle, ["0", "1", "2"], **options)
    c, _ = subjects_of(bundle, ["8", "9"], **options)
    found = inject(s, c, [0.0, 1.5], interval=s.interval())
    assert found.shape == (2, 2, 3, 2, 8, 8)
    torch.testing.assert_close(found[0, 1], s.images(), rtol=0, atol=1e-5)
    alone = inject(s.rows([2]), c.rows([1]), [1.5], interval=s.interval())
    torch.testing.assert_close(found[1, 1, 2], alone[0, 0, 0], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="contents"):
        inject(s, c.until(1), [1.0], interval=s.interval())


def test_shooting_goes_both_ways_from_the_sample(unet, scheduler):
    s = subjects(unet, scheduler, batch_size=2)
    v = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = shot_latents(s, v, [1.0, 0.0, -0.5], 0.2, steps_per_unit=2, rank=4)
    assert torch.equal(found[1], s.latents)
    encode = encoder_at(s.rows([1]).denoiser, s.timestep)
    path = shoot(encode, s.latents[1:2], v, 0.1, 2, rank=4)
    torch.testing.assert_close(found[0, 1:2], path[-1], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[2], move(s.latents, v[None], [-0.5], 0.2))
    assert images_of(s, found).shape == (3, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="gammas"):
        shot_latents(s, v, [0.3], 0.2)


def test_directions_of_samples_and_of_all(unet, scheduler, tmp_path):
    s = subjects(unet, scheduler, batch_size=2)
    basis = find.local_bases(s, 2)
    for space, shape in (("x", (1, 8, 8)), ("h", H)):
        local = find.local_directions(s, basis, space)
        assert local.vectors.shape == (2, 3, *shape)
        everyone, found = find.global_directions(s, 2, space)
        assert everyone.vectors.shape == (2, 1, *shape)
        assert found.converged
        flat = everyone.vectors.flatten(2)[:, 0]
        torch.testing.assert_close(flat @ flat.T, torch.eye(2), rtol=0, atol=1e-5)
        find_file = tmp_path / f"{space}.safetensors"
        save_directions(find_file, local)
        assert torch.equal(find.saved_directions(s, find_file).vectors, local.vectors)
        with pytest.raises(ValueError, match="of 3 samples"):
            find.saved_directions(s.rows([0, 1]), find_file)


@pytest.mark.parametrize("space", ["x", "h"])
def test_a_label_that_latents_decide_is_found(unet, scheduler, space):
    """The label is whether the first step's latent has a bright left half; images carry nothing."""
    s = subjects(unet, scheduler, [str(i) for i in range(150)])
    half = torch.zeros(1, 8, 8)
    half[..., :4] = 1 / 32**0.5
    labels = ((s.latents * half).flatten(1).sum(1) > 0)[:, None]
    directions, accuracy = find.label_directions(s, lambda images: labels, ["left"], space, method="means")
    assert directions.info.names == ("left",)
    assert accuracy[0] > 0.6
    if space == "x":
        assert float((directions.vectors[0, 0] * half).sum()) > 0.6
    with pytest.raises(ValueError, match="left: labels: 150 of 150"):
        find.label_directions(s, lambda images: labels | True, ["left"], space)


def test_half_precision_networks_are_widened_for_the_jacobian_alone(unet, scheduler):
    expected = find.local_bases(subjects(unet, scheduler, ["0"]), 1)
    weights = {name: p.clone() for name, p in unet.bfloat16().named_parameters()}
    found = find.local_bases(subjects(unet, scheduler, ["0"]), 1)
    torch.testing.assert_close(found.values, expected.values, rtol=0.02, atol=0)
    assert all(p.dtype == torch.bfloat16 and torch.equal(p, weights[name]) for name, p in unet.named_parameters())
    with pytest.raises(ZeroDivisionError), single_precision(unet):
        raise ZeroDivisionError
    assert all(p.dtype == torch.bfloat16 for p in unet.parameters())


def test_each_sample_draws_its_class_from_its_own_seed():
    torch.manual_seed(0)
    bundle = Bundle(NETWORKS["adm"](), diffusers.DDIMScheduler())
    both, _ = subjects_of(bundle, ["5", "9"], num_steps=3)
    alone, _ = subjects_of(bundle, ["9"], num_steps=3, seed=4)
    torch.testing.assert_close(both.images()[1:], alone.images(), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="num-inference-steps"):
        subjects_of(bundle, ["0"], num_steps=5000)
    with pytest.raises(UsageError, match="what: got -1"):
        subjects_of(bundle, ["-1"], num_steps=3, option="what")

"""Grad-CAM against a network whose maps can be worked out by hand, and against its definition."""

import pytest
import torch
import torchvision
from resbook import resnet18
from resbook.gradcam import grad_cam, heat_inside, peak_inside
from torch import nn
from torch.nn import functional as F


def pooled_classifier():
    """Maps, their global means, and a linear layer: then the gradient is the linear layer's weight, everywhere."""
    conv = nn.Conv2d(3, 4, 3, padding=1)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_over_global_means_it_is_the_class_activation_map():
    model, images = pooled_classifier(), torch.randn(3, 3, 6, 5)
    classes = torch.tensor([0, 1, 1])
    maps = model[0](images)
    expected = torch.einsum("nc,nchw->nhw", model[3].weight[classes], maps).relu() / 30  # the mean over 6 x 5
    assert torch.allclose(grad_cam(model, images, classes, "0"), expected, atol=1e-6)


def test_it_is_the_definition_image_by_image():
    model, images, classes = resnet18(num_classes=6).eval(), torch.randn(2, 3, 48, 48), torch.tensor([4, 1])
    maps = grad_cam(model, images, classes, "layer2")
    kept = {}
    hook = model.layer2.register_forward_hook(lambda module, inputs, output: kept.update(maps=output))
    for i in range(2):
        logit = model(images[i : i + 1])[0, classes[i]]
        alpha = torch.autograd.grad(logit, kept["maps"])[0].mean((2, 3))
        expected = F.relu((alpha[..., None, None] * kept["maps"]).sum(1))
        assert torch.allclose(maps[i], expected[0], atol=1e-5)
    hook.remove()


@pytest.mark.parametrize("layer", ["bn1", "layer4.1.bn2"])
def test_a_layer_whose_output_is_overwritten_in_place_gets_the_same_map(layer):
    """Torchvision's networks do so, by ReLU and by the addition of the shortcut."""
    images, classes = torch.randn(2, 3, 64, 64), torch.tensor([3, 7])
    theirs, ours = torchvision.models.resnet18(), resnet18()
    ours.load_state_dict(theirs.state_dict())
    maps = grad_cam(theirs, images, classes, layer)
    assert maps.max() > 0 and torch.allclose(maps, grad_cam(ours, images, classes, layer), atol=1e-6)


def test_it_leaves_model_and_images_as_they_were():
    model, images = resnet18(num_classes=6), torch.randn(2, 3, 48, 48)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        maps = grad_cam(model, images, torch.tensor([0, 5]), "layer3")
    assert maps.shape == (2, 3, 3) and (maps >= 0).all() and not maps.requires_grad
    assert not images.requires_grad and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.layer3._forward_hooks


@pytest.mark.parametrize(
    ("layer", "message"),
    [("layer9", "must name a module"), ("layer1.0.relu", "ran 2 times"), ("fc", r"got \(1, 6\) from 'fc'")],
)
def test_a_layer_without_maps_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        grad_cam(resnet18(num_classes=6), torch.randn(1, 3, 48, 48), torch.tensor([0]), layer)


def test_even_heat_lies_on_a_mask_as_its_area_does():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = mask[1, 0, 0] = True
    inside, area = heat_inside(torch.ones(2, 4, 4), mask)
    assert area.tolist() == [16 / 64, 1 / 64] and torch.equal(inside, area)
    heat = torch.zeros(2, 4, 4)
    heat[0, 0, 0] = 3
    inside, _ = heat_inside(heat, mask)
    assert inside[0] == 1 and inside[1].isnan()


def test_a_peak_is_inside_where_its_position_has_any_of_the_mask():
    mask, heat = torch.zeros(3, 8, 8, dtype=torch.bool), torch.zeros(3, 4, 4)
    mask[:, 3, 2] = mask[:, 7, 7] = True  # in the positions (1, 1) and (3, 3)
    heat[0, 1, 1], heat[0, 0, 0], heat[1, 1, 2] = 2, 1, 1
    hit, chance = peak_inside(heat, mask)
    assert hit[:2].tolist() == [1, 0] and hit[2].isnan()
    assert chance.tolist() == [2 / 16] * 3


@pytest.mark.parametrize("measure", [heat_inside, peak_inside])
def test_a_mask_that_is_no_multiple_is_refused(measure):
    with pytest.raises(ValueError, match="mask must have multiples of heat's height and width, got 8x9 and 4x4"):
        measure(torch.ones(1, 4, 4), torch.zeros(1, 8, 9, dtype=torch.bool))

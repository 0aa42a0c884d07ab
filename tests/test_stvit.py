"""Tests of STViT alone: its super tokens, their gradients, and its classifier."""

from collections.abc import Callable

import pytest
import torch
from mmpretrain.registry import MODELS
from networks import NETWORKS
from reference import stvit
from synthetic import synthetic_image, synthetic_value
from torch import Tensor, nn

from mmhatnet.backbones.stvit import SuperTokenAttention
from mmhatnet.openmmlab import cls_head  # noqa: F401


@pytest.mark.parametrize('size', [(9, 14), (4, 3), (12, 8)])
def test_gradients_are_those_of_the_reference(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attn = SuperTokenAttention(12, num_heads=3, cell=4).double()
    reference = stvit.SuperTokenAttention(12, heads=3, cell=4).double()
    weights = {k: v[..., None, None] if v.ndim == 2 else v for k, v in attn.state_dict().items()}
    reference.stoken_refine.load_state_dict(weights)
    image = 2 * torch.randn(1, 12, *size, dtype=torch.float64)
    weight = torch.randn_like(image)

    def gradients(function: Callable, module: nn.Module) -> list[Tensor]:
        x = image.clone().requires_grad_()
        inputs = [x, *(p for p in module.parameters() if p.requires_grad)]
        out = function(x)
        found = torch.autograd.grad((out * weight).sum(), inputs)
        return [out, found[0], *(g.flatten(1) if g.ndim == 4 else g for g in found[1:])]

    def channels_last(x: Tensor) -> Tensor:
        return attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    results, expected = gradients(channels_last, attn), gradients(reference, reference)
    for result, value in zip(results, expected):
        torch.testing.assert_close(result, value, rtol=1e-9, atol=1e-11)
    reference.constant_association = False
    learned = gradients(reference, reference)
    torch.testing.assert_close(learned[0], expected[0])
    assert not torch.allclose(learned[1], expected[1], rtol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_association_is_float32_and_within_reach(dtype: torch.dtype) -> None:
    model = NETWORKS['stvit'].build().eval()
    seen = []
    for block in (*model.stages[0].blocks, *model.stages[1].blocks):
        block.attn.association.register_forward_hook(lambda *args: seen.append(args[2]))
    image = synthetic_image(1, 3, 61, 90)
    model(image)
    with torch.autocast('cpu', dtype):
        model(image)
    model.to(dtype)(image.to(dtype))
    assert {weights.dtype for weights in seen} == {torch.float32}
    blocks = len(seen) // 3
    # 16 x 23 positions in cells of 8 x 8, and 8 x 12 in those of 4 x 4.
    assert seen[0].shape == (1, 2, 3, 64, 9) and seen[blocks - 1].shape == (1, 2, 3, 16, 9)
    for weights in seen:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
def test_logits_of_a_published_classifier() -> None:
    network = NETWORKS['stvit']
    classifier = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmengine.STViT', arch='small', out_indices=(3,)),
            head=dict(type='ConvLinearClsHead', num_classes=1000, in_channels=512),
        )
    ).eval()
    weights = {
        f'head.{key}': synthetic_value(key.replace('fc.', 'head.'), tuple(value.shape))
        for key, value in classifier.head.state_dict().items()
    }
    weights |= {
        f'backbone.{k}': v for k, v in network.synthetic_weights(classifier.backbone).items()
    }
    result = classifier.load_state_dict(weights, strict=False)
    assert not result.missing_keys
    golden = network.golden['small/1x3x65x97/logits']
    logits = classifier(synthetic_image(1, 3, 65, 97)).numpy()
    assert abs(logits - golden).max() < 1e-4 * golden.std()


def test_heads_that_do_not_fit_are_named() -> None:
    network = NETWORKS['stvit']
    with pytest.raises(ValueError, match='embed_dims=16 cannot be divided by num_heads=3'):
        network.network(dict(network.small, num_heads=(1, 3, 2, 3)))

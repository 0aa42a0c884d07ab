"""What is STViT's alone: its super tokens, their gradients, and its classifier."""

import pytest
import torch
import torch.nn.functional as F
from drawn import drawn_image, drawn_value
from mmpretrain.registry import MODELS
from peers import PEERS
from torch import Tensor

from mmhatnet.backbones.stvit import SuperTokenAttention
from mmhatnet.openmmlab import cls_head  # noqa: F401


def literal(attn: SuperTokenAttention, x: Tensor, constant: bool = True) -> Tensor:
    """The network's page, position by position, with all zeros in place: (H, W, C) to the same."""
    size = attn.cell
    height, width, channels = x.shape
    h, w = -(-height // size), -(-width // size)
    x = F.pad(x, (0, 0, 0, w * size - width, 0, h * size - height))
    start = x.view(h, size, w, size, channels).mean(dim=(1, 3))
    y, x_of = torch.meshgrid(torch.arange(h * size), torch.arange(w * size), indexing='ij')
    down = torch.arange(h).view(h, 1, 1, 1) - y // size  # from a position's cell to every cell
    right = torch.arange(w).view(w, 1, 1) - x_of // size
    near = (down.abs() <= 1) & (right.abs() <= 1)
    logits = torch.einsum('yxc,hwc->hwyx', x, start) / channels**0.5
    exps = logits.exp() * near
    outside = 9 - near.sum(dim=(0, 1))  # neighbours that are no cells have the logit 0
    q = exps / (exps.sum(dim=(0, 1)) + outside)
    total = q.sum(dim=(2, 3))[..., None]
    if constant:
        q, total = q.detach(), total.detach()
    tokens = torch.einsum('hwyx,yxc->hwc', q, x) / (total + 1e-12)

    queries, keys, values = [], [], []
    head_dim = channels // attn.heads
    for part in attn.qkv(tokens.flatten(0, 1)).split(3 * head_dim, dim=1):
        for tensors, tensor in zip((queries, keys, values), part.split(head_dim, dim=1)):
            tensors.append(tensor)
    heads = [(a @ b.T / head_dim**0.5).softmax(dim=1) @ v for a, b, v in zip(queries, keys, values)]
    tokens = attn.proj(torch.cat(heads, dim=1)).view(h, w, channels)
    return torch.einsum('hwyx,hwc->yxc', q, tokens)[:height, :width]


@pytest.mark.parametrize('size', [(9, 14), (4, 3), (12, 8)])
def test_gradients_are_those_of_the_page(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    attn = SuperTokenAttention(12, heads=3, cell=4).double()
    x = (2 * torch.randn(1, *size, 12, dtype=torch.float64)).requires_grad_()
    inputs = [x, *attn.parameters()]
    expected, out, learned = literal(attn, x[0]), attn(x)[0], literal(attn, x[0], constant=False)
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    gradients, references, others = (
        torch.autograd.grad((result * weights).sum(), inputs) for result in (out, expected, learned)
    )
    for gradient, reference in zip(gradients, references):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(gradients[0], others[0], rtol=1e-2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_association_is_float32_and_within_reach(dtype: torch.dtype) -> None:
    model = PEERS['stvit'].build().eval()
    seen = []
    for block in (*model.stages[0].blocks, *model.stages[1].blocks):
        block.attn.association.register_forward_hook(lambda *args: seen.append(args[2]))
    image = drawn_image(1, 3, 61, 90)
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
    peer = PEERS['stvit']
    classifier = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='mmengine.STViT', arch='small', out_indices=(3,)),
            head=dict(type='ConvLinearClsHead', num_classes=1000, in_channels=512),
        )
    ).eval()
    weights = {
        f'head.{key}': drawn_value(key.replace('fc.', 'head.'), tuple(value.shape))
        for key, value in classifier.head.state_dict().items()
    }
    weights |= {f'backbone.{k}': v for k, v in peer.drawn(classifier.backbone).items()}
    result = classifier.load_state_dict(weights, strict=False)
    assert not result.missing_keys
    golden = peer.golden['small/1x3x65x97/logits']
    logits = classifier(drawn_image(1, 3, 65, 97)).numpy()
    assert abs(logits - golden).max() < 1e-4 * golden.std()


def test_heads_that_do_not_fit_are_named() -> None:
    peer = PEERS['stvit']
    with pytest.raises(ValueError, match='embed_dims=16 cannot be divided into 3 heads'):
        peer.network(dict(peer.small, heads=(1, 3, 2, 3)))

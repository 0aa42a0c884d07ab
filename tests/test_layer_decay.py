"""Layer-wise decay: each layer of the backbone has its learning rate, the head has the full one."""

import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmhatnet.openmmlab.layer_decay  # noqa: F401
from mmhatnet import HATNet


class Model(nn.Module):
    def __init__(self, **backbone) -> None:
        super().__init__()
        self.backbone = HATNet(arch='tiny', **backbone)
        self.head = nn.Linear(384, 2)


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('stem.conv1.weight', 0),
        ('stem.norm.bias', 0),
        ('stages.0.blocks.0.attn.qkv.weight', 1),
        ('stages.0.blocks.1.mlp.expand.weight', 2),
        ('stages.1.downsample.conv.weight', 2),
        ('stages.1.blocks.0.attn.proj.bias', 3),
        ('stages.2.blocks.5.mlp.norm.weight', 10),
        ('stages.3.downsample.norm.bias', 10),
        ('stages.3.blocks.2.mlp.project.weight', 13),
    ],
)
def test_layer_of_a_parameter(name: str, layer: int) -> None:
    model = Model()
    assert 'backbone.' + name in dict(model.named_parameters())
    assert model.backbone.get_layer_depth(name) == (layer, 15)
    assert model.backbone.get_layer_depth('backbone.' + name, 'backbone.') == (layer, 15)
    assert model.backbone.get_layer_depth('head.weight', 'backbone.') == (14, 15)


def test_every_layer_has_parameters_without_the_last_stage() -> None:
    backbone = HATNet(arch='tiny', out_indices=(1, 2))
    depths = {backbone.get_layer_depth(name) for name, _ in backbone.named_parameters()}
    assert depths == {(layer, 12) for layer in range(11)}


def test_learning_rates_and_weight_decay() -> None:
    model = Model(frozen_stages=1)
    optim_wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            paramwise_cfg=dict(
                layer_decay_rate=0.5, norm_decay_mult=0.0, custom_keys=dict(head=dict(lr_mult=3.0))
            ),
        ),
    )
    parameters = dict(model.named_parameters())
    groups = {
        next(name for name, other in parameters.items() if other is group['params'][0]): group
        for group in optim_wrapper.optimizer.param_groups
    }
    assert set(groups) == {name for name, value in parameters.items() if value.requires_grad}
    assert groups['backbone.stages.1.downsample.conv.weight']['lr'] == 0.5**12
    assert groups['backbone.stages.3.blocks.2.mlp.project.weight']['lr'] == 0.5
    assert groups['head.weight']['lr'] == 3.0
    assert groups['backbone.stages.3.blocks.2.mlp.norm.weight']['weight_decay'] == 0.0
    assert groups['backbone.stages.3.blocks.2.mlp.project.weight']['weight_decay'] == 0.05

"""Exported transformers detect what ``predict`` detects."""

from pathlib import Path

import pytest
import torch
from experiments import rest_slow
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from synthetic import synthetic_image
from torch import Tensor, nn

from mmhatnet import export
from mmhatnet.export import ExportError
from mmhatnet.export.detectors import Detections
from mmhatnet.export.writing import write_onnx

# Of these no stride divides the last ones. The transformers need at least 20 positions.
SIZES = [(1, 64, 96), (2, 61, 90), (3, 75, 203)]


def settings_of(channels: int) -> dict:
    attention = dict(embed_dims=channels, num_heads=2, num_levels=2)
    layer = dict(ffn_cfg=dict(embed_dims=channels, feedforward_channels=24))
    of_decoder = dict(self_attn_cfg=dict(embed_dims=channels, num_heads=2), **layer)
    return dict(
        type='DINO',
        num_queries=20,
        with_box_refine=True,
        as_two_stage=True,
        data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[120.0, 110, 100], std=[60.0, 50, 40], bgr_to_rgb=True
        ),
        backbone=dict(
            *[dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, num_stages=1)],
            strides=(1,),
            dilations=(1,),
            out_indices=(0,),
        ),
        neck=dict(
            type='ChannelMapper',
            in_channels=[8],
            kernel_size=1,
            out_channels=channels,
            norm_cfg=dict(type='GN', num_groups=2),
            num_outs=2,
        ),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, **layer)),
        decoder=dict(
            num_layers=1,
            return_intermediate=True,
            layer_cfg=dict(cross_attn_cfg=attention, **of_decoder),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=channels // 2, normalize=True, temperature=20),
        bbox_head=dict(
            type='DINOHead',
            embed_dims=channels,
            num_classes=5,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        ),
        dn_cfg=dict(group_cfg=dict(dynamic=True, num_dn_queries=10)),
        test_cfg=dict(max_per_img=30),
    )


def detector(name: str = 'dino', **changes: object) -> nn.Module:
    """Builds a small transformer with weights that tell its queries apart."""
    two_stages = name == 'deformable_detr_two_stages'
    # mmdetection encodes the boxes of two stages in 512 channels, twice those of queries.
    settings = settings_of(256 if two_stages else 16) | changes
    if name != 'dino':
        settings |= dict(type='DeformableDETR', with_box_refine=two_stages, as_two_stage=two_stages)
        settings |= dict(bbox_head=settings['bbox_head'] | dict(type='DeformableDETRHead'))
        del settings['dn_cfg']
    __import__('mmdet.models')
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(ConfigDict(settings)).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            weight.data += 0.1 * torch.randn_like(weight)
    return model


def pixels(batch: int, height: int, width: int) -> Tensor:
    return (60 * synthetic_image(batch, 3, height, width) + 128).clamp(0, 255).round()


def assert_as_predicted(outputs: tuple[Tensor, ...], model: nn.Module, images: Tensor) -> None:
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[2:])
    samples = [
        DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        for _ in images
    ]
    bgr = [image.flip(0) for image in images]
    predicted = model.test_step(dict(inputs=bgr, data_samples=samples))
    boxes, scores, labels, image_indices = outputs
    assert len(labels) == sum(len(sample.pred_instances) for sample in predicted)
    for index, sample in enumerate(predicted):
        mine, expected = image_indices == index, sample.pred_instances
        assert torch.equal(labels[mine], expected.labels)
        torch.testing.assert_close(scores[mine], expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(boxes[mine], expected.bboxes, rtol=0, atol=2e-3)


KINDS = ['dino', 'deformable_detr', 'deformable_detr_two_stages']


@pytest.mark.parametrize('name', KINDS)
@torch.no_grad()
def test_module_detects_what_is_predicted(name: str) -> None:
    model = detector(name)
    module = Detections(model).eval()
    for size in SIZES:
        images = pixels(*size)
        assert_as_predicted(module(images), model, images)


# Exporters take seconds for each layer of a transformer.
@pytest.mark.parametrize('name', rest_slow(KINDS))
@torch.no_grad()
def test_onnx_file_detects_what_is_predicted(name: str, tmp_path: Path) -> None:
    model, file = detector(name), tmp_path / 'detector.onnx'
    module = Detections(model).eval()
    write_onnx(module, pixels(2, 64, 128), module.outputs, {}, file)
    run = dict(export.runners(file))['onnxruntime']
    for size in SIZES:
        images = pixels(*size)
        assert_as_predicted(run(images), model, images)


def test_a_transformer_with_other_steps_is_refused() -> None:
    from mmdet.models import DINO

    class Other(DINO):
        def pre_decoder(self, *args: object, **kwargs: object) -> None: ...

    model = detector()
    model.__class__ = Other
    with pytest.raises(ExportError, match='Other overrides pre_decoder of DINO'):
        Detections(model)


def test_padding_that_needs_masks_is_refused() -> None:
    model = detector(data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32))
    with pytest.raises(ExportError, match='DINO masks the padding that pad_size_divisor asks for'):
        Detections(model)

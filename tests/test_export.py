"""Exported, traced and compiled models are right at sizes that were not traced."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from experiments import rest_slow
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from predicting import random_job
from synthetic import standard_normal, synthetic_image
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mmhatnet import HATNet, export
from mmhatnet.backbones import hatnet
from mmhatnet.backbones.layers import adaptive_means
from mmhatnet.export import ExportError, export_model

SMALL = dict(embed_dims=(16, 16, 32, 32), head_dim=16, depths=(1, 2, 1, 1))
# One stage with windows and one without. Few blocks, because exporters take seconds for each.
TWO = dict(
    embed_dims=(16, 32),
    head_dim=16,
    depths=(1, 1),
    kernel_sizes=(3, 3),
    mlp_ratios=(4, 4),
    windows=(4, None),
    poolings=(2, None),
)
ONE = {key: value if key == 'head_dim' else value[:1] for key, value in TWO.items()}
# Windows and pooling cells divide two of these sizes evenly.
SIZES = [(2, 64, 96), (1, 64, 64), (1, 61, 90), (2, 75, 203), (3, 33, 58)]


def synthetic_model(arch: dict, dtype: torch.dtype = torch.float32) -> HATNet:
    """Builds a model with reproducible weights, whose attention is not uniform."""
    model = HATNet(arch, out_indices=range(len(arch['depths'])))
    for name, weight in model.named_parameters():
        scale = weight[0].numel() ** 0.5 if weight.ndim > 1 else 10
        center = float(name.endswith('norm.weight'))
        weight.data = center + standard_normal(name, tuple(weight.shape)).float() / scale
    return model.to(dtype).eval()


def build(scope: str, settings: dict) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        registry = __import__(f'{scope}.registry', fromlist=['MODELS']).MODELS
        __import__(f'{scope}.models')
        return registry.build(settings).eval()


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-4 * expected.std()


def rgb_images(batch: int, height: int, width: int) -> Tensor:
    pixels = 60 * synthetic_image(batch, 3, height, width) + 128
    return pixels.clamp(0, 255).round()


def preprocessed(model: nn.Module, rgb: Tensor) -> Tensor:
    """Preprocesses images in BGR order, as OpenCV reads them."""
    bgr = [image.flip(0).byte() for image in rgb]
    return model.data_preprocessor(dict(inputs=bgr))['inputs']


@pytest.mark.parametrize('size', [(61, 90), (64, 96), (224, 113), (1, 40)], ids=str)
def test_padded_and_cropped_windows_give_the_same(size: tuple[int, int], monkeypatch) -> None:
    results = []
    for known in (True, False):
        monkeypatch.setattr(hatnet, 'remainders_are_known', lambda *args, known=known: known)
        model, image = synthetic_model(SMALL, torch.float64), synthetic_image(2, 3, *size).double()
        features = model(image.requires_grad_())
        loss = sum((feature * feature.detach().cos()).mean() for feature in features)
        gradients = torch.autograd.grad(loss, [image, *model.parameters()])
        results.append([*features, *gradients])
    for actual, expected in zip(*results):
        # The gradient of a bias before a normalization consists of rounding errors alone.
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_traced_model_is_right_at_other_sizes() -> None:
    model = synthetic_model(SMALL)
    with torch.no_grad():
        traced = torch.jit.trace(model, synthetic_image(2, 3, 61, 90), check_trace=False)
        for batch, *size in SIZES:
            image = synthetic_image(batch, 3, *size)
            for feature, reference in zip(traced(image), model(image)):
                assert_near(feature, reference)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_model_recompiles_at_most_twice() -> None:
    torch.compiler.reset()
    model, counter = synthetic_model(TWO), CompileCounterWithBackend('eager')
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for batch, height, width in [(b, h + m, w + m) for m in (40, 81) for b, h, w in SIZES]:
        image = synthetic_image(batch, 3, height, width)
        for feature, reference in zip(compiled(image), model(image)):
            assert_near(feature, reference)
    # Once for a single image and once for a large one, which PyTorch convolves differently.
    assert counter.frame_count <= 1 + 2


@torch.no_grad()
@pytest.mark.skipif(
    not hatnet.COMPILER_KNOWS_SIZES, reason='before PyTorch 2.8 the compiler does not know sizes'
)
def test_compiled_for_one_size_has_no_padding() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend('eager')
    torch.compile(synthetic_model(ONE), backend=counter, dynamic=False)(
        synthetic_image(1, 3, 61, 90)
    )
    assert 'pad' not in counter.graphs[0].print_readable(print_output=False).split('"""')[-1]


@pytest.mark.parametrize('options', rest_slow([(), ('--benchmark', '32x32')], ()))
@torch.no_grad()
def test_onnx_file_of_a_classifier(options: tuple, run_tool_captured, tmp_path: Path) -> None:
    import onnx

    backbone = dict(type='HATNet', arch=ONE, out_indices=(0,))
    config, checkpoint = random_job('imagenet', tmp_path, backbone, in_channels=16)
    file = tmp_path / 'exported' / 'classifier.onnx'
    result = run_tool_captured('export', config, checkpoint, '--out', file, *options)
    assert not result.returncode, result.stderr
    assert float(re.search(r'at most (\S+) standard deviations', result.stdout)[1]) < 1e-4
    assert list(file.parent.iterdir()) == [file]
    if options:
        table = r'PyTorch, eager +\| +onnxruntime.*\n.*\n +32x32 +\| +[.\d]+'
        assert re.search(table, result.stdout)

    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert metadata['classes'] == ['beach wagon', 'soccer ball', 'umbrella']
    assert metadata['channel_order'] == 'RGB' and metadata['outputs'] == ['logits']
    settings = export_settings(config)
    preprocessor = settings['data_preprocessor']
    assert metadata['mean'] == pytest.approx(preprocessor['mean'])
    assert metadata['std'] == pytest.approx(preprocessor['std'])

    model = build('mmpretrain', settings)
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    runners = dict(export.runners(file))
    assert 'onnxruntime' in runners
    for size in SIZES:
        images = rgb_images(*size)
        expected = model(preprocessed(model, images))
        for run in runners.values():
            assert_near(run(images)[0], expected)


class AdaptiveMeans(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return adaptive_means(x, (4, (x.shape[3] + 2) // 3))


@torch.no_grad()
def test_adaptive_means_take_any_size() -> None:
    """PyTorch's graph of its own operator is right for the traced size alone."""
    any_size = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    image, shapes = synthetic_image(2, 3, 16, 18), (any_size,)
    program = torch.export.export(AdaptiveMeans(), (image,), dynamic_shapes=shapes).module()
    for size in [(1, 9, 20), (2, 37, 31), (3, 4, 45)]:
        image = synthetic_image(size[0], 3, *size[1:])
        expected = F.adaptive_avg_pool2d(image, (4, (size[2] + 2) // 3))
        torch.testing.assert_close(program(image), expected)


def export_settings(config: Path) -> dict:
    cfg = Config.fromfile(config).to_dict()
    return dict(cfg['model'], data_preprocessor=cfg['data_preprocessor'])


FPN_HEAD = dict(type='FPNHead', in_index=[0, 1], feature_strides=[4, 8], channels=8, num_classes=3)


def segmentor_with(**head: object) -> nn.Module:
    settings = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(
            *[dict(type='ResNet', depth=18, stem_channels=8, base_channels=8, num_stages=2)],
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
        ),
        decode_head=FPN_HEAD | dict(in_channels=[8, 16]) | head,
        test_cfg=ConfigDict(mode='whole'),
    )
    return build('mmseg', settings)


@pytest.fixture
def segmentor() -> nn.Module:
    return segmentor_with()


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.9])
@torch.no_grad()
def test_a_single_output_becomes_one_for_each_class(threshold: float) -> None:
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    model = segmentor_with(num_classes=2, out_channels=1, threshold=threshold, loss_decode=loss)
    model.decode_head.conv_seg.weight.data.mul_(10)
    images = rgb_images(2, 64, 96)
    (logits,) = export.FromPixels(model, 'model')(images)
    assert logits.shape == (2, 2, 64, 96) and logits.isfinite().all()
    predicted = model.predict(images)
    expected = torch.cat([one.pred_sem_seg.data for one in predicted])
    assert len(expected.unique()) == 2
    assert torch.equal(logits.argmax(dim=1), expected.long())


def test_upsampling_in_a_head_takes_any_size(segmentor, tmp_path: Path) -> None:
    """MMSegmentation's Upsample converts sizes to int, which fixes them to the traced ones."""
    assert export_model(segmentor, tmp_path / 'segmentor.onnx') < 1e-4


def test_a_file_that_takes_few_sizes_is_refused(segmentor, tmp_path: Path) -> None:
    """PyTorch 2.12 restricts max pooling to sizes of the traced parity; 2.7 and 2.14 do not."""
    try:
        deviation = export_model(segmentor, tmp_path / 'segmentor.pt2')
    except ExportError as error:
        message = r'does not take images \(1, 3, 161, 243\), .*Guard'
        assert re.search(message, str(error)) and not [*tmp_path.iterdir()]
    else:
        assert deviation < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_exported_program_of_a_segmentor(tmp_path: Path) -> None:
    settings = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[120.0, 110, 100], std=[60.0, 50, 40], bgr_to_rgb=True
        ),
        backbone=dict(type='HATNet', arch=TWO, out_indices=(0, 1)),
        decode_head=FPN_HEAD | dict(in_channels=[16, 32]),
        test_cfg=ConfigDict(mode='whole'),
    )
    model, file = build('mmseg', settings), tmp_path / 'segmentor.pt2'
    assert export_model(model, file, classes=['a', 'b', 'c']) < 1e-4
    metadata = dict.fromkeys(['classes', 'channel_order'], '')
    program = torch.export.load(file, extra_files=metadata).module()
    assert json.loads(metadata['classes']) == ['a', 'b', 'c']
    assert json.loads(metadata['channel_order']) == 'RGB'
    for batch, height, width in SIZES:
        images = rgb_images(batch, height, width)
        whole = model.inference(
            preprocessed(model, images),
            [dict(img_shape=(height, width), ori_shape=(height, width))] * batch,
        )
        assert_near(program(images)[0], whole)


DETECTOR = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=dict(type='HATNet', arch=TWO, out_indices=(0, 1)),
    neck=dict(type='FPN', in_channels=[16, 32], out_channels=8, num_outs=2),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0], strides=[4, 8]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
    ),
)


def test_parts_of_detectors_can_be_exported(tmp_path: Path) -> None:
    model = build('mmdet', DETECTOR)
    with pytest.raises(ExportError, match='RetinaNet is neither .* export_detector, or its part'):
        export_model(model, tmp_path / 'detector.onnx')
    images = rgb_images(1, 61, 90)
    for part, channels in dict(neck=[8, 8], backbone=[16, 32]).items():
        features = export.FromPixels(model, part)(images)
        assert [feature.shape[1] for feature in features] == channels


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    model = build('mmdet', DETECTOR)

    def wrong(images: Tensor) -> list[Tensor]:
        features = export.FromPixels(model, 'backbone')(images)
        return [feature + 0.001 * feature.std() for feature in features]

    monkeypatch.setattr(export.files, 'write_pt2', lambda *args: args[-1].touch())
    monkeypatch.setattr(export.files, 'runners', lambda file: iter([('wrong', wrong)]))
    with pytest.raises(
        ExportError, match=r'\(1, 3, 161, 243\) its outputs deviate .* 1.0e-03 .* not kept'
    ):
        export_model(model, tmp_path / 'backbone.pt2', 'backbone')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--out', 'model.pth'], r'--out model\.pth must end with \.onnx'),
        (['--out', 'model.onnx', '--format', 'pt2'], r'--out model\.onnx must end with \.pt2'),
        (['--benchmark', '224'], '224 is not a size HxW such as 224x224'),
        (['--format', 'tflite'], r"invalid choice: 'tflite'"),
        (['--cfg-options', 'default_scope=mmpose'], "default_scope is 'mmpose'"),
        (['--device', 'tpu9'], '--device tpu9 cannot be used'),
        (['--no-resize'], '--no-resize is for whole detectors: leave it out'),
        (['--images', 'a.jpg'], '--images is for whole detectors: leave it out'),
    ],
)
def test_bad_input_is_named(args: list, message: str, run_tool_captured, tmp_path: Path) -> None:
    job = random_job('imagenet', tmp_path)
    result = run_tool_captured('export', *job, *args)
    assert result.returncode and re.search(message, result.stderr), result.stderr


def test_a_folder_as_the_file_is_named(run_tool_captured, tmp_path: Path) -> None:
    folder = tmp_path / 'model.onnx'
    folder.mkdir()
    result = run_tool_captured('export', *random_job('imagenet', tmp_path), '--out', folder)
    assert result.returncode and f'--out {folder} is a folder' in result.stderr, result.stderr


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('test_dataloader.dataset.data_root=nowhere/', r'test data are missing: .*nowhere/'),
        ('test_evaluator=None', r'has no test_evaluator, and test needs'),
    ],
)
def test_evaluation_is_refused_before_the_export(
    option: str, message: str, run_tool_captured, tmp_path: Path
) -> None:
    job = random_job('retinanet', tmp_path)
    out = tmp_path / 'model.onnx'
    result = run_tool_captured('export', *job, '--out', out, '--evaluate', '--cfg-options', option)
    assert result.returncode and re.search(message, result.stderr), result.stderr
    assert not out.exists()


def test_a_model_that_rounds_more_is_allowed_more(tmp_path: Path, monkeypatch) -> None:
    """The limit follows the model's own deviation from float64."""
    model = build('mmdet', DETECTOR)
    monkeypatch.setattr(export.files, 'write_pt2', lambda *args: args[-1].touch())
    monkeypatch.setattr(export.files, 'TOLERANCE', 0.0)
    for error in (1e-6, 1e-3):

        def run(images: Tensor, error: float = error) -> list[Tensor]:
            features = export.FromPixels(model, 'backbone')(images)
            return [feature + error * feature.std() for feature in features]

        monkeypatch.setattr(export.files, 'runners', lambda file, run=run: iter([('own', run)]))
        if error == 1e-6:
            assert 0 < export_model(model, tmp_path / 'backbone.pt2', 'backbone') < 1e-5
        else:
            with pytest.raises(ExportError, match='rounding explains at most'):
                export_model(model, tmp_path / 'backbone.pt2', 'backbone')


def test_missing_packages_are_named(run_tool_captured, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(export.files, 'find_spec', lambda name: None)
    result = run_tool_captured('export', *random_job('imagenet', tmp_path))
    assert result.returncode and 'pip install onnx onnxscript' in result.stderr, result.stderr

"""The ONNX file of a detector takes decoded images and gives what the model predicts."""

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from experiments import as_text
from mmcv.transforms import Compose
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData
from PIL import Image
from predicting import TOY

import mmhatnet.openmmlab.setup  # noqa: F401
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.export import ExportError, FileDetector, evaluate, export_detector, source_of
from mmhatnet.export.agreement import Examples, Tolerance
from mmhatnet.export.resizing import Resizing, add_resizing, find_resizing
from mmhatnet.export.running import read_metadata
from mmhatnet.export.writing import quantize
from mmhatnet.inference import ImageLoader, LoadedImage, build_inferencer, predict

EXAMPLE = Path(__file__).parents[1] / 'examples' / 'onnx_detector.py'
# A network that gives one box and the pixels that it gets.
NETWORK = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[batch, 3, height, width] images)
    => (float[1, 4] boxes, float[batch, 3, height, width] pixels)
{
    boxes = Constant <value = float[1, 4] {10., 20., 30., 40.}> ()
    pixels = Identity (images)
}
"""
SIZES = [(480, 640), (61, 90), (90, 61), (128, 160), (37, 400), (256, 320), (427, 640), (1, 40)]


def textured(height: int, width: int) -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3))
    return mmcv.imresize(rough.astype(np.uint8), (width, height))


@pytest.mark.parametrize('keep_ratio', [True, False])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_a_file_resizes_as_the_test_pipeline(keep_ratio: bool, dtype: type, tmp_path: Path) -> None:
    file = tmp_path / 'network.onnx'
    onnx.save(onnx.parser.parse_model(NETWORK), file)
    resize = dict(type='mmdet.Resize', scale=(160, 128), keep_ratio=keep_ratio)
    with DefaultScope.overwrite_default_scope('mmdet'):
        steps = Compose([_from_array(dtype), TRANSFORMS.build(resize)]).transforms
    resizing = find_resizing([*steps, lambda data: dict(inputs=0)])
    assert resizing == Resizing((160, 128), keep_ratio, dtype is np.uint8)
    add_resizing(file, resizing)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {''}
    assert read_metadata(file)['resize'] == dict(resizing._asdict(), scale=[160, 128])
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        image = textured(*size)
        data = dict(img=image.astype(dtype))
        for step in steps[1:]:
            data = step(data)
        batch = np.stack([image, 255 - image]).transpose(0, 3, 1, 2).astype(np.float32)
        boxes, pixels = session.run(None, dict(images=batch))
        expected = data['img'].transpose(2, 0, 1).astype(np.float32)
        assert pixels.shape[1:] == expected.shape, size
        assert np.abs(pixels[0] - expected).max() <= (0 if dtype is np.uint8 else 0.01), size
        scale = np.tile(data['scale_factor'], 2)
        np.testing.assert_allclose(boxes, [[10, 20, 30, 40] / scale], rtol=1e-6)


def _from_array(dtype: type):
    return lambda image: dict(img=image.astype(dtype), img_shape=image.shape[:2])


@pytest.mark.parametrize(
    ('steps', 'named'),
    [
        ([dict(type='FixScaleResize', scale=(160, 128), keep_ratio=True)], 'FixScaleResize'),
        ([dict(type='Resize', scale=(9, 9), backend='pillow')], 'Resize.* resizes otherwise'),
        ([dict(type='Resize', scale_factor=0.5)], 'Resize.* has a scale_factor and no scale'),
        ([dict(type='Resize', scale=(side, side)) for side in (9, 8)], 'Resize.* is the second'),
        ([dict(type='Pad', size_divisor=32)], r'Pad\(.* changes pixels'),
        ([dict(type='mmcv.CenterCrop', crop_size=(500, 500))], 'CenterCrop'),
        ([dict(type='RandomFlip', prob=0.5)], 'RandomFlip'),
        (
            [dict(type='mmcv.TestTimeAug', transforms=[[dict(type='Resize', scale=(9, 9))]])],
            'TestTimeAug.* changes pixels',
        ),
    ],
)
def test_other_steps_of_test_pipelines_are_refused(steps: list, named: str) -> None:
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = [_from_array(np.uint8), *map(TRANSFORMS.build, steps)]
    with pytest.raises(ExportError, match=rf'(?s)cannot be put into a file: {named}.*--no-resize'):
        find_resizing(built)


def test_steps_that_leave_pixels_alone_are_not_refused() -> None:
    steps = [
        dict(type='RandomFlip', prob=0.0),
        dict(type='mmcv.CenterCrop', crop_size=(3000, 3000)),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        built = [_from_array(np.uint8), TRANSFORMS.build(steps[0])]
    assert find_resizing(built) is None


def brighten(data: dict) -> dict:
    data['img'] //= 2  # in place
    return data


def read_path(data: dict) -> dict:
    return data['img_path'] and data


@pytest.mark.parametrize(
    ('step', 'named'),
    [
        (brighten, 'brighten.* changes pixels, and is not a Resize'),
        (read_path, r"read_path.* fails for an image of 61x90 pixels \(KeyError\('img_path'\)"),
    ],
)
def test_steps_of_users_are_refused(step, named: str) -> None:
    with pytest.raises(ExportError, match=named):
        find_resizing([_from_array(np.uint8), step, lambda data: dict(inputs=0)])


def instances(*rows: tuple) -> InstanceData:
    """Returns detections, each of a label, a score and the left side of a box."""
    labels, scores, lefts = map(torch.tensor, zip(*rows))
    boxes = torch.stack([lefts, lefts, lefts + 20, lefts + 30], dim=1).float()
    return InstanceData(bboxes=boxes, scores=scores, labels=labels)


def compared(actual: InstanceData, expected: InstanceData):
    examples = Examples.__new__(Examples)
    examples.origin, examples.batches, examples.predicted = 'of a test', [[IMAGE]], [[expected]]

    class Found:
        outputs = ('boxes',)

        def __call__(self, images: list) -> list[InstanceData]:
            return [actual]

    return examples.compare(
        Found(), dict(score_thr=0.05, max_per_img=100), Tolerance(0.1, 1e-3, 0.01, 0.02)
    )


IMAGE = LoadedImage('a.jpg', np.zeros((400, 400, 3), np.uint8), {})
EXPECTED = [(0, 0.9, 10.0), (1, 0.8, 60.0), (0, 0.0504, 200.0)]


def test_detections_near_the_lowest_score_may_be_missing() -> None:
    result = compared(instances((1, 0.8002, 60.01), (0, 0.9, 10.0)), instances(*EXPECTED))
    assert (result.pairs, result.near, result.others) == (2, 1, 0)
    assert result.box == pytest.approx(0.01, rel=1e-3) and result.score == pytest.approx(2e-4, 1e-2)
    assert 'PyTorch: boxes within 1.0e-02 px, scores within 2.0e-04; 1 with scores' in str(result)


@pytest.mark.parametrize(
    'changed', [(1, 0.9, 10.0), (0, 0.89, 10.0), (0, 0.9, 10.5), None], ids=str
)
def test_other_detections_are_refused(changed: tuple | None) -> None:
    actual = [row for row in (changed, *EXPECTED[1:]) if row]
    message = r'wrong: [12] of [34] detections .* such as class \d .*only .* finds. .* not kept'
    with pytest.raises(ExportError, match=message):
        compared(instances(*actual), instances(*EXPECTED))


GARBAGE = [(0, 1.0, float(left)) for left in range(100)]


@pytest.mark.parametrize(
    'actual',
    [
        [*EXPECTED, (0, 0.02, 300.0)],  # below score_thr
        GARBAGE,  # as many as are kept, so nothing was dropped for a low score
        [*EXPECTED[:2], *((0, 0.0501, float(left)) for left in range(99))],  # more than are kept
    ],
    ids=['below the threshold', 'garbage', 'too many'],
)
def test_only_near_the_lowest_score_may_detections_be_missing(actual: list) -> None:
    with pytest.raises(ExportError, match='The exported file is wrong'):
        compared(instances(*actual), instances(*EXPECTED))


def test_factors_make_scores_lower_than_the_threshold() -> None:
    """As the centerness of FCOS does."""
    expected = [*EXPECTED, (0, 0.01, 300.0)]
    result = compared(instances(*EXPECTED, (0, 0.03, 250.0)), instances(*expected))
    assert (result.pairs, result.near, result.others) == (3, 2, 0)


def test_the_batch_has_the_image_with_most_detections(monkeypatch) -> None:
    """A batch of images without detections would not be checked at all."""
    from mmhatnet.export import agreement

    found = dict(a=0, b=3, c=1)

    def predict_loaded(inferencer: object, images: list) -> list:
        names = [image.path.partition(',')[0] for image in images]
        rows = [instances(*EXPECTED)[: found[name]] for name in names]
        return [SimpleNamespace(pred_instances=row) for row in rows]

    def load(path: str, pixels: np.ndarray = IMAGE.pixels) -> LoadedImage:
        return LoadedImage(path, pixels, {})

    monkeypatch.setattr(agreement, 'ImageLoader', lambda inferencer: load)
    monkeypatch.setattr(agreement, 'predict_loaded', predict_loaded)
    *single, pair = Examples(None, {}, ['a', 'b', 'c']).batches
    assert [[image.path for image in batch] for batch in single] == [['a'], ['b'], ['c']]
    assert [image.path for image in pair] == ['b', 'b, mirrored']


def test_augmentation_at_test_time_is_refused(monkeypatch) -> None:
    data = dict(inputs=[torch.zeros(3, 9, 9)] * 2)
    load = LoadedImage('a.jpg', IMAGE.pixels, data)
    monkeypatch.setattr('mmhatnet.export.agreement.ImageLoader', lambda _: lambda *image: load)
    with pytest.raises(ExportError, match='^The test pipeline makes several images of one'):
        Examples(None, {}, ['a.jpg'])


def test_images_without_detections_are_called_so() -> None:
    none = instances(*EXPECTED)[:0]
    assert 'no detection in 1 images of a test' in str(compared(none, none))


def small_job(folder: Path, data: Path) -> Path:
    """Writes a config of Mask R-CNN with two levels, and weights that detect many things."""
    cfg = Config.fromfile(TOY / 'maskrcnn_hatnet_toy.py').to_dict()
    cfg.pop('test_pipeline', None)
    model = cfg['model']
    levels = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    model['backbone'] = dict(type='ResNet', depth=18, stem_channels=8, base_channels=4, **levels)
    norm = dict(type='GN', num_groups=4)
    model['neck'].update(in_channels=[4, 8], out_channels=16, num_outs=2, norm_cfg=norm)
    model['rpn_head'].update(in_channels=16, feat_channels=16)
    model['rpn_head']['anchor_generator'].update(strides=[4, 8])
    head = model['roi_head']
    for name in ('bbox', 'mask'):
        head[f'{name}_roi_extractor'].update(out_channels=16, featmap_strides=[4, 8])
    head['bbox_head'].update(in_channels=16, fc_out_channels=32)
    head['mask_head'].update(in_channels=16, conv_out_channels=16, num_convs=1, norm_cfg=norm)
    model['test_cfg']['rcnn']['score_thr'] = 0.3
    for split in ('val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{split}_dataloader']['dataset']['data_root'] = str(data / 'data' / 'toy' / 'coco')
    config = folder / 'small.py'
    config.write_text(as_text(cfg))

    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(Config.fromfile(config).model)
    # Scores from 0.3 to 1 without ties, and boxes and masks that differ.
    boxes, masks = detector.roi_head.bbox_head, detector.roi_head.mask_head
    for layer, factor in {
        detector.rpn_head.rpn_cls: 15,
        boxes.fc_cls: 40,
        boxes.fc_reg: 10,
        masks.conv_logits: 10,
    }.items():
        layer.weight.data *= factor
    torch.save(dict(state_dict=detector.state_dict(), meta={}), config.with_suffix('.pth'))
    return config


@pytest.fixture(scope='module')
def exported(toy_data: Path, tmp_path_factory) -> tuple:
    """Returns a config, its inferencer, an ONNX file, and how they agree."""
    folder = tmp_path_factory.mktemp('exported')
    config = small_job(folder, toy_data)
    cfg, checkpoint = Config.fromfile(config), Checkpoint(str(config.with_suffix('.pth')))
    inferencer = build_inferencer(cfg, checkpoint, 'cpu')
    file = folder / 'file' / 'small.onnx'
    agreement = export_detector(inferencer, file, source=source_of(cfg, checkpoint))
    assert list(file.parent.iterdir()) == [file]
    return config, inferencer, file, agreement


def test_detections_agree(exported: tuple) -> None:
    *_, agreement = exported
    assert agreement.origin == 'of the test data' and agreement.images == 6
    # Of random proposals, some are near-ties.
    assert agreement.pairs > 100 and agreement.others + agreement.near < 0.02 * agreement.pairs
    assert agreement.box < 0.01 and agreement.score < 1e-4 and agreement.mask <= 5


def test_the_file_has_standard_operators_and_says_what_it_does(exported: tuple) -> None:
    config, _, file, _ = exported
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert [(used.domain, used.version) for used in model.opset_import] == [('', 20)]
    assert {node.domain for node in model.graph.node} == {''} and not model.functions
    about = read_metadata(file)
    source = about.pop('source')
    assert source['config'] == 'small.py' and source['checkpoint'] == 'small.pth'
    weights = config.with_suffix('.pth').read_bytes()
    assert source['sha256'] == hashlib.sha256(weights).hexdigest()
    assert source['versions'].keys() == {'mmhatnet', 'mmdet', 'torch'}
    assert {key: about[key] for key in about if key not in ('mean', 'std')} == dict(
        part='model',
        classes=['car', 'umbrella', 'sports ball', 'kite'],
        outputs=['boxes', 'scores', 'labels', 'image_indices', 'masks'],
        channel_order='RGB',
        pad_size_divisor=32,
        score_thr=0.3,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
        mask_thr_binary=0.5,
        resize=dict(scale=[160, 128], keep_ratio=True, integers=True),
    )


def test_a_file_in_eight_bits_is_smaller_and_says_so(exported: tuple, tmp_path: Path) -> None:
    _, inferencer, file, _ = exported
    small = Path(shutil.copy(file, tmp_path))
    quantize(small)
    model = onnx.load(small)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {''}
    assert 'MatMulInteger' in {node.op_type for node in model.graph.node}
    assert read_metadata(small) == dict(read_metadata(file), precision='int8')
    (found,) = FileDetector(small)([ImageLoader(inferencer)('image', textured(150, 200))])
    assert len(found) > 10


def test_the_example_draws_what_the_model_predicts(exported: tuple, tmp_path: Path) -> None:
    """It runs where NumPy, onnxruntime and Pillow can be imported, and nothing else."""
    _, inferencer, file, _ = exported
    path = tmp_path / 'image.png'
    Image.fromarray(textured(150, 200)[..., ::-1]).save(path)
    packages = tmp_path / 'packages'
    packages.mkdir()
    installed = Path(np.__file__).parents[1]
    for name in ('numpy', 'numpy.libs', 'onnxruntime', 'PIL', 'pillow.libs'):
        if (installed / name).exists():  # not all platforms have libraries beside a package
            (packages / name).symlink_to(installed / name)

    def run(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, '-S', *map(str, words)],
            env=dict(PYTHONPATH=str(packages)),
            capture_output=True,
            text=True,
            check=False,
        )

    assert 'No module named' in run('-c', 'import torch').stderr
    drawn = tmp_path / 'drawn.png'
    result = run(EXAMPLE, file, path, drawn, '--score', '0.4')
    assert not result.returncode, result.stderr
    (sample,) = predict(inferencer, [str(path)])
    expected = sample.pred_instances
    lines = re.findall(r'(.+) (\d\.\d+) \[(.+)\] (\d+)', result.stdout)
    near = ((expected.scores - 0.4).abs() < 0.02).sum()
    assert abs(len(lines) - (expected.scores >= 0.4).sum()) <= near and len(lines) > 10
    agreeing = 0
    for name, score, corners, inside in lines:
        rows = expected[expected.labels == inferencer.classes.index(name)]
        box = torch.tensor([float(corner) for corner in corners.split()])
        distances = (rows.bboxes - box).abs().amax(dim=1)
        row = rows[int(distances.argmin())]
        area = int(row.masks.sum())
        same = distances.min() < 1 and abs(row.scores.item() - float(score)) < 0.02
        agreeing += bool(same and abs(area - int(inside)) <= max(20, 0.05 * area))
    assert agreeing >= 0.95 * len(lines), (agreeing, result.stdout)
    before, after = (np.asarray(Image.open(name).convert('RGB')) for name in (path, drawn))
    assert before.shape == after.shape and (before != after).any(axis=2).mean() > 0.2


# One box for an image, with the mean of its pixels as the score.
MEAN = """
<ir_version: 10, opset_import: ["" : 20]>
network (float[1, 3, height, width] images)
    => (float[1, 4] boxes, float[1] scores, int64[1] labels)
{
    boxes = Constant <value = float[1, 4] {1., 2., 9., 8.}> ()
    labels = Constant <value = int64[1] {0}> ()
    largest = Constant <value = float[1] {255.}> ()
    mean = ReduceMean <keepdims = 0> (images)
    scores = Div (mean, largest)
}
"""


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_the_example_reads_gray_images_as_opencv(dtype: type, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(MEAN)
    about = dict(channel_order='RGB', outputs=['boxes', 'scores', 'labels'], classes=['sky'])
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    file, path, drawn = (tmp_path / name for name in ('mean.onnx', 'gray.png', 'drawn.png'))
    onnx.save(model, file)
    largest = np.iinfo(dtype).max
    Image.fromarray(np.full((10, 20), 0.6 * largest).astype(dtype)).save(path)
    assert np.asarray(Image.open(path)).dtype == dtype
    share = mmcv.imread(str(path)).mean() / 255
    command = [sys.executable, EXAMPLE, file, path, drawn]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(f'sky {share:.3f} ') and 0.59 < share < 0.61


def test_the_example_pastes_masks_as_mmdetection() -> None:
    paste = runpy.run_path(str(EXAMPLE))['paste']
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(20, 28, 28, generator=generator)
    corners = torch.rand(20, 2, 2, generator=generator) * torch.tensor([140, 110]) - 10
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)
    expected, _ = _do_paste_mask(masks[:, None], boxes, 90, 120, skip_empty=False)
    for mask, box, pasted in zip(masks.numpy(), boxes.numpy(), expected.numpy()):
        np.testing.assert_allclose(paste(mask, box, 120, 90), pasted, atol=1e-3)


def test_the_file_is_evaluated_as_the_checkpoint(
    exported: tuple, run_tool, tmp_path: Path, toy_data: Path
) -> None:
    """The annotations are the best detections of each image, moved a little."""
    config, inferencer, file, _ = exported
    root = toy_data / 'data' / 'toy' / 'coco'
    content = json.loads((root / 'annotations' / 'instances_val2017.json').read_text())
    content['annotations'] = []
    for image in content['images']:
        (sample,) = predict(inferencer, [str(root / 'val2017' / image['file_name'])])
        for row in sample.pred_instances[:12:2]:
            left, top, right, bottom = row.bboxes[0].tolist()
            mask = encode_mask_results(row.masks.numpy())[0]
            annotation = dict(
                id=1 + len(content['annotations']),
                image_id=image['id'],
                category_id=content['categories'][row.labels.item()]['id'],
                bbox=[left + 1, top + 2, right - left, bottom - top],
                area=(right - left) * (bottom - top),
                segmentation=dict(mask, counts=mask['counts'].decode()),
                iscrowd=0,
            )
            content['annotations'].append(annotation)
    annotations = tmp_path / 'annotations.json'
    annotations.write_text(json.dumps(content))
    options = {
        'test_dataloader.dataset.ann_file': str(annotations),
        'test_evaluator.ann_file': str(annotations),
    }
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options)
    actual = evaluate(FileDetector(file), cfg, inferencer.classes)
    settings = [f'{key}={value}' for key, value in options.items()]
    run_tool(
        *('test', config, config.with_suffix('.pth'), '--work-dir', tmp_path / 'test'),
        *('--cfg-options', *settings),
    )
    (results,) = tmp_path.glob('test/*/*.json')
    expected = json.loads(results.read_text())
    for name in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert 0.2 < expected[name] < 0.95
        assert actual[name] == pytest.approx(expected[name], abs=0.01)

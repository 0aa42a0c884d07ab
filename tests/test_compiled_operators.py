"""Our operators and mmcv's compiled ones give the same results, in single calls and in training.

COMPILED_MMCV names a folder of mmcv with compiled operators. Without it, and if the installed mmcv
has none, the test compiles mmcv, which needs a C++ compiler and more than ten minutes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import mmcv
import pytest
import torch
from experiments import TOY
from mmengine import load
from operators import CASES, OURS, Draw, assert_same, find_compiled, scored_boxes, use

pytestmark = pytest.mark.slow
SEEDS = 30


@pytest.fixture(scope='module')
def compiled(tmp_path_factory) -> ModuleType:
    folder = Path(os.environ.get('COMPILED_MMCV') or Path(mmcv.__file__).parent)
    if found := find_compiled(folder):
        return found
    packages = {'onedl-mmcv', 'mmcv-lite'} & {d.name for d in metadata.distributions()}
    name = packages.pop()
    target = tmp_path_factory.mktemp('compiled')
    command = [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-build-isolation']
    command += ['--no-cache-dir', '--no-binary=:all:', '--target', str(target)]
    command += [f'{name.removesuffix("-lite")}=={metadata.version(name)}']
    # Compilation without debugging information takes half of the time.
    variables = dict(os.environ, MMCV_WITH_OPS='1', CFLAGS='-O2 -g0 -DNDEBUG')
    subprocess.run(command, check=True, env=variables)
    return find_compiled(target / 'mmcv')


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)
def test_same_results(case: Callable, ties: bool, compiled: ModuleType) -> None:
    for seed in range(SEEDS):
        with use(compiled):
            expected = case(Draw(seed), ties=ties)
        with use(OURS):
            assert_same(case(Draw(seed), ties=ties), expected, CASES[case])


def test_same_nms_of_many_boxes(compiled: ModuleType) -> None:
    boxes, scores = scored_boxes(Draw(0), 12_000)
    classes = torch.from_numpy(Draw(1).randint(0, 80, len(boxes)))
    results = []
    for ext in (compiled, OURS):
        with use(ext):
            settings = dict(type='nms', iou_threshold=0.6)
            results.append(mmcv.ops.batched_nms(boxes, scores, classes, settings))
    assert_same(*results, tolerance=0)


def test_same_training_and_test(
    compiled: ModuleType, run_tool: Callable, tmp_path: Path, monkeypatch
) -> None:
    """Compares the losses of 20 iterations of Mask R-CNN, its final weights and its detections."""
    path = TOY['maskrcnn_hatnet_toy']
    options = ['train_cfg.max_epochs=5', 'train_dataloader.batch_size=2', 'randomness.seed=0']
    options += ['default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=5']
    options += [
        f'{split}_dataloader.{key}'
        for split in ('train', 'val', 'test')
        for key in ('num_workers=0', 'persistent_workers=False')
    ]
    found = []
    for number, ext in enumerate((compiled, OURS)):
        folder = tmp_path / str(number)
        with use(ext):
            run_tool('train', path, '--work-dir', folder, '--cfg-options', *options)
            checkpoint = folder / 'epoch_5.pth'
            out = folder / 'detections.pkl'
            run_tool('test', path, checkpoint, '--work-dir', folder / 'test', '--out', out)
        (scalars,) = folder.glob('*/vis_data/scalars.json')
        lines = [json.loads(line) for line in scalars.read_text().splitlines()]
        losses = [line['loss'] for line in lines if 'loss' in line]
        tensors = torch.load(checkpoint, weights_only=False)['state_dict']
        found.append((losses, tensors, [one['pred_instances'] for one in load(out)]))
    (losses, tensors, detections), (our_losses, our_tensors, our_detections) = found
    assert len(losses) == 20 and losses == our_losses
    assert [*tensors] == [*our_tensors]
    assert all(torch.equal(tensor, our_tensors[key]) for key, tensor in tensors.items())
    assert len(detections) == 4 and sum(len(one['scores']) for one in detections) > 0
    for one, other in zip(detections, our_detections):
        assert one['masks'] == other['masks']
        assert all(torch.equal(one[key], other[key]) for key in ('bboxes', 'scores', 'labels'))

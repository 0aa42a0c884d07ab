"""tools/train.py and tools/test.py run jobs of all three frameworks and explain what is wrong."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from experiments import rest_slow
from mmengine.config import Config

from mmhatnet.cli.train import report_earlier_training
from mmhatnet.evaluation import augment_tests, dump_predictions

CONFIGS = Path(__file__).parents[1] / 'configs'
AMP = 'hatnet/mask-rcnn_hatnet-s_fpn_amp-ms-crop-3x_coco'
# Starting and stopping worker processes takes longer than training on a few images.
NO_WORKERS = [
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]
SMALL_DETECTION = [
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.indices=4',
    'train_cfg.max_epochs=2',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
]
JOBS = {
    'maskrcnn': SMALL_DETECTION,
    # After so little training, no score would reach its threshold.
    'retinanet': [*SMALL_DETECTION, 'model.test_cfg.score_thr=0'],
    'semfpn': [
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.interval=1',
    ],
    'imagenet': [
        'train_dataloader.batch_size=8',
        'train_dataloader.dataset.indices=16',
        'train_cfg.max_epochs=2',
        'train_cfg.val_interval=1',
        'default_hooks.logger.interval=1',
    ],
}
LONGER = dict(
    maskrcnn='train_cfg.max_epochs=3',
    retinanet='train_cfg.max_epochs=3',
    semfpn='train_cfg.max_iters=3',
    imagenet='train_cfg.max_epochs=3',
)
METRIC = dict(
    maskrcnn='coco/segm_mAP_50',
    retinanet='coco/bbox_mAP_50',
    semfpn='mIoU',
    imagenet='accuracy/top1',
)


def scalars(work_dir: Path) -> list[dict]:
    """Returns all records of the newest run in a work folder."""
    newest = sorted(work_dir.glob('*/vis_data/scalars.json'))[-1]
    return [json.loads(line) for line in newest.read_text().splitlines()]


@pytest.mark.parametrize('job', rest_slow(JOBS, 'maskrcnn', 'semfpn'))
def test_train_resume_and_test(job: str, run_tool, tmp_path: Path) -> None:
    config, work_dir = CONFIGS / 'toy' / f'{job}_hatnet_toy.py', tmp_path / 'work'
    options = [*NO_WORKERS, *JOBS[job]]
    run_tool('train', config, '--work-dir', work_dir, '--cfg-options', *options)
    records = scalars(work_dir)
    assert all(torch.tensor(r['loss']).isfinite() for r in records if 'loss' in r)
    assert METRIC[job] in records[-1]
    checkpoint = Path((work_dir / 'last_checkpoint').read_text())

    options.append(LONGER[job])
    resume = ['--resume', '--cfg-options']
    run_tool('train', config, '--work-dir', work_dir, *resume, *options)
    steps = [r.get('epoch', r['step']) for r in scalars(work_dir) if 'loss' in r]
    assert set(steps) == {3}, 'training should resume with the third epoch or iteration'

    out = tmp_path / ('labels' if job == 'semfpn' else 'predictions.pkl')
    visualizations = tmp_path / 'visualizations'
    run_tool(
        'test',
        *(config, checkpoint, '--work-dir', tmp_path / 'test'),
        *('--out', out, '--show-dir', visualizations, '--cfg-options', *NO_WORKERS),
    )
    if job == 'semfpn':
        assert len(list(out.glob('*.png'))) == 2
    else:
        assert len(pickle.loads(out.read_bytes())) == dict(imagenet=6).get(job, 4)
    assert len([p for p in visualizations.rglob('*') if p.suffix in ('.jpg', '.png')]) > 0


@pytest.mark.parametrize(
    ('job', 'options'),
    [
        ('retinanet', []),
        ('maskrcnn', ['model.roi_head.mask_head=None', 'test_evaluator.metric=bbox']),
        pytest.param('semfpn', ['img_ratios=1'], marks=pytest.mark.slow),
        pytest.param('imagenet', [], marks=pytest.mark.slow),
    ],
)
def test_tta(job: str, options: list[str], run_tool, tmp_path: Path) -> None:
    from mmengine.registry import MODELS, DefaultScope

    config = CONFIGS / 'toy' / f'{job}_hatnet_toy.py'
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'random.pth')
    args = ['--tta', '--work-dir', tmp_path, '--cfg-options', *NO_WORKERS, *options]
    run_tool('test', config, tmp_path / 'random.pth', *args)
    logged = sorted(tmp_path.glob('*/*.json'))[-1]
    metric = METRIC[job].replace('segm', 'bbox')
    assert metric in json.loads(logged.read_text())


@pytest.mark.parametrize(
    ('tool', 'config', 'args', 'message'),
    [
        ('train', 'nothing_hatnet', [], r'There is no config .*nothing_hatnet\.py'),
        (
            'train',
            'maskrcnn_hatnet',
            [],
            r'train data are missing: .* looks for data/coco/annotations/instances_train2017\.json'
            r'.*cocodataset\.org.*mmhatnet::toy/maskrcnn_hatnet_toy\.py',
        ),
        ('train', 'retinanet_hatnet', [], r'mmhatnet::toy/retinanet_hatnet_toy\.py'),
        (
            'train',
            'hatnet/retinanet_hatnet-t_fpn_1x_coco',
            [],
            r'looks for data/coco.*mmhatnet::toy/retinanet_hatnet_toy\.py',
        ),
        (
            'train',
            'semfpn_hatnet',
            [],
            r'data/ade/ADEChallengeData2016/images/training.*toy/semfpn',
        ),
        (
            'train',
            'imagenet_hatnet',
            [],
            r'looks for data/imagenet/train\..*toy/imagenet_hatnet_toy',
        ),
        ('train', 'toy/maskrcnn_hatnet_toy', ['--amp'], '--amp needs a GPU'),
        ('train', AMP, [], r'mixed precision of .*-3x_coco\.py needs a GPU'),
        ('train', 'toy/maskrcnn_hatnet_toy', ['--resume', 'x.pth'], r'no checkpoint x\.pth'),
        (
            'train',
            'toy/maskrcnn_hatnet_toy',
            ['--auto-scale-lr', '--cfg-options', 'auto_scale_lr._delete_=True'],
            'auto_scale_lr.base_batch_size=N',
        ),
        (
            'train',
            'maskrcnn_hatnet',
            [
                '--no-check',
                '--cfg-options',
                'train_dataloader.dataset.data_root=data/toy/coco/',
                'val_dataloader.dataset.data_root=data/toy/coco/',
                'model.backbone.init_cfg.checkpoint=http://127.0.0.1:9/HAT-Net_Tiny.pth',
            ],
            r'could not be downloaded .*init_cfg\.checkpoint=FILE.*init_cfg=None',
        ),
        ('test', 'toy/maskrcnn_hatnet_toy', ['y.pth'], r'no checkpoint y\.pth'),
        ('test', 'maskrcnn_hatnet', ['EMPTY'], 'test data are missing'),
        ('test', 'toy/maskrcnn_hatnet_toy', ['EMPTY', '--tta'], 'merges boxes but not masks'),
        ('test', 'toy/maskrcnn_hatnet_toy', ['EMPTY', '--out', 'a.json'], r'--out a\.json'),
        ('test', 'toy/maskrcnn_hatnet_toy', ['EMPTY', '--out', 'data'], r'--out data is a folder'),
        (
            'test',
            'toy/maskrcnn_hatnet_toy',
            ['EMPTY', '--show-dir', 'data/toy/toy.json/x'],
            r'--show-dir .* cannot be written to \(Not a directory',
        ),
        (
            'train',
            'toy/maskrcnn_hatnet_toy',
            ['--work-dir', 'data/toy/toy.json'],
            r'--work-dir .* cannot be written to \(Not a directory',
        ),
        (
            'train',
            'toy/maskrcnn_hatnet_toy',
            ['--cfg-options', 'val_dataloader.dataset.data_root=None'],
            'looks for annotations/instances_val2017.json',
        ),
    ],
)
def test_impossible_jobs_end_with_a_message(
    tool, config, args, message, run_tool, tmp_path
) -> None:
    checkpoint = tmp_path / 'empty.pth'
    torch.save({'state_dict': {}}, checkpoint)
    args = [str(checkpoint) if arg == 'EMPTY' else arg for arg in args]
    with pytest.raises(SystemExit, match=message):
        run_tool(tool, CONFIGS / f'{config}.py', *args)


def test_the_dumped_config_holds_no_options_and_survives_testing(
    run_tool, tmp_path: Path, capsys
) -> None:
    source = CONFIGS / 'toy' / 'imagenet_hatnet_toy.py'
    options = ['--cfg-options', *NO_WORKERS, *JOBS['imagenet']]
    run_tool('train', source, '--work-dir', tmp_path, '--resume', *options)
    assert 'nothing to resume' in capsys.readouterr().out
    dumped = tmp_path / source.name
    before = dumped.read_bytes()
    content = Config.fromfile(dumped)
    assert not any(content.get(key) for key in ('launcher', 'work_dir', 'load_from', 'resume'))
    run_tool('test', source, tmp_path / 'epoch_2.pth', '--work-dir', tmp_path, '--tta', *options)
    assert dumped.read_bytes() == before

    report_earlier_training(Config(dict(work_dir=str(tmp_path))))
    assert 'epoch_1.pth, epoch_2.pth of an earlier training' in capsys.readouterr().out


def test_evaluators_may_be_a_list() -> None:
    cfg = Config.fromfile(CONFIGS / 'retinanet_hatnet.py')
    cfg.test_evaluator = [dict(type='CocoMetric', metric='bbox'), dict(type='CocoMetric')]
    augment_tests(cfg)
    dump_predictions(cfg, 'a.pkl')
    assert [e.type for e in cfg.test_evaluator] == ['CocoMetric', 'CocoMetric', 'DumpDetResults']

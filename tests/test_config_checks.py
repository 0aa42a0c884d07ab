"""Settings without effect, and parts that do not fit together, end a job before it starts."""

import re
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from test_cli import options

from mmhatnet import config_checks
from mmhatnet.cli import merge_options, read_config
from mmhatnet.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / 'configs'
MASK_RCNN = CONFIGS / 'toy' / 'maskrcnn_hatnet_toy.py'


def inheriting(folder: Path, text: str, base: Path = MASK_RCNN) -> Config:
    """Returns a config that inherits another one."""
    path = folder / 'own.py'
    path.write_text(f'_base_ = {str(base)!r}\n{text}\n')
    return read_config(str(path))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            "test_pipeline = [dict(type='LoadImageFromFile')]",
            r'own\.py sets test_pipeline, .*test_dataloader=dict\(dataset=dict\(pipeline',
        ),
        ('optimizer = dict(lr=1e-5)', r'sets optimizer, .*it is now optim_wrapper\.optimizer'),
        ('data = dict(samples_per_gpu=4)', r'data\.samples_per_gpu is now train_dataloader\.batch'),
        ("evaluation = dict(metric='bbox')", r'evaluation\.metric is now val_evaluator\.metric'),
        ('total_epochs = 3', r'it is now train_cfg\.max_epochs'),
        ('train_cgf = dict(max_epochs=3)', r'perhaps train_cfg is meant'),
    ],
)
def test_settings_of_a_file_that_nothing_reads(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config_checks.require_known_settings(inheriting(tmp_path, text), 'train', 'test')


def test_variables_that_nothing_reads_are_reported(tmp_path: Path, capsys) -> None:
    config_checks.require_known_settings(inheriting(tmp_path, 'img_size = 3'))
    assert 'own.py sets img_size, which nothing in it reads' in ''.join(capsys.readouterr())


@pytest.mark.parametrize(
    'text',
    [
        'size = (80, 64)\nmodel = dict(backbone=dict(drop_path_rate=size[0] / 800))',
        'test_pipeline = [dict(type="A")]\ntest_dataloader = dict(dataset=dict(pipeline='
        'test_pipeline))',
        'test_pipeline = [dict(type="A")]\ntest_dataloader = dict(dataset=dict(pipeline=['
        'dict(type="A")]))',
        "optimizer = dict(type='SGD', lr=1)\noptim_wrapper = dict(optimizer=optimizer)",
        "tta_model = dict(type='DetTTAModel')\ngoals = {}\nimport os",
    ],
)
def test_variables_that_are_read(text: str, tmp_path: Path, capsys) -> None:
    config_checks.require_known_settings(inheriting(tmp_path, text), 'train', 'test')
    assert 'reads' not in ''.join(capsys.readouterr())


def test_a_dump_repeats_variables(tmp_path: Path, capsys) -> None:
    cfg = Config.fromfile(CONFIGS / 'toy' / 'semfpn_hatnet_toy.py')
    cfg.dump(tmp_path / 'dump.py')
    cfg = read_config(str(tmp_path / 'dump.py'))
    config_checks.require_known_settings(cfg)
    assert 'reads' not in ''.join(capsys.readouterr())
    merge_options(cfg, options('train_dataloader.dataset.pipeline.2.scale=(80,64)'))
    cfg.dump(tmp_path / 'dump.py')
    config_checks.require_known_settings(read_config(str(tmp_path / 'dump.py')), 'train')
    assert 'sets train_pipeline, which nothing reads' in ''.join(capsys.readouterr())


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            'test_pipeline.1.scale=(40,32)',
            r'set (val|test)_dataloader\.dataset\.pipeline\.1\.scale',
        ),
        ('crop_size=(64,64)', 'set model.data_preprocessor.size'),
        ('optimizer.lr=1e-5', r'set optim_wrapper\.optimizer\.lr|now optim_wrapper\.optimizer\.lr'),
        ('data.samples_per_gpu=4', r'it is now train_dataloader\.batch_size'),
        ('runner.max_epochs=4', r'it is now train_cfg\.max_epochs'),
        ('total_epochs=4', r'it is now train_cfg\.max_epochs'),
        ('batchsize=4', 'nothing reads batchsize'),
        ('train_cgf.max_epochs=4', r'perhaps train_cfg\.max_epochs is meant'),
    ],
)
def test_options_that_nothing_reads(words: str, message: str) -> None:
    cfg = Config.fromfile(CONFIGS / 'toy' / 'semfpn_hatnet_toy.py')
    with pytest.raises(ConfigError, match=message):
        merge_options(cfg, options(words))


def test_options_that_code_of_the_user_may_read(tmp_path: Path) -> None:
    cfg = Config.fromfile(MASK_RCNN)
    cfg.custom_imports.imports.append('own_hooks')
    merge_options(cfg, options('own_setting.a=4', 'sync_bn=torch'))
    assert cfg.own_setting.a == 4


SEMANTIC_FPN = CONFIGS / 'toy' / 'semfpn_hatnet_toy.py'
BY_EPOCH = "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)"
BY_ITERATION = "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8)"


@pytest.mark.parametrize(
    ('base', 'text', 'message'),
    [
        (SEMANTIC_FPN, BY_EPOCH, r"train_dataloader\.sampler is an InfiniteSampler: .*'DefaultSam"),
        (
            SEMANTIC_FPN,
            'train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2)',
            r'an epoch of train_cfg never ends',
        ),
        (
            MASK_RCNN,
            "val_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler'))",
            'the loop of val never ends',
        ),
        (
            MASK_RCNN,
            f"{BY_ITERATION}\nparam_scheduler = [dict(type='MultiStepLR', milestones=[1, 2])]",
            r'before the end: param_scheduler: MultiStepLR, default_hooks\.checkpoint',
        ),
    ],
)
def test_loops_and_what_counts_otherwise(base, text, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        config_checks.require_fitting_loops(inheriting(tmp_path, text, base), 'train', 'val')


@pytest.mark.parametrize(
    ('base', 'text'),
    [
        (SEMANTIC_FPN, f"{BY_EPOCH}\ntrain_dataloader=dict(sampler=dict(type='DefaultSampler'))"),
        (
            MASK_RCNN,
            f'{BY_ITERATION}\ndefault_hooks = dict(checkpoint=dict(by_epoch=False))\n'
            "param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP'), "
            "dict(type='CosineAnnealingLR', by_epoch=True, convert_to_iter_based=True)]",
        ),
    ],
)
def test_loops_that_count_alike(base: Path, text: str, tmp_path: Path) -> None:
    config_checks.require_fitting_loops(inheriting(tmp_path, text, base), 'train', 'val')


@pytest.mark.parametrize('schedule', ['None', "[dict(type='CosineAnnealingLR', by_epoch=True)]"])
def test_an_epoch_without_batches(schedule, run_tool_captured, tmp_path) -> None:
    text = 'train_dataloader = dict(batch_size=64, drop_last=True)'
    base = CONFIGS / 'toy' / 'imagenet_hatnet_toy.py'
    inheriting(tmp_path, f'{text}\nparam_scheduler = {schedule}', base)
    done = run_tool_captured('train', tmp_path / 'own.py', '--work-dir', tmp_path / 'work')
    assert done.returncode == 1 and not [*tmp_path.rglob('*.pth')]
    assert 'images make no batch of 64, and drop_last=True drops the rest' in done.stderr


def test_data_loaders_without_workers(run_tool_captured, tmp_path: Path) -> None:
    text = 'default_hooks = dict(checkpoint=dict(save_optimizer=False))\n'
    text += 'train_dataloader = dict(num_workers=0, prefetch_factor=2, timeout=5)\n'
    text += 'train_cfg = dict(max_epochs=1)\nval_cfg = val_dataloader = val_evaluator = None'
    inheriting(tmp_path, text, CONFIGS / 'toy' / 'imagenet_hatnet_toy.py')
    done = run_tool_captured('train', tmp_path / 'own.py', '--work-dir', tmp_path / 'work')
    assert done.returncode == 0 and (tmp_path / 'work' / 'epoch_1.pth').exists()


def test_schedules_that_end_after_the_training_are_reported(capsys) -> None:
    schedules = [
        dict(type='LinearLR', by_epoch=False, end=500),
        dict(type='MultiStepLR', end=12),
        dict(type='StepLR'),
    ]
    config_checks.report_long_schedules(schedules, 12, 100)
    said = ''.join(capsys.readouterr())
    assert 'LinearLR ends after 500 iterations, but the training ends after 100' in said
    assert 'MultiStepLR' not in said and 'StepLR' not in said


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            "visualizer = dict(vis_backends=[dict(type='WandbVisBackend')])",
            'own.py: .*pip install wandb',
        ),
        ("train_dataloader = dict(dataset=dict(type='LVISV1Dataset'))", 'LVIS.* lvis'),
    ],
)
def test_packages_that_are_missing(text, message, run_tool_captured, tmp_path, monkeypatch) -> None:
    for package in ('wandb', 'lvis'):
        monkeypatch.setitem(sys.modules, package, None)
    inheriting(tmp_path, text)
    done = run_tool_captured('train', tmp_path / 'own.py', '--work-dir', tmp_path / 'work')
    assert done.returncode == 1 and re.search(message, done.stderr.splitlines()[-1])

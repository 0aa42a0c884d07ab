"""Settings without effect, and parts that do not fit together, end a job before it starts."""

import re
import sys
from pathlib import Path

import pytest
from experiments import TOY, identify
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmhatnet import config_checks
from mmhatnet.cli import merge_options, parse_settings, read_config
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
    ('heir', 'said'),
    [
        ('', True),
        ('test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))', False),
        ('other = _base_.test_pipeline[:1]', False),
    ],
)
def test_what_an_inherited_file_of_the_user_sets_is_reported(
    heir: str, said: bool, tmp_path: Path, capsys
) -> None:
    inheriting(tmp_path, 'test_pipeline = [dict(type="LoadImageFromFile")]\nsize = 3')
    (tmp_path / 'own.py').rename(tmp_path / 'middle.py')
    cfg = inheriting(tmp_path, heir, tmp_path / 'middle.py')
    config_checks.require_known_settings(cfg, 'train', 'test')
    shown = ''.join(capsys.readouterr())
    assert ('middle.py sets test_pipeline, which nothing reads' in shown) is said
    assert 'size' not in shown


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
    merge_options(cfg, parse_settings(['train_dataloader.dataset.pipeline.2.scale=(80,64)']))
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
        merge_options(cfg, parse_settings([words]))


def test_options_that_code_of_the_user_may_read(tmp_path: Path) -> None:
    cfg = Config.fromfile(MASK_RCNN)
    cfg.custom_imports.imports.append('own_hooks')
    merge_options(cfg, parse_settings(['own_setting.a=4', 'sync_bn=torch']))
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
    text += 'train_dataloader = dict(batch_size=2, num_workers=0, prefetch_factor=2, timeout=5, '
    text += 'dataset=dict(indices=2))\n'
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


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            "default_hooks = dict(checkpoint=dict(save_best='bbox_mAP', rule='greater'))",
            r"save_best='bbox_mAP' is no metric .*'coco/bbox_mAP' is meant\. It reports",
        ),
        (
            "custom_hooks = [dict(type='EarlyStoppingHook', monitor='coco/segm_mIoU')]",
            r"custom_hooks\.0\.monitor='coco/segm_mIoU' is no metric",
        ),
        (
            "param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='mAP')]",
            r"param_scheduler\.0\.monitor='mAP'",
        ),
        ('model = dict(roi_head=dict(mask_head=None))', r"metric has 'segm', .*metric='bbox'"),
    ],
)
def test_metrics_of_a_detector_that_are_not_there(text: str, message: str, tmp_path: Path) -> None:
    cfg = inheriting(tmp_path, text)
    init_default_scope('mmdet')
    with pytest.raises(ConfigError, match=message):
        config_checks.require_fitting_metrics(cfg, 'train', 'val')


def test_a_metric_whose_package_is_not_installed(tmp_path: Path, monkeypatch) -> None:
    cfg = inheriting(tmp_path, "val_evaluator = dict(type='FasterCocoMetric')")
    monkeypatch.setattr('mmhatnet.config_checks.metrics.find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='in val_evaluator .* pip install faster-coco-eval'):
        config_checks.require_fitting_metrics(cfg, 'train', 'val')


@pytest.mark.parametrize(
    ('base', 'names'),
    [
        (MASK_RCNN, ['coco/bbox_mAP', 'coco/segm_mAP_50', 'coco/kite_precision']),
        (SEMANTIC_FPN, ['mIoU', 'aAcc']),
        (CONFIGS / 'toy' / 'imagenet_hatnet_toy.py', ['accuracy/top1']),
    ],
)
def test_metrics_that_evaluators_report(base, names, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = f'default_hooks = dict(checkpoint=dict(save_best={names}))'
    if base == MASK_RCNN:
        text += '\nval_evaluator = dict(classwise=True, outfile_prefix="results")'
    cfg = inheriting(tmp_path, text, base)
    init_default_scope(cfg.default_scope)
    capsys.readouterr()
    config_checks.require_fitting_metrics(cfg, 'train', 'val')
    assert {*names} <= {*config_checks.metrics_of(cfg, 'val')}
    assert [path.name for path in tmp_path.iterdir()] == ['own.py']
    assert 'mAP' not in ''.join(capsys.readouterr())


def test_metrics_of_an_evaluator_of_the_user_are_unknown(tmp_path: Path) -> None:
    text = "val_evaluator = dict(_delete_=True, type='Own')\n"
    text += "default_hooks = dict(checkpoint=dict(save_best='own/metric', rule='less'))"
    config_checks.require_fitting_metrics(inheriting(tmp_path, text), 'train', 'val')


@pytest.mark.parametrize('evaluator', ['', 'test_evaluator = dict(format_only=True)'])
def test_a_segmentor_is_tested_on_images_without_masks(evaluator: str, tmp_path: Path) -> None:
    text = (
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n'
    )
    cfg = inheriting(tmp_path, text + evaluator, SEMANTIC_FPN)
    init_default_scope('mmseg')
    config_checks.require_fitting_metrics(cfg, 'train', 'val')
    if evaluator:
        config_checks.require_fitting_metrics(cfg, 'test')
        return
    with pytest.raises(ConfigError, match='test_dataloader loads no masks.*format_only=True'):
        config_checks.require_fitting_metrics(cfg, 'test')


DINO = CONFIGS / 'hatnet' / 'dino-4scale_hatnet-s_8xb2-12e_coco.py'
MASK2FORMER = CONFIGS / 'hatnet' / 'mask2former_hatnet-s_8xb2-lsj-50e_coco.py'


@pytest.mark.parametrize(
    ('base', 'text', 'message'),
    [
        (
            MASK_RCNN,
            'model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict(class_weight=[1.0] * 4))))',
            r'bbox_head\.loss_cls\.class_weight has 4 numbers, but num_classes=4 needs 5',
        ),
        (
            CONFIGS / 'toy' / 'imagenet_hatnet_toy.py',
            "model = dict(head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', "
            'class_weight=[1.0] * 7)))',
            r'head\.loss\.class_weight has 7 numbers, but num_classes=\d+ needs',
        ),
        (
            DINO,
            'model = dict(num_queries=50, bbox_head=dict(num_classes=4))',
            r'max_per_img=300, but 50 queries of 4 classes give 200 .*set it to 200 or less',
        ),
        (
            MASK2FORMER,
            'model = dict(panoptic_head=dict(num_queries=20), '
            'panoptic_fusion_head=dict(num_things_classes=3))',
            r'max_per_image=100, but 20 queries of 3 classes give 60',
        ),
        (
            SEMANTIC_FPN,
            "model = dict(test_cfg=dict(mode='slide', crop_size=128, stride=85))",
            r'needs two pairs, .*but crop_size is 128',
        ),
        (
            SEMANTIC_FPN,
            "model = dict(test_cfg=dict(mode='slide', crop_size=(128, 128)))",
            'but stride is None',
        ),
        (
            SEMANTIC_FPN,
            "model = dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(64, 65)))",
            r'stride=\(64, 65\) leaves gaps',
        ),
    ],
)
def test_heads_whose_settings_do_not_fit(base, text, message, tmp_path) -> None:
    cfg = inheriting(tmp_path, text, base)
    init_default_scope(cfg.default_scope)
    with pytest.raises(ConfigError, match=message):
        config_checks.require_fitting_heads(cfg)


@pytest.mark.parametrize(
    ('base', 'text'),
    [
        (
            MASK_RCNN,
            'model = dict(roi_head=dict(bbox_head=dict(loss_cls=dict(class_weight=[1.0] * 5))))',
        ),
        (DINO, 'model = dict(num_queries=75, bbox_head=dict(num_classes=4))'),
        (
            SEMANTIC_FPN,
            "model = dict(test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(64, 32)))",
        ),
    ],
)
def test_heads_whose_settings_fit(base: Path, text: str, tmp_path: Path) -> None:
    cfg = inheriting(tmp_path, text, base)
    init_default_scope(cfg.default_scope)
    config_checks.require_fitting_heads(cfg)


@pytest.mark.parametrize('transform', ['Mosaic', 'CachedMosaic'])
@pytest.mark.parametrize('masks', [True, False])
def test_transforms_that_move_no_masks(transform: str, masks: bool, tmp_path: Path) -> None:
    load = f"dict(type='LoadAnnotations', with_bbox=True, with_mask={masks})"
    text = (
        "train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', "
        f"dataset=dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile'), {load}]), "
        f"pipeline=[dict(type={transform!r}, img_scale=(128, 160)), dict(type='PackDetInputs')]))"
    )
    cfg = inheriting(tmp_path, text)
    init_default_scope('mmdet')
    if transform == 'Mosaic' and masks:
        with pytest.raises(ConfigError, match='Mosaic moves boxes but not masks: use CachedMosaic'):
            config_checks.require_masks_kept(cfg, 'train')
    else:
        config_checks.require_masks_kept(cfg, 'train')


@pytest.mark.parametrize('fixed', [True, False])
def test_batches_of_a_segmentor_have_one_shape(fixed, run_tool_captured, tmp_path) -> None:
    for number, size in enumerate([(160, 128), (128, 160)]):
        for folder, mode, suffix in (('images', 'RGB', 'jpg'), ('annotations', 'L', 'png')):
            path = tmp_path / folder / 'validation' / f'{number}.{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new(mode, size, 1).save(path)
    text = f'val_dataloader = dict(batch_size=2, dataset=dict(data_root={str(tmp_path)!r}))\n'
    if fixed:
        text += (
            '_base_.test_pipeline[1].keep_ratio = False\n'
            "val_dataloader['dataset']['pipeline'] = _base_.test_pipeline"
        )
    cfg = inheriting(tmp_path, text, SEMANTIC_FPN)
    init_default_scope('mmseg')
    if fixed:
        config_checks.require_equal_shapes(cfg, 'train', 'val')
        return
    done = run_tool_captured('train', tmp_path / 'own.py', '--work-dir', tmp_path / 'work')
    assert done.returncode == 1 and not (tmp_path / 'work').exists()
    assert 'batch_size=2, but images have the shapes (128, 160) ' in done.stderr


@pytest.mark.parametrize('path', [*TOY.values(), DINO, MASK2FORMER], ids=identify)
def test_nothing_is_refused_that_fits(path: Path, capsys) -> None:
    cfg = read_config(str(path))
    config_checks.require_known_settings(cfg, 'train', 'val', 'test')
    for check in (
        config_checks.require_masks_kept,
        config_checks.require_fitting_loops,
        config_checks.require_fitting_metrics,
    ):
        check(cfg, 'train', 'val', 'test')
    config_checks.require_fitting_heads(cfg)
    assert 'reads' not in ''.join(capsys.readouterr())


@pytest.mark.parametrize(
    ('base', 'text', 'message'),
    [
        (SEMANTIC_FPN, BY_EPOCH, 'never ends'),
        (
            MASK_RCNN,
            "default_hooks = dict(checkpoint=dict(save_best='bbox_mAP'))",
            'is no metric of val_evaluator',
        ),
        (SEMANTIC_FPN, "model = dict(test_cfg=dict(mode='slide'))", 'crop_size is None'),
        (
            MASK_RCNN,
            "_base_.train_dataloader.dataset.pipeline[2] = dict(type='RandomShift')\n"
            'train_dataloader = _base_.train_dataloader',
            'RandomShift moves boxes but not masks',
        ),
        (MASK_RCNN, "train_pipeline = [dict(type='LoadImageFromFile')]", 'nothing reads'),
    ],
)
def test_a_training_that_is_refused(base, text, message, run_tool_captured, tmp_path) -> None:
    inheriting(tmp_path, text, base)
    done = run_tool_captured('train', tmp_path / 'own.py', '--work-dir', tmp_path / 'work')
    assert done.returncode == 1 and not (tmp_path / 'work').exists()
    assert message in done.stderr

"""Applies the options of a test to its config: visualization, augmentation and dumps."""

import copy
import os

from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS, init_default_scope

from mmhatnet.config_walk import class_of, datasets_of
from mmhatnet.errors import ConfigError

DEFAULT_TTA_MODELS = dict(
    mmdet=dict(
        type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
    ),
    mmseg=dict(type='SegTTAModel'),
    mmpretrain=dict(type='AverageClsScoreTTA'),
)


def show_predictions(
    cfg: Config, show: bool = False, show_dir: str | None = None, wait_time: float = 2
) -> None:
    """Makes a test show its predictions in a window, write them to a folder, or both.

    Args:
        cfg (Config): The config, which is changed.
        show (bool): Whether to show a window.
        show_dir (str, optional): The folder.
        wait_time (float): Seconds that a window stays open.

    Raises:
        ConfigError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ConfigError(f'--show and --show-dir: {cfg.filename} has no visualization hook.')
    # The hooks of the frameworks name the same settings differently.
    hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True
    if hook.type == 'DetVisualizationHook':
        import mmhatnet.openmmlab.bounded_drawing  # noqa: F401, which needs MMDetection

        hook.type = 'BoundedDetVisualizationHook'
    # MMPretrain draws one image of 5000, and the original MMSegmentation one of 50.
    hook.update(show=show, wait_time=wait_time, interval=1)
    if show_dir:
        # MMDetection appends a relative folder to itself, image by image.
        folder = os.path.abspath(show_dir)
        if cfg.default_scope == 'mmseg':
            cfg.visualizer.save_dir = folder
        else:
            hook['test_out_dir' if cfg.default_scope == 'mmdet' else 'out_dir'] = folder


def _evaluators(cfg: Config) -> list[ConfigDict]:
    """Returns the evaluators of a test as a list."""
    given = cfg.test_evaluator
    return list(given) if isinstance(given, (list, tuple)) else [given]


def augment_tests(cfg: Config) -> None:
    """Makes a test merge the predictions for each image and its mirror image.

    Raises:
        ConfigError: If the test needs masks, which MMDetection does not merge.
    """
    if cfg.default_scope == 'mmdet' and any(
        'segm' in e.get('metric', []) for e in _evaluators(cfg)
    ):
        raise ConfigError(
            '--tta: MMDetection merges boxes but not masks; to test the boxes alone, add '
            '--cfg-options model.roi_head.mask_head=None test_evaluator.metric=bbox'
        )
    if 'tta_model' not in cfg:
        cfg.tta_model = DEFAULT_TTA_MODELS[cfg.default_scope]
    datasets = list(datasets_of(cfg, 'test'))
    if 'tta_pipeline' not in cfg:
        *transforms, pack = copy.deepcopy(datasets[0].pipeline)
        if cfg.default_scope == 'mmdet':
            pack.meta_keys = (*pack.meta_keys, 'flip', 'flip_direction')
        flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
        cfg.tta_pipeline = [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    for dataset in datasets:
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    _drop_averages(cfg)


def _drop_averages(cfg: Config) -> None:
    """Removes EMAHook. The weights of a checkpoint are the averages already.

    MMPretrain's looks for the averages under names that the model has without augmentation. It
    finds none, and tests random weights.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))

    def averages(hook: object) -> bool:
        found = class_of(HOOKS, hook) if isinstance(hook, dict) else None
        return bool(found and issubclass(found, EMAHook) and hook.get('evaluate_on_ema', True))

    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if averages(hook)]:
        del hooks[name]
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if not averages(hook)]


def dump_predictions(cfg: Config, out: str) -> None:
    """Makes a test write its predictions to a pickle file, or as label maps with MMSegmentation.

    Raises:
        ConfigError: If the name of the file is not that of a pickle file.
    """
    if cfg.default_scope == 'mmseg':
        for evaluator in _evaluators(cfg):
            if evaluator.type.endswith('IoUMetric'):
                evaluator.update(output_dir=out, keep_results=True)
        return
    if not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out}: the predictions are written to a .pkl or .pickle file.')
    dump = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*_evaluators(cfg), dict(type=dump, out_file_path=out)]

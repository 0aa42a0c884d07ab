"""The job of a command: its config, its checks before time is spent, its runner and its end."""

import argparse
import copy
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmhatnet.checkpoints.contents import allowed_content
from mmhatnet.checkpoints.files import force_weights_only
from mmhatnet.checkpoints.loading import without_pretrained
from mmhatnet.checkpoints.safe_loader import Checkpoint
from mmhatnet.cli.configs import expand_home, find_config, read_config
from mmhatnet.cli.options import merge_options, parse_settings
from mmhatnet.cli.screen import Screen, ScreenRunner
from mmhatnet.config_checks import (
    drop_worker_settings,
    report_long_schedules,
    require_batches,
    require_channels,
    require_equal_shapes,
    require_fitting_heads,
    require_fitting_loops,
    require_fitting_metrics,
    require_known_settings,
    require_masks_kept,
)
from mmhatnet.config_walk import datasets_of
from mmhatnet.data_checks import Report, require_sound_data
from mmhatnet.errors import ConfigError, DataError
from mmhatnet.openmmlab.config_inheritance import PREFIX
from mmhatnet.trackers import TrackedRunner
from mmhatnet.training.runner import ReliableTraining
from mmhatnet_cli.calls import command_line

# Settings of a single run, which a later training from the dumped config must not repeat.
OF_ONE_RUN = ('launcher', 'work_dir', 'load_from', 'resume', 'model_wrapper_cfg')

# Where to get the data, and the configs of the same jobs on synthetic data.
DATASET_HELP = {
    'CocoDataset': 'COCO 2017 is at https://cocodataset.org/#download',
    'ADE20KDataset': 'ADE20K is "Scene Parsing" at http://sceneparsing.csail.mit.edu',
    'ImageNet': 'ImageNet-1K (ILSVRC2012) is at https://www.image-net.org/download.php',
}
# The config that runs the same job on synthetic data, by the model's type or else by the scope.
TOY_CONFIGS = dict(
    RetinaNet='retinanet_hatnet_toy.py',
    mmdet='maskrcnn_hatnet_toy.py',
    mmseg='semfpn_hatnet_toy.py',
    mmpretrain='imagenet_hatnet_toy.py',
)


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config that the common options name, and applies their overrides.

    Settings of this run replace those of the config, which are kept as ``args.given``. The path of
    a config of this package replaces its name in ``args.config``.

    Raises:
        ConfigError: If the config cannot be read, or an option cannot be used.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    args.config = find_config(args.config)
    settings = parse_settings(args.cfg_options or ())
    cfg = read_config(args.config)
    if settings:
        merge_options(cfg, settings)
    expand_home(cfg)
    drop_worker_settings(cfg)
    args.given = {key: cfg[key] for key in OF_ONE_RUN if key in cfg}
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_cpu_processes(cfg)
    return cfg


def is_first_process(launcher: str) -> bool:
    """Returns whether this process is the first of its job. They need not be connected yet."""
    ranks = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
    return os.environ.get(ranks.get(launcher, ''), '0') == '0'


def find_device(name: str | None) -> str:
    """Returns the device that ``--device`` names, or by default a GPU if there is one.

    Raises:
        ConfigError: If it cannot be used.
    """
    device = name or get_device()
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0].partition(': ')[0].rstrip('.')
        raise ConfigError(
            f'--device {device} cannot be used ({reason}): leave it out, or name cpu.'
        ) from error
    return device


def build_runner(
    cfg: Config,
    args: argparse.Namespace,
    train: bool,
    start: Checkpoint | None = None,
    screen: Screen | None = None,
) -> Runner:
    """Builds the runner of a job.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The options that ``load_config`` has read.
        train (bool): Whether it trains. Its config is then written to the work folder, without the
            settings of this run alone. The file that it was read from is never overwritten.
        start (Checkpoint | None): The checkpoint from which the training starts or resumes.
            Defaults to None.
        screen (Screen | None): Decides what its logger shows. Defaults to None, which shows
            what MMEngine shows.

    Raises:
        ConfigError: If a class of the config does not know a setting.
    """
    recipe = copy.deepcopy(cfg)
    for key in OF_ONE_RUN:
        recipe.pop(key, None)
    recipe.update(args.given)
    if recipe.get('resume'):
        recipe.update(resume=False, load_from=None)
    if start:
        _start_from(cfg, start)
    target = Path(cfg.work_dir, Path(args.config).name)

    base = RUNNERS.get(cfg.get('runner_type', 'Runner'))

    class JobRunner(  # type: ignore[misc]
        ScreenRunner, TrackedRunner, *((ReliableTraining, base) if train else (base,))
    ):
        save_every = getattr(args, 'save_every', None)
        reapply_settings = getattr(args, 'reapply_settings', False)
        trackers = getattr(args, 'trackers', ())

        def dump_config(self) -> None:
            self.cfg = recipe  # checkpoints hold it as well

        @staticmethod
        def build_dataloader(*args, **kwargs) -> DataLoader:
            loader = base.build_dataloader(*args, **kwargs)
            require_batches(loader)
            return loader

        def build_param_scheduler(self, scheduler):
            report_long_schedules(scheduler, self.max_epochs, self.max_iters)
            return super().build_param_scheduler(scheduler)

        def load_or_resume(self) -> None:
            # Strategies such as DeepSpeed's read without MMEngine's loader.
            if strategy := getattr(self, 'strategy', None):
                resume = strategy.resume
                strategy.resume = lambda file, **options: allowed_content(
                    resume(file, **options), file
                )
            with force_weights_only():
                super().load_or_resume()
            # A training that cannot resume leaves the config of the earlier one.
            if train and target.resolve() != Path(args.config).resolve():
                super().dump_config()

    JobRunner.screen = screen
    return JobRunner.from_cfg(cfg)


def _start_from(cfg: Config, checkpoint: Checkpoint) -> None:
    """Changes a config of which the training starts or resumes from a checkpoint."""
    resumes = bool(cfg.get('resume'))
    without_pretrained(cfg.model, checkpoint, resumes)
    if resumes and cfg.get('randomness', {}).get('seed') is None:
        # The order of the data follows from the seed.
        cfg.randomness = dict(cfg.get('randomness', {}), seed=checkpoint.meta.get('seed'))


def require_writable(option: str, folder: str | Path) -> None:
    """Checks that a folder is writable or can be created, without creating it.

    Raises:
        ConfigError: If not.
    """
    there = next(path for path in (Path(folder), *Path(folder).parents) if os.path.lexists(path))
    try:
        TemporaryDirectory(dir=there).cleanup()
    except OSError as error:
        raise ConfigError(
            f'{option} {folder} cannot be written to ({error.strerror}: {there}); name a folder '
            'that is writable.'
        ) from error


def _join_cpu_processes(cfg: Config) -> None:
    """Initializes distributed training on CPUs, where MMEngine itself expects GPUs."""
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if backend != 'gloo':
        raise ConfigError(
            f'--launcher pytorch: the backend {backend} needs a GPU, and PyTorch finds none here; '
            'for processes on the CPU add --cfg-options env_cfg.dist_cfg.backend=gloo'
        )
    torch.distributed.init_process_group(backend)
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
    )


def require_sound_job(cfg: Config, args: argparse.Namespace, *splits: str) -> Report | None:
    """Runs all checks of a job that are possible before anything is built.

    Args:
        cfg (Config): The config.
        args (argparse.Namespace): The common options.
        splits (str): 'train', 'val' or 'test'.

    Returns:
        Report | None: What the data check found; None if this process makes none.

    Raises:
        ConfigError: If a setting cannot be used.
        DataError: If the data are missing or wrong.
    """
    require_writable('--work-dir', cfg.work_dir)
    require_datasets(cfg, *splits)
    require_known_settings(cfg, *splits)
    require_channels(cfg, *splits)
    require_fitting_heads(cfg)
    require_masks_kept(cfg, *splits)
    require_fitting_loops(cfg, *splits)
    require_fitting_metrics(cfg, *splits)
    if args.no_check:
        return None
    require_equal_shapes(cfg, *splits)
    # One process of a distributed job checks for all of them.
    return require_sound_data(cfg, *splits) if is_first_process(args.launcher) else None


def require_datasets(cfg: Config, *splits: str) -> None:
    """Checks that the files and folders of the splits exist.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        DataError: If a file or folder is missing.
    """
    for split in splits:
        for dataset in datasets_of(cfg, split):
            for path in _dataset_paths(dataset):
                if '://' in path or os.path.exists(path):
                    continue
                keys = (cfg.get('model', {}).get('type'), cfg.get('default_scope'), 'mmdet')
                toy_config = next(TOY_CONFIGS[key] for key in keys if key in TOY_CONFIGS)
                help_text = DATASET_HELP.get(dataset.get('type'), 'Put the data set there')
                toy = command_line('train', f'{PREFIX}toy/{toy_config}')
                raise DataError(
                    f'The {split} data are missing: {cfg.filename} looks for {path}. '
                    f'{help_text}; link or unpack it to {dataset.get("data_root") or path}, or '
                    'name your folder with --cfg-options '
                    f'{split}_dataloader.dataset.data_root=FOLDER. To run on synthetic data '
                    f'instead: {command_line("make-toy-data")} && {toy}'
                )


def _dataset_paths(dataset: ConfigDict) -> list[str]:
    """Returns the files and folders that a dataset reads."""
    prefix = dataset.get('data_prefix') or {}
    folders = list(prefix.values()) if isinstance(prefix, dict) else [prefix]
    if not folders and dataset.get('split'):
        folders = [dataset.split]
    return [
        os.path.join(dataset.get('data_root') or '', part)
        for part in (dataset.get('ann_file'), *folders)
        if part and isinstance(part, str)
    ]

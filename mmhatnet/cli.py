"""What the command-line tools share: their options, and checks before time is spent."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import torch
from mmengine.config import Config, ConfigDict, DictAction

# How to get the data, and the config that runs the same job on generated data.
DATASET_HELP = {
    'CocoDataset': 'COCO 2017 is at https://cocodataset.org/#download',
    'ADE20KDataset': 'ADE20K is "Scene Parsing" at http://sceneparsing.csail.mit.edu',
    'ImageNet': 'ImageNet-1K (ILSVRC2012) is at https://www.image-net.org/download.php',
}
TOY_CONFIGS = dict(
    mmdet='maskrcnn_hatnet_toy.py',
    mmseg='semfpn_hatnet_toy.py',
    mmpretrain='imagenet_hatnet_toy.py',
)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing have in common in all OpenMMLab projects."""
    parser.add_argument(
        '--work-dir',
        help='folder of logs and checkpoints (default: work_dirs/ and the config name)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that override the config: key=value, key="[a,b]" or key=a,b; quotation '
        'marks are needed around brackets, and no white space is allowed',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed job are started',
    )
    # Older launchers of PyTorch pass the rank as an option instead of an environment variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config that the common options name, with their overrides.

    Raises:
        SystemExit: If there is no such config.
    """
    if not Path(args.config).is_file():
        raise SystemExit(f'There is no config {args.config}: ours are in configs/.')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_cpu_processes(cfg)
    return cfg


def _join_cpu_processes(cfg: Config) -> None:
    """Joins the processes of a job on CPUs, for which MMEngine itself would choose GPUs."""
    backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
    if backend != 'gloo':
        raise SystemExit(
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


def require_checkpoint(path: str) -> None:
    """Checks that a local checkpoint exists.

    Raises:
        SystemExit: If it does not.
    """
    if '://' not in path and not Path(path).is_file():
        raise SystemExit(
            f'There is no checkpoint {path}: tools/train.py writes them to work_dirs/, and the '
            'README says where the published ones are.'
        )


def require_datasets(cfg: Config, *splits: str) -> None:
    """Checks that the data of some splits exist where the config looks for them.

    Args:
        cfg (Config): The config.
        splits (str): 'train', 'val' or 'test'.

    Raises:
        SystemExit: If a file or folder is missing.
    """
    for split in splits:
        for dataset in _find(cfg.get(f'{split}_dataloader') or {}, lambda d: 'data_root' in d):
            for path in _dataset_paths(dataset):
                if '://' in path or os.path.exists(path):
                    continue
                toy_config = f'{Path(cfg.filename).stem}_toy.py'
                if not Path(cfg.filename).with_name('toy').joinpath(toy_config).exists():
                    toy_config = TOY_CONFIGS.get(cfg.default_scope, TOY_CONFIGS['mmdet'])
                raise SystemExit(
                    f'The {split} data are missing: {cfg.filename} looks for {path}. '
                    f'{DATASET_HELP.get(dataset.type, "Put the data set there")}; link or unpack '
                    f'it to {dataset.data_root}, or name your folder with --cfg-options '
                    f'{split}_dataloader.dataset.data_root=FOLDER. To run on generated data '
                    'instead: python tools/make_toy_data.py && python tools/train.py '
                    f'configs/toy/{toy_config}'
                )


def require_pretrained(cfg: Config) -> None:
    """Checks that the pretrained weights which the config names can be had, and downloads them.

    Raises:
        SystemExit: If a local file is missing or a download fails.
    """
    # The other processes of a node find in the cache what its first one has downloaded.
    if os.environ['LOCAL_RANK'] != '0':
        return
    for init_cfg in _find(cfg.model, lambda d: d.get('type') == 'Pretrained'):
        if init_cfg.checkpoint.startswith(('http://', 'https://')):
            fetch_weights(
                init_cfg.checkpoint,
                '--cfg-options model.backbone.init_cfg.checkpoint=FILE, or start from random '
                'weights with --cfg-options model.backbone.init_cfg=None',
            )
        else:
            require_checkpoint(init_cfg.checkpoint)


def fetch_weights(url: str, way_out: str) -> Path:
    """Downloads weights, unless they are there, to where PyTorch and MMEngine look for them.

    Args:
        url (str): Where they are.
        way_out (str): The option of the tool that names a file instead.

    Raises:
        SystemExit: If they cannot be downloaded, or the file is damaged or holds more than weights,
            which is not executed. Such a download is not kept.
    """
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(urlsplit(url).path).name)
    try:
        if path.is_file():
            torch.load(path, map_location='cpu', weights_only=True)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        # PyTorch takes a connection that breaks off for the end of the file.
        with TemporaryDirectory(dir=path.parent) as folder:
            download = Path(folder, path.name)
            torch.hub.download_url_to_file(url, str(download))
            torch.load(download, map_location='cpu', weights_only=True)
            download.replace(path)
        return path
    except Exception as error:  # there is no end to the ways in which a file can be damaged
        reason = error if isinstance(error, OSError) else 'damaged, or more than weights'
        remedy = f'delete {path}, or ' if path.is_file() else ''
        raise SystemExit(
            f'The weights {url} could not be downloaded ({reason}): {remedy}download the file '
            f'where there is a network and name it with {way_out}'
        ) from error


def _find(cfg: ConfigDict, wanted) -> Iterator[ConfigDict]:
    """Yields the dicts anywhere inside a config for which ``wanted`` holds."""
    if isinstance(cfg, dict):
        if wanted(cfg):
            yield cfg
        cfg = cfg.values()
    elif not isinstance(cfg, (list, tuple)):
        return
    for value in cfg:
        yield from _find(value, wanted)


def _dataset_paths(dataset: ConfigDict) -> list[str]:
    """The files and folders that one dataset reads."""
    prefix = dataset.get('data_prefix') or {}
    folders = list(prefix.values()) if isinstance(prefix, dict) else [prefix]
    if not folders and dataset.get('split'):
        folders = [dataset.split]
    return [
        os.path.join(dataset.data_root or '', part)
        for part in (dataset.get('ann_file'), *folders)
        if part
    ]

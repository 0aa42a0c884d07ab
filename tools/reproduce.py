"""Repeats an experiment with the published weights, and prints the paper's result beside its own.

    python tools/reproduce.py --list
    python tools/reproduce.py imagenet_hatnet_tiny        # tests the published classifier
    python tools/reproduce.py maskrcnn_hatnet --gpus 8    # trains from the published backbone

An interrupted download or training goes on when the same command is given again.
"""

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmhatnet import HATNet, cli
from mmhatnet.backbones.checkpoint import check_architecture, to_native_keys
from mmhatnet.download import download

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'
RELEASE = 'https://github.com/yun-liu/HAT-Net/releases/download/v2.0'
IN_PAPER = r'(imagenet|maskrcnn|retinanet|semfpn)_hatnet(?:_(tiny|medium|large))?(?:_fsdp)?'
PAPER_TOP1 = dict(tiny=79.8, small=82.6, medium=84.0, large=84.2)
# What the frameworks call the results that the paper has, and the factors that make them per cent.
METRICS = {'accuracy/top1': 1, 'coco/bbox_mAP': 100, 'coco/segm_mAP': 100, 'mIoU': 1}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('experiment', nargs='?', help='the name of a config in configs/, without .py')
    what.add_argument('--list', action='store_true', help='list the experiments')
    parser.add_argument('--checkpoint', help='the published weights, if they are already here')
    parser.add_argument('--gpus', type=int, default=1, help='processes to start, one for each GPU')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='as in tools/train.py')
    parser.add_argument('--dry-run', action='store_true', help='only print what would be run')
    return parser.parse_args()


def paper_result(experiment: str) -> str:
    match = re.fullmatch(IN_PAPER, experiment)
    if not match:
        return 'not in the paper'
    job, arch = match.groups()
    return str(PAPER_TOP1[arch or 'small']) if job == 'imagenet' else 'see the paper'


def load_experiment(args: argparse.Namespace) -> Config:
    options = argparse.ArgumentParser()
    cli.add_common_options(options)
    given = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    namespace = options.parse_args(given)
    namespace.work_dir = args.work_dir or str(Path('work_dirs', 'reproduce', args.experiment))
    namespace.config = str(CONFIGS / f'{args.experiment}.py')
    if not Path(namespace.config).is_file():
        raise SystemExit(f'There is no experiment {args.experiment}: --list names them all.')
    return cli.load_config(namespace)


def cached(arch: str) -> Path:
    # Where torch.hub, and with it MMEngine, looks for the file of the same URL.
    return Path(torch.hub.get_dir(), 'checkpoints', f'HAT-Net_{arch.capitalize()}.pth')


def fetch(arch: str) -> None:
    """Downloads the published checkpoint of a variant into the cache, unless it is there.

    Raises:
        ConnectionError: If it cannot be downloaded.
        ValueError: If it is not what it should be.
    """
    path = cached(arch)
    if path.is_file():
        check_weights(path, arch)
    else:
        # Only what has been checked gets the name under which others would read it.
        unchecked = path.with_name(f'{path.name}.unchecked')
        download(f'{RELEASE}/{path.name}', unchecked)
        check_weights(unchecked, arch)
        unchecked.replace(path)

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record, line = path.with_name(f'{path.name}.sha256'), f'{digest}  {path.name}\n'
    if record.is_file() and record.read_text() != line:
        raise ValueError(
            f'{path} has changed since it was downloaded: its sha256 is {digest}, and {record} '
            'holds another one.'
        )
    record.write_text(line)
    print(f'{path} has the sha256 {digest}')


def check_weights(path: Path, arch: str) -> None:
    """Checks that a file holds the whole published classifier of a variant, executing nothing.

    Raises:
        ValueError: If it holds anything else.
    """
    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)
        to_native_keys(weights)
    except Exception as error:  # there is no end to the ways in which a file can be damaged
        raise ValueError(
            f'{path} is damaged, or holds more than weights (which was not executed).'
        ) from error
    backbone = HATNet(arch)
    check_architecture(weights, '', backbone.state_dict())
    shapes = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    shapes['classifier.1.weight'] = (1000, backbone.out_channels[-1])
    shapes['classifier.1.bias'] = (1000,)
    differing = sorted(
        key
        for key in {*shapes, *weights}
        if key not in shapes or key not in weights or weights[key].shape != shapes[key]
    )
    if differing:
        raise ValueError(
            f'{path} is not the published HAT-Net {arch!r}, from which it differs in '
            f'{differing[0]} ({len(differing)} differences).'
        )


def command(tool: str, gpus: int, *arguments: object) -> list[str]:
    python, launcher = [sys.executable], []
    if gpus > 1:
        python += ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={gpus}']
        launcher = ['--launcher', 'pytorch']
    return [*python, str(TOOLS / f'{tool}.py'), *map(str, arguments), *launcher]


def preparation(args: argparse.Namespace, cfg: Config, checkpoint: Path) -> list[str]:
    """The command that makes of the published weights what can be tested."""
    if cfg.default_scope == 'mmpretrain':
        converted = Path(cfg.work_dir, 'published.pth')
        return command('convert_checkpoint', 1, '--classifier', checkpoint, converted)
    # The learning rates of the configs are for the batch sizes of their numbers of GPUs.
    options = ['--work-dir', cfg.work_dir, '--auto-scale-lr', '--resume', '--cfg-options']
    options += [f'model.backbone.init_cfg.checkpoint={checkpoint}', *args.cfg_options]
    return command('train', args.gpus, cfg.filename, *options)


def evaluation(args: argparse.Namespace, cfg: Config, checkpoint: str) -> list[str]:
    """The command that tests a checkpoint."""
    options = ['--work-dir', Path(cfg.work_dir, 'test')]
    if args.cfg_options:
        options += ['--cfg-options', *args.cfg_options]
    return command('test', args.gpus, cfg.filename, checkpoint, *options)


def run(words: list[str]) -> None:
    print(shlex.join(words), flush=True)
    if status := subprocess.call(words):
        raise SystemExit(f'This failed with status {status}: {shlex.join(words)}')


def show_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    args = parse_args()
    if args.list:
        names = [path.stem for path in sorted(CONFIGS.glob('*_hatnet*.py'))]
        show_table(('experiment', 'paper'), [(name, paper_result(name)) for name in names])
        return

    cfg = load_experiment(args)
    is_classifier = cfg.default_scope == 'mmpretrain'
    arch = cfg.model.backbone.arch
    checkpoint = Path(args.checkpoint) if args.checkpoint else cached(arch)
    last = Path(cfg.work_dir, 'published.pth' if is_classifier else 'last_checkpoint')
    if args.dry_run:
        if not args.checkpoint and not checkpoint.is_file():
            print(f'# {checkpoint} is downloaded from {RELEASE}')
        print(shlex.join(preparation(args, cfg, checkpoint)))
        if not is_classifier:
            print(f'# CHECKPOINT is the one that {last} names')
        print(shlex.join(evaluation(args, cfg, str(last) if is_classifier else 'CHECKPOINT')))
        return

    cli.require_datasets(cfg, *(['test'] if is_classifier else ['train', 'val', 'test']))
    try:
        if args.checkpoint:
            cli.require_checkpoint(args.checkpoint)
            check_weights(checkpoint, arch)
        else:
            fetch(arch)
    except ConnectionError as error:
        raise SystemExit(f'{error} A file from elsewhere: --checkpoint FILE.') from error
    except ValueError as error:
        raise SystemExit(f'{error} Delete it, or name another one: --checkpoint FILE.') from error
    run(preparation(args, cfg, checkpoint))
    run(evaluation(args, cfg, str(last) if is_classifier else last.read_text()))
    results = max(
        Path(cfg.work_dir, 'test').glob('*/*.json'), key=lambda path: path.stat().st_mtime
    )
    measured = json.loads(results.read_text())
    rows = [
        (name, paper_result(args.experiment), f'{measured[name] * factor:.1f}')
        for name, factor in METRICS.items()
        if name in measured
    ]
    if not rows:
        raise SystemExit(f'The test has no result: its log is in {results.parent}.')
    show_table(('metric', 'paper', 'measured'), rows)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('Interrupted. The same command goes on from here.')

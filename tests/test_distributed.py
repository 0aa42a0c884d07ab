"""Two processes with DDP or FSDP give the same as one process with the combined batch."""

import copy
import os
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.registry import MODEL_WRAPPERS
from mmengine.runner import Runner
from processes import Script
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from mmhatnet import HATNet, cli
from mmhatnet.backbones.hatnet import Block
from mmhatnet.cli.train import apply_options
from mmhatnet.errors import ConfigError
from mmhatnet.openmmlab.fsdp import ResumableFSDPStrategy

ROOT = Path(__file__).parents[1]
CONFIGS, TOOLS = ROOT / 'configs', ROOT / 'tools'
SMALL_ARCH = dict(embed_dims=(16, 16, 32, 32), head_dim=16, depths=(1, 1, 2, 1))
# Stages have two or three windows or cells along a side, and incomplete ones at the edge.
IMAGE_SIZE = (70, 90)
ENTRY_CONFIGS = ('maskrcnn', 'retinanet', 'semfpn', 'imagenet')
# Training must not depend on which process sees an image, so it has no random augmentation and no
# dropout, an optimizer that is continuous in the gradient, and neither of the two settings that
# have another meaning under FSDP.
TOY_JOB = f"""
_base_ = {str(CONFIGS / 'toy' / 'imagenet_hatnet_toy.py')!r}
model = dict(
    backbone=dict(_delete_=True, type='HATNet', arch={SMALL_ARCH}, out_indices=(3,)),
    head=dict(in_channels=32, dropout_rate=0.0),
)
train_dataloader = dict(
    batch_size=BATCH_SIZE, num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=_base_.test_pipeline, indices=16),
)
train_cfg = dict(max_epochs=2)
param_scheduler = None
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='SGD', lr=0.1, momentum=0.9, weight_decay=0.05),
    clip_grad=None, paramwise_cfg=dict(flat_decay_mult=1.0),
)
randomness = dict(seed=0)
auto_scale_lr = dict(base_batch_size=8)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
"""
FSDP = f"""
from mmengine.config import Config
fsdp = Config.fromfile({str(CONFIGS / 'hatnet' / 'mask-rcnn_hatnet-l_fpn_fsdp-1x_coco.py')!r})
custom_imports = dict(imports=[*fsdp.custom_imports.imports, 'mmhatnet.openmmlab.cls_head'])
runner_type, strategy = fsdp.runner_type, fsdp.strategy
strategy.model_wrapper.device_id = 'cpu'
# With 'full', PyTorch frees parameters on the CPU, because it assumes that it has copied them.
strategy.state_dict_cfg = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig'),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
)
del Config, fsdp
"""


@pytest.fixture(scope='module')
def of_two_processes(tmp_path_factory) -> list[dict]:
    """Returns the measurements of two processes, which start once for several tests."""
    folder = tmp_path_factory.mktemp('two')
    mp.start_processes(measure, (folder,), nprocs=2, start_method='forkserver')
    return [torch.load(folder / f'{rank}.pth', weights_only=False) for rank in range(2)]


def measure(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    measured = dict(gradients=gradients_of_one_image(), unused=unused_parameters(), shards=shards())
    torch.save(measured, folder / f'{rank}.pth')
    dist.destroy_process_group()


def free_port() -> str:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


def launch(script: str, *args: object, cwd: Path) -> subprocess.CompletedProcess:
    """Runs a shell script of tools/ with the Python of the tests."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    variables = dict(PATH=path, PORT=free_port(), CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    return subprocess.run(
        ['bash', TOOLS / script, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def images() -> Tensor:
    return torch.randn(2, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of a loss: a mean over images of differently weighted features."""
    model.zero_grad()
    features = model(batch)
    weights = torch.Generator().manual_seed(2)
    sum(
        (feature * torch.randn(feature.shape[1:], generator=weights)).mean() for feature in features
    ).backward()
    return {name.removeprefix('module.'): p.grad for name, p in model.named_parameters()}


def initialized_model() -> HATNet:
    torch.manual_seed(0)
    model = HATNet('tiny')
    model.init_weights()
    return model


def gradients_of_one_image() -> dict[str, Tensor]:
    model = DistributedDataParallel(initialized_model())
    return gradients(model, images()[dist.get_rank()].unsqueeze(0))


def test_gradients_equal_those_of_the_combined_batch(of_two_processes: list[dict]) -> None:
    expected = gradients(initialized_model(), images())
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    differences = {}
    for measured in of_two_processes:
        assert measured['gradients'].keys() == expected.keys()
        for name, gradient in expected.items():
            difference = (measured['gradients'][name] - gradient).abs().max() / gradient.abs().max()
            differences[name] = max(differences.get(name, 0), difference.item())
    worst = max(differences, key=differences.get)
    print(f'largest relative difference of a gradient: {differences[worst]:.1e} of {worst}')
    assert differences[worst] < 1e-4


def unused_parameters() -> dict[tuple, list[str]]:
    unused = {}
    for out_indices in ((0,), (1,), (2,), (3,), (1, 3), (0, 1, 2, 3)):
        for frozen_stages in range(-1, max(out_indices) + 1):
            for with_cp in (False, True):
                settings = (out_indices, frozen_stages, with_cp)
                model = HATNet(
                    SMALL_ARCH,
                    out_indices=out_indices,
                    frozen_stages=frozen_stages,
                    with_cp=with_cp,
                )
                parallel = DistributedDataParallel(model)
                # DDP reports unused parameters of the first forward pass in the second one.
                for _ in range(2):
                    gradients(parallel, images()[:1, :, :40, :56])
                unused[settings] = [
                    name
                    for name, parameter in model.named_parameters()
                    if parameter.requires_grad and parameter.grad is None
                ]
    return unused


def test_no_parameter_is_unused(of_two_processes: list[dict]) -> None:
    for measured in of_two_processes:
        assert len(measured['unused']) == 2 * (2 + 3 + 4 + 5 + 5 + 5)
        assert not any(measured['unused'].values())


def shards() -> dict:
    cfg = Config.fromfile(CONFIGS / 'hatnet' / 'mask-rcnn_hatnet-l_fpn_fsdp-1x_coco.py')
    assert 'clip_grad' not in cfg.optim_wrapper and 'paramwise_cfg' not in cfg.optim_wrapper
    model = HATNet(SMALL_ARCH)
    total = sum(parameter.numel() for parameter in model.parameters())
    sharded = MODEL_WRAPPERS.build(
        cfg.strategy.model_wrapper, default_args=dict(module=model, device_id='cpu')
    )
    units = [m for m in sharded.modules() if isinstance(m, FullyShardedDataParallel)]
    held = sum(parameter.numel() for parameter in sharded.parameters())
    return dict(units=[type(unit.module).__name__ for unit in units], held=held, total=total)


def test_fsdp_config_shards_blocks(of_two_processes: list[dict]) -> None:
    first, second = (measured['shards'] for measured in of_two_processes)
    assert first['units'] == second['units'] == ['HATNet'] + [Block.__name__] * 5
    assert first['held'] + second['held'] == first['total']
    assert first['held'] == pytest.approx(first['total'] / 2, rel=0.01)


def weights(checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(checkpoint, weights_only=False)['state_dict']


def train_in_two_processes(*args: object, config: Path, work_dir: Path, cwd: Path) -> str:
    """Trains without a launcher, which takes longer than the training, and returns the log."""
    variables = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    words = [TOOLS / 'train.py', config, '--work-dir', work_dir, '--auto-scale-lr', *args]
    scripts = [
        Script(
            *(*words, '--launcher', 'pytorch'),
            log=config.with_suffix(f'.{rank}'),
            cwd=cwd,
            **dict(variables, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(2)
    ]
    for script in scripts:
        script.wait()
    return sorted(work_dir.glob('*/*.log'))[-1].read_text()


@pytest.fixture
def trained_by_one(run_tool, tmp_path: Path) -> dict[str, Tensor]:
    config, work_dir = tmp_path / 'one.py', tmp_path / 'one'
    config.write_text(TOY_JOB.replace('BATCH_SIZE', '4'))
    run_tool('train', config, '--work-dir', work_dir, '--auto-scale-lr')
    return weights(work_dir / 'epoch_2.pth')


@pytest.fixture
def config_for_two(tmp_path: Path) -> Path:
    config = tmp_path / 'two.py'
    config.write_text(TOY_JOB.replace('BATCH_SIZE', '2'))
    return config


def assert_same_weights(trained: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert trained.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_ddp_trains_as_one_process_does(
    trained_by_one, config_for_two: Path, toy_data: Path, tmp_path: Path
) -> None:
    work_dir = tmp_path / 'two'
    train = ['dist_train.sh', config_for_two, 2, '--work-dir', work_dir, '--auto-scale-lr']
    process = launch(*train, cwd=toy_data)
    assert process.returncode == 0, process.stderr[-3000:]
    assert 'Scaling the original LR by 0.5.' in next(work_dir.glob('*/*.log')).read_text()
    checkpoint = work_dir / 'epoch_2.pth'
    assert_same_weights(weights(checkpoint), trained_by_one)

    test = ['dist_test.sh', config_for_two, checkpoint, 2, '--work-dir', tmp_path / 'test']
    process = launch(*test, cwd=toy_data)
    assert process.returncode == 0, process.stderr[-3000:]
    (results,) = tmp_path.glob('test/*/*.json')
    assert 'accuracy/top1' in results.read_text()


@pytest.mark.slow
def test_fsdp_trains_and_resumes_as_one_process_does(
    trained_by_one, config_for_two: Path, toy_data: Path, tmp_path: Path
) -> None:
    config_for_two.write_text(config_for_two.read_text() + FSDP)
    job = dict(config=config_for_two, work_dir=tmp_path / 'two', cwd=toy_data)
    train_in_two_processes('--cfg-options', 'train_cfg.max_epochs=1', **job)
    log = train_in_two_processes('--resume', **job)
    assert 'resumed epoch: 1, iter: 4' in log and 'Scaling the original LR by 0.5.' in log
    assert_same_weights(weights(tmp_path / 'two' / 'epoch_2.pth'), trained_by_one)


def test_without_gpu_another_backend_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    args = Namespace(
        config=str(CONFIGS / 'maskrcnn_hatnet.py'),
        launcher='pytorch',
        local_rank=0,
        cfg_options=None,
        work_dir=None,
    )
    message = 'nccl needs a GPU.*--cfg-options env_cfg.dist_cfg.backend=gloo'
    with pytest.raises(ConfigError, match=message):
        cli.load_config(args)


def test_fsdp_without_launcher_is_refused() -> None:
    with pytest.raises(ValueError, match='torchrun --nproc-per-node GPUS -m mmhatnet train CONFIG'):
        ResumableFSDPStrategy(env_kwargs=dict(launcher='none'))


@pytest.mark.parametrize('job', ENTRY_CONFIGS)
def test_auto_scale_lr(job: str, tmp_path: Path, caplog) -> None:
    cfg = Config.fromfile(CONFIGS / f'{job}_hatnet.py')
    options = Namespace(amp=False, auto_scale_lr=True, resume=None, config=cfg.filename)
    apply_options(cfg, options)
    cfg.work_dir = str(tmp_path)
    runner = Runner.from_cfg(cfg)
    optim_wrapper = runner.build_optim_wrapper(copy.deepcopy(cfg.optim_wrapper))
    runner.scale_lr(optim_wrapper, runner.auto_scale_lr)
    # One process has the batch size of each of the recipe's 8 or 4 processes.
    ratio = 1 / 4 if job == 'semfpn' else 1 / 8
    assert f'Scaling the original LR by {ratio}.' in next(tmp_path.glob('*/*.log')).read_text()
    rates = {group['lr'] for group in optim_wrapper.optimizer.param_groups}
    assert rates == {cfg.optim_wrapper.optimizer.lr * ratio}


@pytest.mark.parametrize(
    ('script', 'arguments', 'tool'),
    [
        ('slurm_train.sh', ['config.py', 'a folder'], 'train.py config.py --work-dir a folder'),
        ('slurm_test.sh', ['config.py', 'model.pth'], 'test.py config.py model.pth'),
    ],
)
def test_slurm_command(script: str, arguments: list, tool: str, tmp_path: Path) -> None:
    """A substitute for srun prints its arguments, so the test needs no Slurm."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    process = subprocess.run(
        ['bash', TOOLS / script, 'gpus', 'hatnet', *arguments, '--cfg-options', 'a=[1, 2]'],
        env=dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='4', SRUN_ARGS='--quiet -t 10'),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    words = process.stdout.splitlines()
    for option in ('--partition=gpus', '--job-name=hatnet', '--ntasks=4', '--gres=gpu:4'):
        assert option in words
    assert words[words.index('--quiet') :] == [
        *('--quiet', '-t', '10', 'python', '-u'),
        *(f'{TOOLS}/{script.removeprefix("slurm_").removesuffix(".sh")}.py', *arguments[:1]),
        *(['--work-dir'] if 'train' in script else []),
        *(*arguments[1:], '--launcher', 'slurm', '--cfg-options', 'a=[1, 2]'),
    ]


@pytest.mark.parametrize('script', sorted(TOOLS.glob('*_t*.sh')), ids=lambda path: path.stem)
def test_missing_arguments(script: Path, tmp_path: Path) -> None:
    process = launch(script.name, 'config.py', cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.startswith('Usage: ')

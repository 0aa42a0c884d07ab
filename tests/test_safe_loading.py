"""Nothing in a checkpoint is executed, however MMEngine reads it, and a job reads it once."""

import pickle
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace

import pytest
import torch
from experiments import as_text, made_small
from mmengine._strategy import SingleDeviceStrategy
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import DATASETS, MODELS, STRATEGIES
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn
from torch.utils.data import Dataset

from mmhatnet import HATNet, cli
from mmhatnet.checkpoints.loading import verify_start
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.errors import CheckpointError

TOY = Path(__file__).parents[1] / 'configs' / 'toy'


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def save_zip(content: dict, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: dict, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.fixture(autouse=True)
def unsafe_environment(monkeypatch) -> None:
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[str]:
    """Serves ``tmp_path`` and yields its address."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp_path)) as http:
        Thread(target=http.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{http.server_port}'
        http.shutdown()


@pytest.fixture
def address(server: str, tmp_path: Path, monkeypatch) -> Callable[[str], str]:
    """Returns the address by which a scheme reads ``tmp_path / 'file.pth'``."""
    path, url = tmp_path / 'file.pth', f'{server}/file.pth'
    names = dict(net=url, local=str(path))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'home'))
    for table in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(mmengine_checkpoint, table, lambda: names)
    monkeypatch.setattr(
        mmengine_checkpoint,
        'get_file_backend',
        lambda *args, **kwargs: SimpleNamespace(get=lambda name: path.read_bytes()),
    )
    pavi = ModuleType('pavi')
    remote = SimpleNamespace(
        name='file.pth', download=lambda target: Path(target).write_bytes(path.read_bytes())
    )
    pavi.modelcloud = SimpleNamespace(get=lambda name: remote)
    monkeypatch.setitem(sys.modules, 'pavi', pavi)

    def load_from_own_scheme(filename: str, map_location: object = None) -> dict:
        return torch.load(path, map_location=map_location, weights_only=False)

    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('own:', load_from_own_scheme)
    places = dict(local=str(path), http=url)
    return lambda scheme: places.get(scheme, scheme)


SCHEMES = [
    *('local', 'http', 'torchvision://net', 'modelzoo://net', 'openmmlab://net'),
    *('open-mmlab://local', 's3://file.pth', 'petrel://file.pth', 'pavi://file.pth', 'own:x'),
]


@pytest.mark.parametrize('scheme', [*SCHEMES, 'mmcls://net'])
@pytest.mark.parametrize('save', [save_zip, save_legacy, save_pickle])
def test_no_scheme_executes_a_checkpoint(scheme, save, address, tmp_path) -> None:
    trace = tmp_path / 'executed'
    save({'state_dict': {}, 'meta': Malicious(trace)}, tmp_path / 'file.pth')
    with (
        load_weights_only(),
        pytest.raises(CheckpointError, match='torch.save|downloaded|weights alone') as caught,
    ):
        load_checkpoint(nn.Linear(1, 1), address(scheme))
    assert 'file.pth' in str(caught.value) or scheme in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize('scheme', SCHEMES)
def test_every_scheme_reads_a_training(scheme, address, tmp_path) -> None:
    source, model = nn.Linear(1, 1), nn.Linear(1, 1)
    hub = {'log_scalars': {'loss': HistoryBuffer([0.5], [1])}}
    torch.save({'state_dict': source.state_dict(), 'message_hub': hub}, tmp_path / 'file.pth')
    with load_weights_only():
        read = load_checkpoint(model, address(scheme))
    assert torch.equal(model.weight, source.weight)
    assert read['message_hub']['log_scalars']['loss'].current() == 0.5


def test_malicious_checkpoints_are_executed_without_the_context(address, tmp_path) -> None:
    """The tests above can fail."""
    trace = tmp_path / 'executed'
    save_zip({'state_dict': {}, 'meta': Malicious(trace)}, tmp_path / 'file.pth')
    load_checkpoint(nn.Linear(1, 1), address('own:x'))
    assert trace.exists()


def test_the_context_lasts_until_its_last_user_leaves(tmp_path) -> None:
    before = CheckpointLoader.__dict__['load_checkpoint']
    first, second = load_weights_only(), load_weights_only()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as in another thread
    save_pickle({'meta': Malicious(tmp_path / 'executed')}, tmp_path / 'file.pth')
    with pytest.raises(CheckpointError):
        load_checkpoint(nn.Linear(1, 1), str(tmp_path / 'file.pth'))
    second.__exit__(None, None, None)
    assert not (tmp_path / 'executed').exists()
    assert CheckpointLoader.__dict__['load_checkpoint'] == before


@MODELS.register_module()
class SafeHead(BaseModule):
    def __init__(self, init_cfg: dict | list | None = None) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(1, 1)


@MODELS.register_module()
class SafeModel(BaseModel):
    """Has a head and, as in distillation, a teacher that loads weights during construction."""

    def __init__(self, init_cfg: dict | None = None, head: dict | None = None, teacher: str = ''):
        super().__init__(init_cfg=init_cfg)
        self.head = MODELS.build(head or dict(type='SafeHead'))
        if teacher:
            load_checkpoint(SafeHead(), teacher)

    def forward(self, inputs: list[torch.Tensor], mode: str = 'tensor') -> dict:
        return dict(loss=self.head.fc(torch.stack(inputs)).square().mean())


class Record:
    """A class of a user, which PyTorch's weights-only reader does not know."""

    value = 2.0


@DATASETS.register_module()
class RecordDataset(Dataset):
    """Reads its samples with pickle, which a dataset may do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.tensor([torch.load(self.path, weights_only=False).value]))


@STRATEGIES.register_module()
class OwnReader(SingleDeviceStrategy):
    """Reads checkpoints without MMEngine's loader, as MMEngine's DeepSpeedStrategy does."""

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        return torch.load(filename, weights_only=False)


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Runner]:
    """Trains a tiny model as tools/train.py does."""
    torch.save(Record(), tmp_path / 'record.pt')
    dataset = dict(type='RecordDataset', path=str(tmp_path / 'record.pt'))

    def run(*checkpoints: Checkpoint, workers: int = 0, epochs: int = 1, **changes) -> Runner:
        loader = dict(num_workers=workers, persistent_workers=workers > 0, batch_size=1)
        cfg = Config(
            dict(
                default_scope='mmengine',
                work_dir=str(tmp_path / 'work'),
                model=dict(type='SafeModel'),
                train_dataloader=dict(
                    dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False), **loader
                ),
                train_cfg=dict(by_epoch=True, max_epochs=epochs),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
                env_cfg=dict(cudnn_benchmark=False),
                randomness=dict(seed=0),
            )
        )
        cfg.merge_from_dict(changes)
        with load_weights_only(*checkpoints):
            runner = cli.build_runner(cfg, Namespace(config='none.py', given={}), train=False)
            runner.train()
        return runner

    return run


PRETRAINED = dict(type='Pretrained', checkpoint='file.pth')
FLEXIBLE = dict(runner_type='FlexibleRunner', load_from='file.pth')


@pytest.mark.parametrize(
    'changes',
    [
        dict(load_from='file.pth'),
        dict(load_from='file.pth', resume=True),
        dict(load_from='file.pth', custom_hooks=[dict(type='EMAHook')]),
        dict(model=dict(init_cfg=PRETRAINED)),
        dict(model=dict(head=dict(type='SafeHead', init_cfg=PRETRAINED))),
        dict(model=dict(head=dict(type='SafeHead', init_cfg=[dict(PRETRAINED, prefix='a')]))),
        dict(model=dict(head=dict(type='HATNet', init_cfg=PRETRAINED))),
        dict(model=dict(teacher='file.pth')),
        dict(FLEXIBLE, strategy=dict(type='SingleDeviceStrategy')),
        dict(FLEXIBLE, strategy=dict(type='SingleDeviceStrategy'), resume=True),
        dict(FLEXIBLE, strategy=dict(type='OwnReader')),
        dict(FLEXIBLE, strategy=dict(type='OwnReader'), resume=True),
    ],
    ids=repr,
)
def test_no_part_of_a_job_executes_a_checkpoint(changes, train, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_zip({'state_dict': {'a.b': Malicious(tmp_path / 'executed')}}, Path('file.pth'))
    with pytest.raises((CheckpointError, pickle.UnpicklingError), match='file.pth holds|GLOBAL'):
        train(**changes)
    assert not Path('executed').exists()


def test_no_check_of_a_start_executes_a_checkpoint(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_zip({'state_dict': {'a.b': Malicious(tmp_path / 'executed')}}, Path('file.pth'))
    torch.save(SafeModel().state_dict(), 'start.pth')
    with pytest.raises(CheckpointError, match='file.pth holds'):
        verify_start(Checkpoint('start.pth'), ConfigDict(type='SafeModel', teacher='file.pth'))
    assert not Path('executed').exists()


@pytest.mark.parametrize(
    'job',
    [
        dict(runner_type='Runner'),
        dict(runner_type='FlexibleRunner', strategy=dict(type='SingleDeviceStrategy')),
        dict(runner_type='FlexibleRunner', strategy=dict(type='OwnReader')),
    ],
    ids=repr,
)
@pytest.mark.parametrize('already_read', [False, True])
def test_a_config_in_a_checkpoint_is_not_evaluated(job, already_read, train, tmp_path) -> None:
    """MMEngine evaluates meta['config'] when it resumes."""
    train()
    path = tmp_path / 'work' / 'epoch_1.pth'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = f'open({str(tmp_path / "executed")!r}, "w")'
    torch.save(content, path)
    checkpoints = [Checkpoint(str(path))] if already_read else []
    runner = train(*checkpoints, epochs=2, load_from=str(path), resume=True, **job)
    assert runner.epoch == 2 and not (tmp_path / 'executed').exists()
    own = Config.fromstring(runner.message_hub.get_info('cfg'), '.py')
    assert own.train_cfg.max_epochs == 2, 'the config of this job replaces the earlier one'


@pytest.mark.parametrize('place', ['meta', 'message_hub'])
def test_an_inferencer_needs_a_config_of_its_own(place, tmp_path) -> None:
    from mmdet.apis import DetInferencer

    code = f'open({str(tmp_path / "executed")!r}, "w")'
    content = dict(meta=dict(cfg=code), message_hub=dict(runtime_info=dict(cfg=code)))
    torch.save({'state_dict': {}, place: content[place]}, tmp_path / 'file.pth')
    with load_weights_only(), pytest.raises((ValueError, AssertionError), match='config'):
        DetInferencer(weights=str(tmp_path / 'file.pth'))
    assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize('workers', [0, 1])
def test_a_dataset_may_read_pickles(workers, train, tmp_path) -> None:
    """Meanwhile MMEngine reads three checkpoints: two given ones, and the one that it publishes."""
    torch.save(SafeModel().state_dict(), tmp_path / 'weights.pth')
    weights = str(tmp_path / 'weights.pth')
    train(
        workers=workers,
        epochs=2,
        load_from=weights,
        model=dict(init_cfg=dict(type='Pretrained', checkpoint=weights)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', published_keys=['state_dict'])),
    )
    assert len(list(tmp_path.glob('work/epoch_2-*.pth'))) == 1


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """Counts how often torch.load reads the weights of each file, by its name."""
    counts, load = Counter(), torch.load

    def counted(file: object, *args, **kwargs) -> object:
        if not kwargs.get('mmap'):
            counts[Path(str(file)).name] += 1
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', counted)
    return counts


@pytest.mark.parametrize('runner', ['Runner', 'FlexibleRunner'])
def test_resuming_from_content_equals_resuming_from_a_file(runner, train, tmp_path, reads) -> None:
    """EMAHook and MMEngine's FlexibleRunner change the content while they load it."""
    job = dict(runner_type=runner)
    if runner == 'FlexibleRunner':  # EMAHook cannot resume in it
        job.update(strategy=dict(type='SingleDeviceStrategy'))
    else:
        job.update(custom_hooks=[dict(type='EMAHook', momentum=0.5)])
    train(**job)
    path = str(tmp_path / 'work' / 'epoch_1.pth')
    results = []
    for checkpoints in ([], [Checkpoint(path)]):
        reads.clear()
        trained = train(*checkpoints, epochs=2, load_from=path, resume=True, **job)
        assert trained.epoch == 2 and reads['epoch_1.pth'] == (0 if checkpoints else 1)
        results.append(torch.load(tmp_path / 'work' / 'epoch_2.pth', weights_only=False))
    own, given = results
    for name in {'state_dict', 'ema_state_dict'} & {*own}:
        for key, value in own[name].items():
            assert torch.equal(value, given[name][key]), key
    assert str(own['optimizer']) == str(given['optimizer'])


def test_a_job_reads_each_checkpoint_once(run_tool, reads, tmp_path) -> None:
    """Covers training from published weights, resuming, testing and predicting."""
    cfg = Config.fromfile(TOY / 'imagenet_hatnet_toy.py')
    config, backbone, work = tmp_path / 'small.py', tmp_path / 'backbone.pth', tmp_path / 'work'
    config.write_text(made_small(cfg, toy=True))
    cfg = Config.fromfile(config)
    torch.save(HATNet(cfg.model.backbone.arch).state_dict(), backbone)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(backbone))
    config.write_text(as_text(cfg.to_dict()))
    options = ['default_hooks.checkpoint.save_optimizer=True']
    run_tool('train', config, '--work-dir', work, '--cfg-options', *options)
    assert reads == {'backbone.pth': 1}

    reads.clear()
    options += ['train_cfg.max_epochs=2']
    resume = ['--resume', '--cfg-options']
    run_tool('train', config, '--work-dir', work, *resume, *options)
    assert reads == {'epoch_1.pth': 1} and (work / 'epoch_2.pth').exists()

    reads.clear()
    options = ['model.backbone.init_cfg=None', f'load_from={work}/epoch_2.pth']
    run_tool('train', config, '--work-dir', tmp_path / 'other', '--cfg-options', *options)
    assert reads == {'epoch_2.pth': 1}

    reads.clear()
    run_tool('test', config, work, '--work-dir', tmp_path / 'test')
    assert reads == {'epoch_2.pth': 1}
    assert 'Load checkpoint from' in next(tmp_path.glob('test/*/*.log')).read_text()

    reads.clear()
    image = next(path for path in Path('data/toy/imagenet/val').rglob('*') if path.is_file())
    run_tool('predict', config, work, image, '--out-dir', tmp_path / 'out', '--device', 'cpu')
    assert reads == {'epoch_2.pth': 1}

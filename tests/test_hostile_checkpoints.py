"""Hostile checkpoints end in one clear message, or load their weights. Nothing in them runs."""

import os
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim import scheduler
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from mmhatnet.checkpoints import contents, files, memory
from mmhatnet.checkpoints.contents import allowed_content
from mmhatnet.checkpoints.files import (
    fetch_weights,
    force_weights_only,
    read_checkpoint,
    read_meta,
)
from mmhatnet.checkpoints.loading import verify_resumable
from mmhatnet.checkpoints.rehearsal import ExcessError
from mmhatnet.checkpoints.safe_loader import Checkpoint, load_weights_only
from mmhatnet.errors import CheckpointError

WEIGHTS = {'weight': torch.ones(1, 1), 'bias': torch.zeros(1)}
CODE = "__import__('pathlib').Path('executed').touch()"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_pickle(content: bytes, path: str = 'file.pth', older: bool = False) -> None:
    """Saves a checkpoint of which the pickle is given."""
    if older:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        saved = Path(path).read_bytes()
        empty, end = b'\x80\x02}q\x00.', b'\x80\x02]q\x00.'
        assert saved.endswith(empty + end)
        Path(path).write_bytes(saved.removesuffix(empty + end) + content + end)
        return
    torch.save({}, path)
    with zipfile.ZipFile(path) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, 'w') as target:
        for name, data in entries.items():
            target.writestr(name, content if name.endswith('data.pkl') else data)


def refusal(path: str = 'file.pth', resume: bool = False) -> str:
    """Returns the message with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = Checkpoint(path)
        if resume:
            verify_resumable(checkpoint)
    text = str(caught.value)
    assert text.startswith(path) and '\n' not in text and len(text) < 500
    assert not Path('executed').exists()
    return text


def training(**changes: object) -> dict:
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    group = dict(params=[0, 1], lr=0.1)
    content = dict(
        state_dict=WEIGHTS,
        meta=dict(epoch=1, iter=2, seed=0),
        message_hub=hub,
        optimizer=dict(state={}, param_groups=[group]),
        param_schedulers=[dict(last_step=1, _global_step=1, param_name='lr')],
    )
    return content | changes


def itself() -> dict:
    content: dict = {}
    content['again'] = content
    return content


def shared(levels: int) -> list:
    """Returns a list of few objects and 2 ** levels entries."""
    content: list = [0.5]
    for _ in range(levels):
        content = [content, content]
    return content


def history(log: object, count: object, length: object = 10) -> HistoryBuffer:
    buffer = HistoryBuffer()
    vars(buffer).update(_log_history=log, _count_history=count, max_length=length)
    return buffer


@pytest.mark.parametrize(
    ('content', 'what'),
    [
        ([], 'a list instead of named weights'),
        (None, 'a NoneType instead of named weights'),
        (5, 'a int instead of named weights'),
        ({5: torch.ones(1)}, 'a dict instead of named weights'),
        ({'state_dict': []}, 'state_dict is a list instead of weights by name'),
        ({'state_dict': None}, 'state_dict is a NoneType'),
        ({'state_dict': 5}, 'state_dict is 5'),
        ({'state_dict': 'a' * 9999}, "state_dict is 'aaa"),
        ({'state_dict': torch.ones(1)}, 'state_dict is a Tensor'),
        ({'state_dict': {5: torch.ones(1)}}, 'name of a tensor in state_dict is 5'),
        (
            {'state_dict': {'\x1b[2J\n': torch.ones(1)}},
            "name of a tensor in state_dict is '\\x1b[2J",
        ),
        ({'meta': {'\x1b\n': itself()}}, r'meta.\x1b\n.again.again'),
        ({'state_dict': {'a' * 2000: torch.ones(1)}}, 'name of a tensor in state_dict'),
        ({'state_dict': WEIGHTS, 'ema_state_dict': 5}, 'ema_state_dict is 5'),
        ({'state_dict': WEIGHTS, 'meta': 5}, 'meta is 5 instead of a dict'),
        ({'state_dict': WEIGHTS, 'meta': []}, 'meta is a list'),
        (
            {'meta': {'dataset_meta': [{'classes': ('car', 'kite')}, {'classes': ('kite',)}]}},
            'datasets whose classes differ, (car, kite) and (kite), ',
        ),
        ({'meta': {'dataset_meta': [{}, 5]}}, 'meta.dataset_meta is a list instead of a dict'),
        ({'meta': {'dataset_meta': 5}}, 'meta.dataset_meta is 5'),
        ({'meta': {'dataset_meta': {5: 5}}}, 'meta.dataset_meta is a dict'),
        ({'meta': {'dataset_meta': {'classes': 5}}}, 'meta.dataset_meta.classes is 5 instead of a'),
        ({'meta': {'dataset_meta': {'classes': [[]]}}}, 'classes is a list instead of a list of'),
        ({'meta': {'dataset_meta': {'CLASSES': 5}}}, 'meta.dataset_meta.CLASSES is 5 instead of'),
        ({'meta': {'CLASSES': {}}}, 'meta.CLASSES is a dict instead of a list of names'),
        ({'state_dict': itself()}, 'nested more than 50 levels deep, or contains itself'),
        ({'meta': itself()}, 'nested more than 50 levels deep, or contains itself'),
        ({'mmhatnet': itself()}, 'nested more than 50 levels deep, or contains itself'),
        (itself(), 'nested more than 50 levels deep, or contains itself'),
        ({'mmhatnet': shared(40)}, 'more than 10,000 entries'),
        (
            {'message_hub': {'log_scalars': {'loss': history(np.ones(2), np.ones(1))}}},
            'log_scalars.loss is a History instead of a history of numbers',
        ),
        (
            {'message_hub': {'log_scalars': {'loss': history('a', 5)}}},
            'log_scalars.loss is a History',
        ),
        (
            {'message_hub': {'log_scalars': {'loss': history(np.ones(1), np.ones(1), -1)}}},
            'log_scalars.loss is a History',
        ),
        ({'state_dict': {'a': torch.ones(2, device='meta')}}, 'a is a Tensor without values'),
        ({'state_dict': {'a': torch.eye(2).to_sparse()}}, 'a is a Tensor with torch.sparse_coo'),
        (
            {'a': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
            'a is a Tensor with quantized values',
        ),
        ({'a': torch.ones(1).expand(3_000_000)}, 'a tensor of the shape (3000000,) from 1 numbers'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_wrong_structure_is_named(content, what, monkeypatch) -> None:
    monkeypatch.setattr(contents, 'MAX_ENTRIES', 10_000)
    torch.save(content, 'file.pth')
    assert what in refusal()


@pytest.mark.parametrize('key', ['state_dict', 'meta', 'model', 'mmhatnet', 'optimizer'])
def test_deep_nesting_is_named(key) -> None:
    """torch.save itself cannot write it."""
    nested = b'}' + b'X\x01\x00\x00\x00a}' * 3000 + b's' * 3000
    name = key.encode()
    save_pickle(b'\x80\x02}X' + len(name).to_bytes(4, 'little') + name + nested + b's.')
    assert 'nested more than 50 levels deep' in refusal()


INFO = dict(log_scalars={}, resumed_keys={})


@pytest.mark.parametrize(
    ('changes', 'what'),
    [
        (dict(meta=dict(epoch=1.5, iter=2)), 'meta.epoch is 1.5 instead of a number'),
        (dict(meta=dict(epoch='1', iter=2)), 'no training state (epoch)'),
        (dict(meta=dict(epoch=1, iter=-2)), 'meta.iter is -2'),
        (dict(meta=dict(epoch=1, iter=[2])), 'meta.iter is a list'),
        (dict(meta=dict(epoch=1, iter=2, seed=2**40)), 'meta.seed is 1099511627776'),
        (dict(message_hub=5), 'message_hub is 5 instead of a dict'),
        (dict(message_hub=[]), 'message_hub is a list'),
        (dict(message_hub={}), 'message_hub has no log_scalars and 2 other faults'),
        (dict(message_hub=dict(INFO, runtime_info=5)), 'message_hub has no runtime_info'),
        (
            dict(message_hub=dict(INFO, runtime_info=dict(best_score=[]))),
            'best_score is a list instead of a number',
        ),
        (
            dict(message_hub=dict(INFO, runtime_info=dict(best_ckpt=5))),
            'best_ckpt is 5 instead of a path',
        ),
        (
            dict(message_hub=dict(INFO, runtime_info=dict(keep_ckpt_ids=[1.5]))),
            'keep_ckpt_ids is a list instead of a list of numbers',
        ),
        (dict(optimizer=5), 'optimizer is 5 instead of a dict'),
        (dict(optimizer=[]), 'optimizer is a list'),
        (dict(optimizer=dict(param_groups=5)), 'optimizer.param_groups is no list of groups'),
        (dict(optimizer=dict(param_groups=[5])), 'optimizer.param_groups is no list of groups'),
        (
            dict(optimizer=dict(param_groups=[dict(params=[0], lr='x')])),
            'optimizer.param_groups is no list of groups with params and a learning rate',
        ),
        (dict(optimizer=dict(param_groups=[], state=5)), 'optimizer.state is 5'),
        (dict(optimizer=dict(param_groups=[], state={0: 5})), 'optimizer.state.0 is 5'),
        (
            dict(optimizer=dict(param_groups=[], state={0: dict(m=torch.tensor(torch.nan))})),
            'optimizer.state.0.m holds NaN',
        ),
        (dict(optimizer=dict(generator=5)), 'optimizer.generator has no param_groups'),
        (dict(param_schedulers=5), 'param_schedulers is 5'),
        (dict(param_schedulers=[5]), 'param_schedulers.0 is 5'),
        (dict(param_schedulers=[{5: 5}]), 'param_schedulers.0 is a dict'),
        (dict(param_schedulers=[dict(step=1)]), 'param_schedulers.0 replaces step of the'),
        (dict(param_schedulers=[dict(_get_value=1)]), 'replaces _get_value of the scheduler'),
        (dict(param_schedulers=[dict(optimizer=1)]), 'replaces optimizer of the scheduler'),
        (dict(param_schedulers=[dict(last_step='a')]), "last_step is 'a' instead of a number"),
        (dict(param_schedulers=dict(a=[dict(step=1)])), 'param_schedulers.a.0 replaces step'),
        (
            dict(ema_state_dict={'module.other': torch.ones(1)}),
            'ema_state_dict averages other, which state_dict lacks',
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_training_does_not_resume_from_a_wrong_state(changes, what) -> None:
    torch.save(training(**changes), 'file.pth')
    assert what in (text := refusal(resume=True)) and 'cannot resume' in text
    assert read_checkpoint('file.pth')['state_dict'].keys() == WEIGHTS.keys(), (
        'the weights should load nevertheless'
    )


@pytest.mark.parametrize('name', [name for name in dir(scheduler) if name.endswith('LR')])
def test_the_state_of_every_scheduler_is_read(name) -> None:
    settings = dict(
        ConstantLR=dict(factor=0.5),
        CosineRestartLR=dict(periods=[5], eta_min=0.0),
        ExponentialLR=dict(gamma=0.5),
        MultiStepLR=dict(milestones=[2]),
        OneCycleLR=dict(eta_max=0.1, total_steps=5),
        ReduceOnPlateauLR=dict(monitor='loss'),
        StepLR=dict(step_size=2),
    )

    def build() -> object:
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
        return getattr(scheduler, name)(optimizer, **settings.get(name, {}))

    source, target = build(), build()
    source.last_step = 3
    torch.save(training(param_schedulers=[source.state_dict()]), 'file.pth')
    checkpoint = Checkpoint('file.pth')
    verify_resumable(checkpoint)
    target.load_state_dict(checkpoint.content['param_schedulers'][0])
    assert target.state_dict() == source.state_dict()


def test_a_sound_state_resumes(capsys) -> None:
    infinite = {0: dict(step=torch.tensor(1.0), exp_avg_sq=torch.tensor([torch.inf]))}
    torch.save(
        training(
            optimizer=dict(state=infinite, param_groups=[dict(params=[0], lr=0.1, betas=(0, 1))]),
            param_schedulers=[dict(milestones=Counter([8, 11]), last_step=1)],
            ema_state_dict={'steps': torch.tensor(1), 'module.bias': torch.ones(1)},
        ),
        'file.pth',
    )
    checkpoint = Checkpoint('file.pth')
    verify_resumable(checkpoint)
    assert checkpoint.content['param_schedulers'][0]['milestones'] == Counter([8, 11])
    assert checkpoint.content['optimizer']['state'][0]['exp_avg_sq'].isinf()
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'others',
    [
        dict(args=CODE, epoch=5, best='x'),
        dict(config=CODE, cfg=CODE, hyper_parameters=dict(code=CODE)),
        dict(optimizer=None, meta=None, message_hub=None, ema_state_dict=None, lr=[CODE]),
        dict(optimizer=[CODE], param_schedulers=CODE),
        dict(meta=dict(config=CODE, cfg=CODE, env_info=CODE, hook_msgs=dict(last_ckpt='x'))),
        dict(message_hub=dict(log_scalars=[], runtime_info=dict(cfg=CODE, code=[CODE]))),
        dict(unknown=[itself()], teacher=WEIGHTS),
        dict(unknown={5: CODE, 'deep': {'a': CODE}}),
    ],
    ids=repr,
)
def test_other_entries_do_not_matter(others) -> None:
    torch.save(dict(state_dict=WEIGHTS) | others, 'file.pth')
    model = nn.Linear(1, 1)
    with load_weights_only():
        content = load_checkpoint(model, 'file.pth')
    assert model.weight.item() == 1
    kept = {
        key: value for key, value in content.items() if key not in ('optimizer', 'param_schedulers')
    }
    assert 'import' not in repr(kept), 'code should be left out'


def test_nothing_but_plain_entries_is_handed_on() -> None:
    weights = OrderedDict(WEIGHTS)
    weights._metadata = {'': dict(version=1, assign_to_params_buffers=True), 'a': 5}
    weights['weight'] = nn.Parameter(torch.ones(1, 1))
    weights['weight'].reshape = 5
    weights['head._extra_state'] = torch.ones(3)  # some modules unpickle it
    buffer = HistoryBuffer([0.5, 0.25], [1, 1])
    buffer.mean = 5
    hub = dict(
        log_scalars={'loss': buffer, 'text': CODE},
        runtime_info=dict(cfg=CODE, best_ckpt='b.pth', iter=3, own=CODE, dataset_meta=dict(a='b')),
        resumed_keys=dict(iter=True, code=CODE),
    )
    meta = dict(epoch=1, cfg=CODE, config=CODE, mmengine_version='0.1', time='2', best=0.5)
    meta['dataset_meta'] = dict(classes=('a', 'b'), palette=[(1, 2, 3)] * 2, task='x')
    own = dict(states=[np.arange(3), torch.ones(2)], position=7, name='text')
    torch.save(dict(state_dict=weights, meta=meta, message_hub=hub, mmhatnet=own), 'file.pth')
    content = read_checkpoint('file.pth')
    assert content.keys() == {'state_dict', 'meta', 'message_hub', 'mmhatnet'}
    assert [*content['state_dict']] == ['weight', 'bias']
    assert content['state_dict']._metadata == {'': dict(version=1)}
    assert content['state_dict']['weight'].reshape(-1).tolist() == [1]
    assert content['meta'] == {k: v for k, v in meta.items() if k not in ('cfg', 'config')}
    read = content['message_hub']
    assert read['log_scalars'].keys() == {'loss'} and read['log_scalars']['loss'].mean() == 0.375
    assert type(read['log_scalars']['loss']) is HistoryBuffer
    assert read['runtime_info'] == dict(best_ckpt='b.pth', iter=3, dataset_meta=dict(a='b'))
    assert read['resumed_keys'] == dict(iter=True)
    assert content['mmhatnet']['states'][0].tolist() == [0, 1, 2]
    assert content['mmhatnet']['position'] == 7 and content['mmhatnet']['name'] == 'text'


@pytest.mark.parametrize('value', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    'kind', ['float32', 'float16', 'bfloat16', 'float64', 'complex64', 'float8_e5m2']
)
def test_weights_that_are_not_finite_are_named(value, kind) -> None:
    bad = torch.tensor([1.0, value, 2.0]).to(getattr(torch, kind))
    ema = {'module.b.weight': bad}
    for content in (
        {'a.weight': torch.ones(2), 'b.weight': bad},
        {'state_dict': {'a': torch.ones(2), 'b.weight': bad}},
        {'model': {'b.weight': bad}},
        {'state_dict': WEIGHTS, 'ema_state_dict': ema},
    ):
        torch.save(content, 'file.pth')
        assert 'holds weights that are not finite, in ' in (text := refusal()), content
        assert 'b.weight:' in text
    torch.save({'a': bad, 'b': bad, 'bn.running_var': bad}, 'file.pth')
    assert 'not finite, in a and 2 other tensors' in refusal()


def test_masks_may_be_infinite() -> None:
    mask = torch.full((3, 3), -torch.inf).triu(1)
    torch.save({'attn.mask': mask, 'observer.min_val': torch.tensor(torch.inf)}, 'file.pth')
    assert torch.equal(read_checkpoint('file.pth')['attn.mask'], mask)
    torch.save({'attn.mask': mask * torch.nan}, 'file.pth')
    assert 'not finite, in attn.mask:' in refusal()


def test_a_tool_names_weights_that_are_not_finite(run_tool_captured, tmp_path) -> None:
    torch.save({'stem.conv1.weight': torch.full((3,), torch.nan)}, 'file.pth')
    result = run_tool_captured('convert_checkpoint', tmp_path / 'file.pth', tmp_path / 'out.pth')
    assert result.returncode == 1 and 'not finite, in stem.conv1.weight' in result.stderr
    assert 'Traceback' not in result.stderr and not Path('out.pth').exists()


def bomb(size: int) -> None:
    """Packs zeros as no torch.save does."""
    torch.save(WEIGHTS, 'small.pth')
    with zipfile.ZipFile('small.pth') as small:
        entries = {name: small.read(name) for name in small.namelist()}
    with zipfile.ZipFile('file.pth', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for name, data in entries.items():
            if name.endswith('/data/0'):
                with packed.open(name, 'w', force_zip64=True) as entry:
                    for _ in range(size // 2**20):
                        entry.write(bytes(2**20))
            else:
                packed.writestr(name, data)


def test_a_zip_bomb_is_named_by_its_declared_size(monkeypatch) -> None:
    monkeypatch.setattr(files, 'HARMLESS', 2**24)
    bomb(2**26)
    text = refusal()
    assert 'is packed as no checkpoint is: its ' in text and 'unpack to 67.1 MB' in text


def test_a_checkpoint_larger_than_the_memory_is_not_read(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, 'SYSTEM', tmp_path / 'meminfo')
    Path('meminfo').write_text('MemAvailable: 1000 kB\nSwapFree: 24 kB\n')
    torch.save({'a': torch.ones(10**6)}, 'file.pth')
    monkeypatch.setattr(torch, 'load', None)
    assert 'its content has 4 MB, and 1.05 MB are available' in refusal()
    Path('meminfo').write_text('MemAvailable: 10000000 kB\n')
    monkeypatch.setattr(memory, 'CONTAINER', [tmp_path / 'none', tmp_path / 'limit'])
    Path('limit').write_text('3000000')
    assert 'its content has 4 MB, and 3 MB are available' in refusal()


@pytest.mark.parametrize(
    ('error', 'needed'),
    [
        (MemoryError(), 'an allocation failed'),
        (
            torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0'),
            '20.00 MiB',
        ),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                '8000000000 bytes. Error code 12'
            ),
            '8 GB could not be allocated',
        ),
    ],
)
def test_lack_of_memory_is_no_damage(error, needed, monkeypatch) -> None:
    def load(*args, **kwargs) -> None:
        raise error

    torch.save({'a': torch.ones(10**6)}, 'file.pth')
    monkeypatch.setattr(torch, 'load', load)
    text = refusal()
    assert f'does not fit into memory: {needed}' in text and 'Its content has 4 MB.' in text
    hub = Path('torch', 'hub', 'checkpoints')
    hub.mkdir(parents=True)
    Path('file.pth').rename(hub / 'file.pth')
    monkeypatch.setenv('TORCH_HOME', str(Path('torch').resolve()))
    with pytest.raises(CheckpointError, match='does not fit into memory'):
        fetch_weights('http://127.0.0.1:9/file.pth', '--hint')  # Nothing is downloaded again.


def function(module: str, name: str) -> bytes:
    return f'c{module}\n{name}\n'.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(9, 'little')
    return b'\x8a' + bytes([len(data)]) + data


def entry(value: bytes) -> bytes:
    """Returns the pickle of a dict with one entry."""
    return b'\x80\x02}X\x01\x00\x00\x00a' + value + b's.'


def text(value: str) -> bytes:
    return b'X' + len(value).to_bytes(4, 'little') + value.encode()


def tensor(size: int, stored: int = 4, stride: int = 0) -> bytes:
    storage = b'(' + text('storage') + function('torch', 'FloatStorage') + text('0')
    storage += text('cpu') + number(stored) + b'tQ'
    shape = number(size) + b'K\x02\x86' + number(stride) + b'K\x00\x86'
    hooks = function('collections', 'OrderedDict') + b')R'
    rebuild = function('torch._utils', '_rebuild_tensor_v2')
    return rebuild + b'(' + storage + b'K\x00' + shape + b'\x89' + hooks + b'tR'


HUGE = 10**14
CALLS = {
    'bytes': function('builtins', 'bytearray') + number(HUGE) + b'\x85R',
    'array': function('numpy', 'ndarray') + number(HUGE) + b'\x85\x85R',
    'no array': function('numpy.core.multiarray', '_reconstruct')
    + function('numpy', 'ndarray')
    + number(HUGE)
    + b'\x85'
    + text('b')
    + b'\x87R',
    'legacy tensor': function('torch', 'FloatTensor') + number(HUGE) + b'\x85R',
    'many calls': (function('builtins', 'bytearray') + b'J\xff\xff\xff\x7f\x85R0') * 9 + b'N',
    'repeated number': tensor(HUGE),
    'rows of a tensor': function('collections', 'OrderedDict') + tensor(500_000) + b'\x85R',
    'set of a tensor': function('builtins', 'set') + tensor(500_000) + b'\x85R',
    'counted tensor': function('collections', 'Counter') + tensor(500_000) + b'\x85R',
    'declared storage': tensor(1, stored=HUGE),
    'wrapped call': function('torch._tensor', '_rebuild_from_type_v2')
    + b'('
    + function('builtins', 'bytearray')
    + function('builtins', 'bytearray')
    + number(HUGE)
    + b'\x85}tR',
}


@pytest.mark.parametrize('older', [False, True])
@pytest.mark.parametrize('call', CALLS)
def test_few_bytes_do_not_take_all_memory(call, older) -> None:
    save_pickle(entry(CALLS[call]), older=older)
    assert 'asks for more than it holds' in refusal()
    with pytest.raises(ExcessError):
        read_meta(Path('file.pth'))


def test_shared_entries_do_not_multiply() -> None:
    """A few bytes name a tensor again, whose numbers are checked, or a history, which is copied."""
    weights = torch.ones(50_000)
    torch.save({f'{number}': weights for number in range(1000)}, 'file.pth')
    assert 'its tensors are views of each other' in refusal()
    torch.save({f'{number}': weights for number in range(5)}, 'file.pth')
    assert len(read_checkpoint('file.pth')) == 5
    loss = HistoryBuffer(np.ones(1000), np.ones(1000))
    log = {f'{number}': loss for number in range(1000)}
    torch.save({'message_hub': {'log_scalars': log}}, 'file.pth')
    assert 'instead of what fits into the' in refusal()


def test_names_and_colors_of_classes_that_others_fail_on() -> None:
    for meta, expected in (
        (dict(classes='cat'), dict(classes=('cat',))),
        ([dict(classes=('a',), of=1), dict(classes=('a',), of=2)], dict(classes=('a',))),
        (dict(classes=['a'], palette='unknown'), dict(classes=['a'])),
        (dict(classes=['a'], palette=5), dict(classes=['a'])),
        (dict(classes=['a'], palette=[(1, 2)]), dict(classes=['a'])),
        (dict(classes=['a', 'b'], palette=[(1, 2, 3)]), dict(classes=['a', 'b'])),
        (dict(classes=['a', '\ud800'], task='\ud800'), {}),
        (dict(classes=('a',), palette=[[1, 2, 3]]), dict(classes=('a',), palette=[[1, 2, 3]])),
    ):
        torch.save(dict(state_dict=WEIGHTS, meta=dict(dataset_meta=meta)), 'file.pth')
        assert Checkpoint('file.pth').meta['dataset_meta'] == expected


def test_an_empty_history_is_none() -> None:
    loss = function('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81'
    log = text('log_scalars') + b'}' + text('loss') + loss + b'ss'
    save_pickle(b'\x80\x02}' + text('message_hub') + b'}' + log + b's.')
    assert 'log_scalars.loss is a History instead of a history of numbers' in refusal()


@pytest.mark.parametrize('kind', ['?', 'i1', 'u2', 'i4', 'i8', 'f2', 'f4', '>f8', 'c16'])
def test_arrays_are_read_as_numpy_does(kind) -> None:
    array = np.arange(6).reshape(2, 3).astype(kind)
    arrays = [array, array.T, array[:0], array[0, 0], array[1, 2]]
    torch.save({'mmhatnet': arrays}, 'file.pth')
    for own, expected in zip(read_checkpoint('file.pth')['mmhatnet'], arrays):
        np.testing.assert_array_equal(own, expected)
        assert own.dtype == expected.dtype and type(own) is type(expected)
        assert own.ndim == 0 or own.flags.writeable


def test_the_flags_of_numpy_types_are_not_taken_over() -> None:
    """They would make NumPy take numbers for addresses of objects."""
    torch.save({'mmhatnet': np.ones(3)}, 'file.pth')
    with zipfile.ZipFile('file.pth') as file:
        saved = next(file.read(name) for name in file.namelist() if name.endswith('data.pkl'))
    end = b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t'
    assert end in saved
    save_pickle(saved.replace(end, end[:-2] + b'\x3ft'))
    array = read_checkpoint('file.pth')['mmhatnet']
    assert array.tolist() == [1, 1, 1] and not array.dtype.hasobject and array.dtype.flags == 0


@pytest.mark.parametrize('older', [False, True])
def test_a_large_memo_is_not_allocated(older) -> None:
    """Pickle in C allocates as many places as the highest number that a memo names."""
    save_pickle(entry(b'Nr\xff\xff\xff\x7f'), older=older)
    assert read_checkpoint('file.pth') == {}


GLOBALS = function('builtins', 'getattr') + function('torch._utils', '_rebuild_tensor_v2')
GLOBALS += text('__globals__') + b'\x86R'


@pytest.mark.parametrize('older', [False, True])
@pytest.mark.parametrize(
    ('call', 'what'),
    [
        (GLOBALS, "asks for the attribute '__globals__'"),
        (GLOBALS + text('_rebuild_tensor') + b'Ns', "asks for the attribute '__globals__'"),
        (function('os', 'system') + text('touch executed') + b'\x85R', 'system'),
        (function('builtins', 'eval') + text(CODE) + b'\x85R', 'holds eval'),
        (function('builtins', 'exec') + text(CODE) + b'\x85R', 'holds exec'),
        (function('torch.storage', '_load_from_bytes') + text('x') + b'\x85R', '_load_from_bytes'),
        (function('torch', 'load') + text('file.pth') + b'\x85R', 'holds torch.load'),
        (function('torch.hub', 'load') + text('a') + b'\x85R', 'holds torch.hub.load'),
        (function('numpy', 'load') + text('file.pth') + b'\x85R', 'holds numpy.load'),
        (function('mmengine.config', 'Config.fromstring') + text(CODE) + b'\x85R', 'fromstring'),
        (function('functools', 'partial') + b')R', 'holds functools.partial'),
        (function('collections', 'deque') + b')R', 'holds collections.deque'),
        (b'(' + text(CODE) + b'ibuiltins\neval\n', 'is damaged|more than weights'),
        (b'\x82\x01', 'is damaged|more than weights'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_no_call_is_made(call, what, older, monkeypatch) -> None:
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    save_pickle(entry(call), older=older)
    text = refusal()
    assert any(one in text for one in what.split('|')), text


def test_no_scheme_of_mmengine_allows_attributes(monkeypatch) -> None:
    """OneDL's MMEngine allows getattr, by which a file changes the functions that read it."""
    namespace = vars(torch._utils)
    save_pickle(entry(GLOBALS + text('hostile') + b'Ns'))
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    from mmengine.runner import checkpoint

    load = getattr(checkpoint, '_safe_torch_load', torch.load)
    CheckpointLoader.register_scheme('own:', lambda name, map_location=None: load('file.pth'))
    for _ in range(20):  # PyTorch takes any of two functions with the same name.
        with load_weights_only(), pytest.raises(CheckpointError, match='__globals__'):
            CheckpointLoader.load_checkpoint('own:x')
    assert 'hostile' not in namespace


def test_content_of_others_memory_is_not_handed_on() -> None:
    """PyTorch before 2.10 reads as many numbers as a pickle says, beyond those of the file."""
    with pytest.raises(CheckpointError, match='declare 4,000 bytes, and the file holds 100'):
        allowed_content({'a': torch.ones(1000)}, 'file.pth', 100)


@pytest.mark.parametrize('cut', range(1, 12))
def test_a_cut_file_is_named(cut) -> None:
    for older in (False, True):
        torch.save(training(), 'file.pth', _use_new_zipfile_serialization=not older)
        data = Path('file.pth').read_bytes()
        Path('file.pth').write_bytes(data[: len(data) * cut // 12])
        assert any(
            word in refusal() for word in ('damaged', 'incomplete', 'is a pickle', 'is empty')
        )


@pytest.mark.parametrize('seed', range(20))
def test_changed_bytes_end_in_a_message_or_load(seed) -> None:
    generator = np.random.default_rng(seed)
    for older in (False, True):
        torch.save(training(), 'file.pth', _use_new_zipfile_serialization=not older)
        original = Path('file.pth').read_bytes()
        for _ in range(10):
            data = bytearray(original)
            for place in generator.integers(len(data), size=generator.integers(1, 6)):
                data[place] = generator.integers(256)
            Path('file.pth').write_bytes(data)
            try:
                verify_resumable(Checkpoint('file.pth'))
            except CheckpointError as error:
                assert '\n' not in str(error)


class Own:
    """A class of a user, which the weights-only reader does not know."""


def test_threads_read_at_once(monkeypatch) -> None:
    """They read checkpoints with and without MMEngine, and pickles of their own."""
    monkeypatch.setattr('mmengine.runner.checkpoint.print_log', lambda *args, **kwargs: None)
    monkeypatch.setattr('mmhatnet.checkpoints.safe_loader.print_log', lambda *args, **kwargs: None)
    torch.save(training(), 'file.pth')
    torch.save(Own(), 'own.pth')
    before = CheckpointLoader.__dict__['load_checkpoint'], dict(os.environ)
    allowed = set(torch.serialization.get_safe_globals())
    failures: list[BaseException] = []

    def read(number: int) -> None:
        model = nn.Linear(1, 1)
        try:
            for _ in range(40):
                with load_weights_only(Checkpoint('file.pth')):
                    content = load_checkpoint(model, 'file.pth')
                    assert content['meta']['epoch'] == 1
                read_checkpoint('file.pth')
                torch.load('own.pth', weights_only=False)
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert (CheckpointLoader.__dict__['load_checkpoint'], dict(os.environ)) == before
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_contradicting_variables_are_named(monkeypatch) -> None:
    torch.save(WEIGHTS, 'file.pth')
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    assert read_checkpoint('file.pth')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(CheckpointError, match='contradict each other: unset one'):
        read_checkpoint('file.pth')
    with force_weights_only():
        assert read_checkpoint('file.pth')

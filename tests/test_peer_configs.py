"""The configs of the networks beside HAT-Net are what they are called, and train and test."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from drawn import drawn_image
from experiments import CONFIGS, OF_PEERS, assert_trains_and_tests, identify, rest_slow
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from peers import PEERS

from mmhatnet.config_checks import require_channels, require_complete, require_known_settings
from mmhatnet.errors import CheckpointError
from mmhatnet.preflight.checkpoints import require_pretrained

NAME = re.compile(
    r'(?P<job>maskrcnn|retinanet|semfpn|imagenet)_(?P<network>p2t|shunted|stvit|glnet)'
    r'(?:_(?P<arch>(?!toy)[a-z0-9_]+?))?(?P<toy>_toy)?'
)
FIRST = dict(p2t='small', shunted='small', stvit='small', glnet='4g')
METAFILE = {
    model['Config']: model
    for model in yaml.safe_load((CONFIGS / 'peers' / 'metafile.yml').read_text())['Models']
}
# The others differ from these by a few numbers.
ORDINARY = [path for path in OF_PEERS if not NAME.fullmatch(path.stem)['arch']]
# One job of each network, and each job once. The others train in the slow tests.
TRAINED = ('maskrcnn_p2t', 'retinanet_shunted', 'semfpn_stvit', 'imagenet_glnet')
TRAINED = [CONFIGS / 'peers' / f'{name}.py' for name in TRAINED]
# Millions of the whole model, by the page of P2T.
PUBLISHED = {
    f'{job}_p2t{variant}': millions
    for variant, *figures in (
        ('_tiny', 31.3, 21.1, 15.4),
        ('', 43.7, 33.8, 27.8),
        ('_base', 55.7, 45.8, 39.8),
        ('_large', 74.0, 64.4, 58.1),
    )
    for job, millions in zip(('maskrcnn', 'retinanet', 'semfpn'), figures)
}
pytestmark = pytest.mark.usefixtures('all_coco_classes')


def test_every_network_has_the_four_jobs() -> None:
    names = {path.stem for path in OF_PEERS}
    for peer, first in FIRST.items():
        variants = [
            arch for name in PEERS if name.startswith(peer) for arch in PEERS[name].parameters
        ]
        for job in ('imagenet', 'maskrcnn', 'retinanet', 'semfpn'):
            for arch in variants:
                # In a detector learned slots would be one more published file, as token labels are.
                if job == 'imagenet' or arch != 'stl_paramslot':
                    assert f'{job}_{peer}' + (f'_{arch}' if arch != first else '') in names
        assert f'maskrcnn_{peer}_toy' in names


@pytest.mark.parametrize('path', rest_slow(OF_PEERS, *ORDINARY), ids=identify)
def test_config_is_what_it_is_called(path: Path) -> None:
    name, cfg = NAME.fullmatch(path.stem), Config.fromfile(path)
    import_modules_from_strings(**cfg.custom_imports)
    require_complete(cfg, 'train', 'val', 'test')
    require_known_settings(cfg)
    require_channels(cfg, 'train', 'val', 'test')
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(copy.deepcopy(cfg.model))

    backbone = cfg.model.backbone
    parameters = sum(p.numel() for p in model.parameters())
    assert METAFILE[f'configs/peers/{path.name}']['Metadata']['Parameters'] == parameters
    assert round(parameters / 1e6, 1) == PUBLISHED.get(path.stem, round(parameters / 1e6, 1))
    if name['toy']:
        assert not cfg.goals and 'init_cfg' not in backbone
        return
    assert backbone.arch == (name['arch'] or FIRST[name['network']])
    if name['job'] == 'imagenet':
        peers = [peer for peer in PEERS.values() if type(model.backbone) is peer.network]
        known = {arch: number for peer in peers for arch, number in peer.parameters.items()}
        known |= {'4g_tklb': 27_514_593, '9g_tklb': 60_779_617}
        assert parameters == known[backbone.arch]
        assert 'init_cfg' not in backbone
    else:
        checkpoint = f'checkpoints/{name["network"]}_{backbone.arch}.pth'
        assert backbone.init_cfg == dict(type='Pretrained', checkpoint=checkpoint)


def test_training_does_not_start_without_the_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = Config.fromfile(CONFIGS / 'peers' / 'maskrcnn_p2t_tiny.py')
    way_out = r'init_cfg.checkpoint=FILE, or .* random weights with .*init_cfg=None'
    with pytest.raises(CheckpointError, match=f'no checkpoint checkpoints/p2t_tiny.pth.*{way_out}'):
        require_pretrained(cfg)
    cfg.model.backbone.init_cfg = None
    require_pretrained(cfg)


@pytest.mark.parametrize('path', rest_slow(OF_PEERS, *TRAINED), ids=identify)
def test_train_and_test(path: Path, run_tool, monkeypatch, tmp_path: Path) -> None:
    assert_trains_and_tests(path, Config.fromfile(path), run_tool, monkeypatch, tmp_path)


@pytest.mark.parametrize('network', ['p2t', 'shunted'])
def test_published_classifier(network: str, run_tool, tmp_path: Path) -> None:
    """The tool makes the config's classifier of a whole published checkpoint; of the others'
    heads there are tests in the files of their networks."""
    peer = PEERS[network]
    arch = next(iter(peer.parameters))
    cfg = Config.fromfile(CONFIGS / 'peers' / f'imagenet_{network}_{arch}.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    head = {'head.weight': model.head.fc.weight.shape, 'head.bias': model.head.fc.bias.shape}
    published = peer.drawn(peer.network(arch))
    published |= {name: peer.value(name, tuple(shape)) for name, shape in head.items()}
    torch.save({'model': published}, tmp_path / 'published.pth')
    run_tool(
        'convert_checkpoint', tmp_path / 'published.pth', tmp_path / 'ours.pth', '--classifier'
    )
    model.load_state_dict(torch.load(tmp_path / 'ours.pth')['state_dict'])
    golden = peer.golden[f'{arch}/1x3x65x97/logits']
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-6)):
        with torch.no_grad():
            logits = model.to(dtype)(drawn_image(1, 3, 65, 97).to(dtype)).double().numpy()
        assert np.abs(logits - golden).max() < tolerance * golden.std()

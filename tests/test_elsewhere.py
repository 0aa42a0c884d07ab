"""The examples of docs/elsewhere.md work, with other frameworks if they are installed."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from synthetic import synthetic_checkpoint, synthetic_image

from mmhatnet import HATNet

TEXT = (Path(__file__).parents[1] / 'docs' / 'elsewhere.md').read_text()
IMAGE = synthetic_image(1, 3, 64, 64)
PARTS = {'neck', 'head', 'cls_head'}
FRAMEWORKS = dict(MMPose='mmpose', MMRotate='mmrotate', MMAction2='mmaction')


def example(title: str) -> str:
    """Returns the Python code below a heading."""
    return re.search(rf'^## {title}\n.*?```python\n(.*?)```', TEXT, re.M | re.S)[1]


def test_readme() -> None:
    """Its two examples give the same features for the same weights."""
    pytest.importorskip('timm')
    readme = (Path(__file__).parents[1] / 'README.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', readme, re.S)
    plain, in_timm = (
        next(block for block in blocks if name in block)
        for name in ("HATNet('small')", 'mmhatnet.timm_models')
    )
    names = {}
    exec(plain, names)
    model = names['model']
    exec(in_timm, names)
    names['model'].model.backbone.load_state_dict(model.state_dict())
    torch.testing.assert_close(names['model'](IMAGE), list(model(IMAGE)))


def test_plain_module() -> None:
    names = dict(images=IMAGE, weights=synthetic_checkpoint('small'))
    exec(example('PyTorch'), names)
    shapes = [tuple(names[name].shape) for name in ('c2', 'c3', 'c4', 'c5')]
    assert shapes == [(1, 64, 16, 16), (1, 128, 8, 8), (1, 320, 4, 4), (1, 512, 2, 2)]
    loaded = names['weights']['ds4.conv.weight']
    assert torch.equal(names['model'].stages[3].downsample.conv.weight, loaded)


def test_timm(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip('timm')
    names = {}
    exec(example('timm'), names)
    assert capsys.readouterr().out == '[128, 320, 512] [8, 16, 32]\n'
    assert [f.shape[2] for f in names['backbone'](IMAGE)] == [8, 4, 2]
    assert names['classifier'](IMAGE).shape == (1, 10)


@pytest.mark.parametrize('title', FRAMEWORKS)
def test_channels_are_those_of_the_backbone(title: str) -> None:
    """This needs no framework, because the example states what the next module expects."""
    names = {}
    exec(example(title), names)
    model = names['model']
    backbone = model['backbone'] | dict(_delete_=None, init_cfg=None)
    del backbone['_delete_']
    built = [MODELS.build(backbone | dict(type=name)) for name in ('HATNet', 'mmhatnet.HATNet')]
    assert [type(module) for module in built] == [HATNet, HATNet]
    (expected,) = {str(model[part]['in_channels']) for part in model.keys() & PARTS}
    channels = built[0].out_channels
    assert expected == str([*channels] if len(channels) > 1 else channels[0])


@pytest.mark.parametrize('title', FRAMEWORKS)
def test_model_is_built_and_computes(title: str, tmp_path: Path) -> None:
    framework = FRAMEWORKS[title]
    try:
        import_module(f'{framework}.models')
    except (ImportError, AssertionError) as error:  # mmaction asserts the version of mmcv
        pytest.skip(f'{framework} cannot be used here: {error}')
    (tmp_path / 'config.py').write_text(example(title))
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(framework), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        assert type(model.backbone) is HATNet
        if framework == 'mmaction':
            feature = model(IMAGE[None].expand(1, 2, -1, -1, -1), mode='tensor')
            assert model.cls_head(feature, num_segs=2).shape == (1, 400)
        elif framework == 'mmpose':
            assert model(IMAGE, None, mode='tensor').shape == (1, 17, 16, 16)
        else:
            classes, boxes = model(IMAGE, None, mode='tensor')
            assert [c.shape[2] for c in classes] == [b.shape[2] for b in boxes] == [8, 4, 2, 1, 1]

"""Small models with random weights, for the tests of the tools that predict."""

from pathlib import Path

import torch
from experiments import as_text
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmhatnet import HATNet

TOY = Path(__file__).parents[1] / 'configs' / 'toy'


def random_job(
    job: str, folder: Path, backbone: dict | None = None, in_channels: int | None = None
) -> tuple[Path, Path]:
    """Writes a config on synthetic data, by default with one block per stage, and weights."""
    cfg = Config.fromfile(TOY / f'{job}_hatnet_toy.py').to_dict()
    cfg['model']['backbone']['arch'] = dict(HATNet.resolve_arch('tiny'), depths=(1, 1, 1, 1))
    if backbone is not None:
        cfg['model']['backbone'] = backbone
        cfg['model']['head']['in_channels'] = in_channels
    config, checkpoint = folder / f'{job}.py', folder / f'{job}.pth'
    config.write_text(as_text(cfg))
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        if 'data_preprocessor' in cfg:
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    return config, checkpoint

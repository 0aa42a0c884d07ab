"""Small models with random weights, for the tests of the tools that predict."""

from pathlib import Path

import cv2
import mmcv
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


def write_film(path: Path, images: list[Path]) -> None:
    """Writes images as the frames of a video of 160 x 128 pixels."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5, (160, 128))
    for image in images:
        writer.write(mmcv.imresize(mmcv.imread(str(image)), (160, 128)))
    writer.release()


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns the content of each file, in which paths are relative to the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(f'{folder}/'.encode(), b'')
        for path in folder.rglob('*')
        if path.is_file()
    }


# A tool that is killed while it writes its next but KILLED_AFTER record.
KILLED = """
import os, runpy, signal
from mmhatnet.prediction.records import Writer

def add_or_end(writer, **record):
    global left
    if left == 0:
        writer.file.write(b'{"image": "half of a li')
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    add(writer, **record)

left, add, Writer.add = int(os.environ['KILLED_AFTER']), Writer.add, add_or_end
runpy.run_path(os.environ['TOOL'], run_name='__main__')
"""

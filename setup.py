"""Puts configs, tools and the model index into ``mmhatnet/.mim``, where MIM looks for them.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithMimFolder(build_py):
    def run(self):
        super().run()
        # An editable installation uses the package folder of the checkout.
        package = ROOT / 'mmhatnet' if self.editable_mode else Path(self.build_lib, 'mmhatnet')
        mim_folder = package / '.mim'
        shutil.rmtree(mim_folder, ignore_errors=True)
        mim_folder.mkdir(parents=True)
        for name in ('configs', 'tools', 'model-index.yml'):
            source, target = ROOT / name, mim_folder / name
            if self.editable_mode and source.exists():
                target.symlink_to(Path('..', '..', name))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            elif source.exists():
                shutil.copyfile(source, target)


setup(cmdclass={'build_py': BuildWithMimFolder})

"""Trackers of experiments, such as TensorBoard: the visualization backends of MMEngine."""

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import (
    LocalVisBackend,
    MLflowVisBackend,
    Visualizer,
    WandbVisBackend,
)

from mmhatnet.config_walk import class_of
from mmhatnet.errors import ConfigError

if TYPE_CHECKING:
    from mmengine.runner import Runner as Base
else:
    Base = object

SUFFIX = 'VisBackend'


def find_trackers(names: Sequence[str]) -> list[type]:
    """Finds the backends of trackers, and imports their packages.

    Args:
        names (Sequence[str]): Names of backends without their suffix, such as 'tensorboard'.

    Returns:
        list[type]: Classes of MMEngine, or of the user's code.

    Raises:
        ConfigError: If there is no such backend, or its package cannot be imported.
    """
    known = {
        name.removesuffix(SUFFIX).lower(): backend
        for name, backend in VISBACKENDS.module_dict.items()
        if not issubclass(backend, LocalVisBackend)  # it writes the files of every run
    }
    for name in names:
        if name.lower() not in known:
            raise ConfigError(
                f'--tracker {name}: there is no such tracker; MMEngine has '
                f'{", ".join(sorted(known))}.'
            )
    found = {known[name.lower()]: name.lower() for name in names}
    for backend, package in found.items():
        # MMEngine names each backend after the package that it needs, and imports it late.
        if backend.__module__.startswith('mmengine.'):
            try:
                import_module(package)
            except ImportError as error:
                raise ConfigError(
                    f'--tracker {package}: its package cannot be imported ({error}). Install it '
                    f'with: pip install {package}'
                ) from error
    return list(found)


class TrackedRunner(Base):
    """What a runner needs to have trackers. Mixed into the runner class.

    The config does not name them, so that a test with the config of a work folder starts no run.

    Attributes:
        trackers (Sequence[type]): The result of ``find_trackers``.
    """

    trackers: Sequence[type] = ()

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        """Builds the visualizer of the config, with further backends."""
        return super().build_visualizer(_with_trackers(visualizer, self.trackers, self.work_dir))


def _with_trackers(
    visualizer: dict[str, Any] | Visualizer | None, trackers: Sequence[type], work_dir: str
) -> dict[str, Any] | Visualizer | None:
    """Returns the settings of a visualizer that has further backends."""
    if isinstance(visualizer, Visualizer) or (visualizer is None and not trackers):
        return visualizer
    if visualizer is None:  # as MMEngine does it
        visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    given = visualizer.get('vis_backends') or []
    backends = [given] if isinstance(given, dict) else list(given)
    present = [class_of(VISBACKENDS, backend) for backend in backends if isinstance(backend, dict)]
    backends += [dict(type=tracker) for tracker in trackers if tracker not in present]
    return {**visualizer, 'vis_backends': [_corrected(backend, work_dir) for backend in backends]}


def _corrected(backend: Any, work_dir: str) -> Any:
    """Returns settings with which a backend of MMEngine works with current packages."""
    if not isinstance(backend, dict):
        return backend
    found = class_of(VISBACKENDS, backend)
    if found is WandbVisBackend:
        return {'name': found.__name__, **backend, 'type': FinishedRun}
    if found is MLflowVisBackend and backend.get('tracking_uri') is None:
        return {**_mlflow_places(Path(work_dir).resolve()), **backend}
    return dict(backend)


def _mlflow_places(folder: Path) -> dict[str, str]:
    """Returns where MLflow writes: by default a database, since it refuses folders from 3.13 on."""
    # The experiment that is there without a name keeps its files in the current folder.
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME') or folder.name
    if uri := os.environ.get('MLFLOW_TRACKING_URI'):
        return dict(exp_name=name, tracking_uri=uri)
    return dict(
        exp_name=name,
        tracking_uri=f'sqlite:///{folder / "mlflow.db"}',
        artifact_location=(folder / 'mlruns').as_uri(),
    )


class FinishedRun(WandbVisBackend):
    """MMEngine's backend of Weights & Biases, for current versions of its package.

    It keeps the config, and no copy of all Python files below the current folder.
    """

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Keeps the config."""
        change = (self._init_kwargs or {}).get('allow_val_change', False)
        self.experiment.config.update(config.to_dict(), allow_val_change=change)

    def close(self) -> None:
        """Ends the run. ``wandb.join``, which MMEngine calls, no longer exists."""
        if hasattr(self, '_wandb'):
            self._wandb.finish()

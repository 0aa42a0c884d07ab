"""The visualization hook of MMDetection with a limit to what it draws."""

from collections.abc import Sequence

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object, is_main_process
from mmengine.runner import Runner

from mmhatnet.shown import MOST_SHOWN, Tally, best_of, highest_score


@HOOKS.register_module()
class BoundedDetVisualizationHook(DetVisualizationHook):
    """Draws the detections of a test with the highest scores, and says how many it leaves out.

    Args:
        most (int): The number of detections in an image. Defaults to 30.
        **kwargs (object): Arguments of MMDetection's DetVisualizationHook.
    """

    def __init__(self, *args, most: int = MOST_SHOWN, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.most, self.tally = most, Tally()

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draws a batch."""
        if not self.draw:
            return
        for sample in outputs:
            found = int((sample.pred_instances.scores > self.score_thr).sum())
            self.tally.add(found, highest_score(sample), self.most)
        best = [best_of(sample, self.most) for sample in outputs]
        super().after_test_iter(runner, batch_idx, data_batch, best)

    def after_test(self, runner: Runner) -> None:
        """Says what is not drawn."""
        if not self.draw:
            return
        tally = Tally().merge(all_gather_object(self.tally))
        threshold = f'{self.score_thr} (default_hooks.visualization.score_thr)'
        for note in (tally.nothing_found(threshold), tally.too_many(self.most)):
            if note and is_main_process():
                print(note)

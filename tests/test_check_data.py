"""tools/check_data.py prints statistics, oddities and errors."""

from pathlib import Path

import pytest
from rich.console import Console

from mmhatnet.data_checks import Report

CONFIG = Path(__file__).parents[1] / 'configs' / 'toy' / 'maskrcnn_hatnet_toy.py'


def test_shows_statistics(run_tool, capsys):
    with pytest.raises(SystemExit) as end:
        run_tool('check_data', CONFIG)
    assert not end.value.code
    shown = capsys.readouterr().out
    for text in ('train', 'val', 'umbrella', 'images used', 'test reads what val reads.'):
        assert text in shown
    assert shown.endswith('Nothing is wrong.\n')


def test_shows_errors_and_oddities(run_tool, capsys):
    heads = [
        f'model.roi_head.{head}_head.num_classes={n}' for head, n in (('bbox', 3), ('mask', 9))
    ]
    with pytest.raises(SystemExit) as end:
        run_tool('check_data', CONFIG, '--all', '--cfg-options', *heads)
    assert end.value.code == 1
    odd, wrong = capsys.readouterr().out.splitlines()[-2:]
    assert odd.startswith('odd    model.roi_head.mask_head.num_classes is 9')
    assert wrong.startswith('wrong  model.roi_head.bbox_head.num_classes is 3')


@pytest.mark.parametrize(('absent', 'shown'), [(2, ['cat', 'no0', 'no1']), (70, ['70 others'])])
def test_names_classes_without_objects_unless_there_are_many(absent: int, shown: list[str], capsys):
    report = Report()
    report.count('Objects', 'train', {'cat': 5, **{f'no{i}': 0 for i in range(absent)}})
    report.show(Console(width=80))
    text = capsys.readouterr().out
    assert all(name in text for name in shown)
    assert ('no0' in text) == (absent == 2)

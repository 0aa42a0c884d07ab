"""The report's figures of a detector are those of pycocotools, in every bit."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmhatnet.report.matching import Data, Settings, confusions, evaluate

SIDE = 40  # of the images, in pixels
OTHER = 99  # a category of the file that is none of the classes


def rle(x: int, y: int, width: int, height: int) -> dict:
    mask = np.zeros((SIDE, SIDE), np.uint8, order='F')
    mask[y : y + height, x : x + width] = 1
    return coco_masks.encode(mask)


def make_truth(rng: np.random.Generator, classes: list[int]) -> COCO:
    """Makes a few images with objects, among them crowds and ones of areas that do not count."""
    images = [int(id_) for id_ in rng.permutation(50)[: rng.integers(1, 6)]]
    annotations, first = [], int(rng.integers(2))
    for image in images:
        for _ in range(rng.integers(6)):
            box = [*rng.integers(0, 20, 2).tolist(), *rng.integers(1, 20, 2).tolist()]
            annotations.append(
                dict(
                    id=first + len(annotations),
                    image_id=image,
                    category_id=int(rng.choice([*classes, OTHER])),
                    bbox=box,
                    area=float(box[2] * box[3]) if rng.random() < 0.9 else 2e10,
                    iscrowd=int(rng.random() < 0.2),
                    segmentation=rle(*box),
                )
            )
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=image, width=SIDE, height=SIDE) for image in images],
        annotations=annotations,
        categories=[dict(id=id_, name=str(id_)) for id_ in (*classes, OTHER)],
    )
    truth.createIndex()
    return truth


def make_results(rng: np.random.Generator, truth: COCO, classes: list[int]) -> dict[int, dict]:
    """Makes detections near objects and elsewhere, many of the same score, for most images."""
    results = {}
    for image in truth.imgs:
        if rng.random() < 0.15:
            continue
        boxes, labels, scores, masks = [], [], [], []
        for _ in range(rng.integers(12)):
            label = int(rng.integers(len(classes)))
            x, y, width, height = rng.integers(0, 20, 4).tolist()
            if truth.imgToAnns[image] and rng.random() < 0.7:
                near = rng.choice(truth.imgToAnns[image])
                x, y, width, height = np.maximum(near['bbox'] + rng.integers(-1, 2, 4), 0).tolist()
                if near['category_id'] in classes and rng.random() < 0.8:
                    label = classes.index(near['category_id'])
            boxes.append([x, y, x + width, y + height])
            masks.append(rle(x, y, width, height))
            labels.append(label)
            scores.append(round(rng.random(), 1))
        results[image] = dict(
            img_id=image,
            bboxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.array(scores, np.float32),
            labels=np.array(labels, int),
            masks=masks,
        )
    return results


def as_entries(results: dict[int, dict], classes: list[int], kind: str, least: float) -> list[dict]:
    entries = []
    for image, result in results.items():
        for (left, top, right, bottom), score, label, mask in zip(
            result['bboxes'].tolist(), result['scores'], result['labels'], result['masks']
        ):
            shape = dict(bbox=[left, top, right - left, bottom - top])
            if kind == 'segm':
                shape = dict(segmentation=dict(mask))
            entry = dict(image_id=image, category_id=classes[label], score=float(score), **shape)
            entries += [entry] if score >= least else []
    return entries


def evaluate_by_pycocotools(truth: COCO, entries: list[dict], kind: str, **settings) -> COCOeval:
    evaluation = COCOeval(truth, truth.loadRes(entries), kind)
    vars(evaluation.params).update(settings)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def outcomes(evaluation: COCOeval, data: Data) -> tuple[list, list]:
    """Returns the scores of detections and whether they are right, and the scores of objects."""
    detections, objects = [], []
    for entry in filter(None, evaluation.evalImgs):
        if entry['aRng'] != evaluation.params.areaRng[0]:
            continue
        for score, match, ignored in zip(
            entry['dtScores'], entry['dtMatches'][0], entry['dtIgnore'][0]
        ):
            detections += [] if ignored else [(score, bool(match))]
        for match, ignored in zip(entry['gtMatches'][0], entry['gtIgnore']):
            score = evaluation.cocoDt.anns[int(match)]['score'] if match else -1
            objects += [] if ignored else [score]
    return sorted(detections), sorted(objects)


def pairs(evaluation: COCOeval, truth: COCO, classes: list[int]) -> list:
    found = []
    for entry in filter(None, evaluation.evalImgs):
        for detection, match, ignored in zip(
            entry['dtIds'], entry['dtMatches'][0], entry['dtIgnore'][0]
        ):
            true = truth.anns[int(match)]['category_id'] if match else None
            predicted = evaluation.cocoDt.anns[detection]['category_id']
            found += [] if ignored else [(true if true in classes else None, predicted)]
        for item, match, ignored in zip(entry['gtIds'], entry['gtMatches'][0], entry['gtIgnore']):
            true = truth.anns[item]['category_id']
            found += [] if match or ignored or true not in classes else [(true, None)]
    return sorted(found, key=str)


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_figures_and_matches_are_those_of_pycocotools(kind: str) -> None:
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        classes = [int(id_) for id_ in rng.permutation(20)[: rng.integers(1, 4)]]
        most, least = int(rng.choice([2, 3, 100])), 0.5
        with contextlib.redirect_stdout(io.StringIO()):
            truth = make_truth(rng, classes)
            results = make_results(rng, truth, classes)
            entries, confident = (as_entries(results, classes, kind, s) for s in (0, least))
            if not confident:
                continue
            of_classes = evaluate_by_pycocotools(
                truth, entries, kind, catIds=classes, maxDets=[1, most]
            )
            ious = of_classes.params.iouThrs
            options = dict(useCats=0, iouThrs=np.array([0.5]), maxDets=[most])
            of_all = evaluate_by_pycocotools(
                truth, confident, kind, areaRng=[of_classes.params.areaRng[0]], **options
            )
        data = Data(truth, sorted(truth.imgs), results, Settings(classes, ious, most))
        found = evaluate(data, kind)
        np.testing.assert_array_equal(found.precision, of_classes.eval['precision'][..., 0, -1])
        np.testing.assert_array_equal(found.recall, of_classes.eval['recall'][..., 0, -1])
        detections = zip(found.detections.scores.tolist(), found.detections.right.tolist())
        expected = outcomes(of_classes, data)
        assert (sorted(detections), sorted(found.objects.found.tolist())) == expected
        if 0 not in truth.anns:  # which pycocotools takes for no object
            seen = sorted(confusions(data, kind, least), key=str)
            assert seen == pairs(of_all, truth, classes)
            compared += 1
    assert compared > 10

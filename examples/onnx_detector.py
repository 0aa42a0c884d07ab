"""Detects objects with a file of tools/export.py: NumPy, onnxruntime and Pillow suffice."""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def paste(mask: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Maps probabilities in a grid over a box to the image (height, width), bilinearly."""

    def weights(length: int, start: float, end: float, cells: int) -> np.ndarray:
        centers = (np.arange(length) + 0.5 - start) / (end - start) * cells - 0.5
        return np.maximum(1 - np.abs(centers[:, None] - np.arange(cells)), 0)

    left, top, right, bottom = box
    rows, columns = mask.shape
    return weights(height, top, bottom, rows) @ mask @ weights(width, left, right, columns).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help='the ONNX file')
    parser.add_argument('image', help='the image')
    parser.add_argument('out', help='the image with boxes and masks')
    parser.add_argument('--score', type=float, default=0.5, help='the lowest that is shown')
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.file, providers=['CPUExecutionProvider'])
    metadata = session.get_modelmeta().custom_metadata_map
    about = {key: json.loads(text) for key, text in metadata.items()}
    image = ImageOps.exif_transpose(Image.open(args.image))
    if image.mode.startswith('I'):  # gray of 16 bits, which convert would clip at 255
        image = Image.fromarray(np.uint8(np.asarray(image) >> 8))
    image = image.convert('RGB')
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1)
    if about['channel_order'] == 'BGR':
        pixels = pixels[::-1]
    found = dict(zip(about['outputs'], session.run(None, {'images': pixels[None]})))

    draw = ImageDraw.Draw(image)
    for index in np.flatnonzero(found['scores'] >= args.score):
        box, label = found['boxes'][index], found['labels'][index]
        name, color = about['classes'][label], f'hsl({137 * label % 360}, 90%, 45%)'
        text = f'{name} {found["scores"][index]:.3f}'
        if 'masks' in found:
            inside = paste(found['masks'][index], box, *image.size) >= about['mask_thr_binary']
            image.paste(color, mask=Image.fromarray(np.uint8(128 * inside)))
        draw.rectangle(box.tolist(), outline=color, width=2)
        draw.text(box[:2] + 3, text, fill='white', stroke_width=1, stroke_fill='black')
        print(text, np.round(box, 1), inside.sum() if 'masks' in found else '')
    image.save(args.out)


if __name__ == '__main__':
    main()

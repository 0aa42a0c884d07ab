"""Serves a local web page that shows what a model predicts.

Drop an image on it, and move the threshold of the scores: it shows the boxes and masks of a
detector, the label map of a segmentor, or the classes of a classifier, and offers the files that
`mmhatnet predict` writes. It needs Gradio: pip install "gradio>=6.31,<7"

Only this machine reaches the page, unless --host names another address. Nothing is sent to other
hosts or loaded from them. Files are in a temporary folder, which is removed at the end.
"""

import argparse

from mmhatnet_cli.options import add_inference_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inference_arguments(parser)
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='the address to listen on; with another one, such as 0.0.0.0, everybody who reaches '
        'this machine can use the page, without a password and without encryption',
    )
    parser.add_argument(
        '--port', type=int, default=7860, help='the port; 0 chooses one that is free'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='the minimum score of boxes at first'
    )


def run(args: argparse.Namespace) -> None:
    from mmhatnet import cli
    from mmhatnet.demo import listen, require_gradio, serve
    from mmhatnet.inference import build_inferencer

    require_gradio()
    with listen(args.host, args.port) as sock:
        cfg = cli.load_config(args)
        inferencer = build_inferencer(cfg, args.checkpoint, cli.find_device(args.device))
        serve(inferencer, cfg, args.checkpoint, sock, args.score_thr)

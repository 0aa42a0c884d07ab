"""A local web page that shows what a model predicts. It needs Gradio."""

from mmhatnet.demo.server import listen, require_gradio, serve

__all__ = ['listen', 'require_gradio', 'serve']

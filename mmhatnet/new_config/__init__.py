"""Configs for a user's own data: the layouts of data folders, and the text of a config."""

from mmhatnet.new_config.layouts import read_layout
from mmhatnet.new_config.templates import render_config

__all__ = ['read_layout', 'render_config']

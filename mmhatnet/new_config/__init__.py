"""Configs for a user's own data: the layouts of data folders, and the text of a config."""

from mmhatnet.new_config.layouts import read_layout
from mmhatnet.new_config.templates import render_config
from mmhatnet.new_config.writing import NewConfig, write_config

__all__ = ['NewConfig', 'read_layout', 'render_config', 'write_config']

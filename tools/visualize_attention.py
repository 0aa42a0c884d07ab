"""The same as ``mmhatnet visualize-attention``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('visualize-attention')

"""The same as ``mmhatnet convert-checkpoint``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('convert-checkpoint')

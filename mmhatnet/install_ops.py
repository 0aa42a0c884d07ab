"""``python -m mmhatnet.install_ops`` is ``mmhatnet install-ops``."""

from mmhatnet_cli import run_command

if __name__ == '__main__':
    run_command('install-ops', program='python -m mmhatnet.install_ops')

"""``python -m mmhatnet`` is ``mmhatnet``."""

from mmhatnet_cli import main

if __name__ == '__main__':
    main()

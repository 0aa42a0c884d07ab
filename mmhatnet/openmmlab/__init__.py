"""What the OpenMMLab packages lack or get wrong, one file for each topic.

This module imports nothing, because the files need different packages.
"""

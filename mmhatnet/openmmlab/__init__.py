"""Additions and corrections to the OpenMMLab packages, one file for each topic.

This module imports nothing, because the files need different packages.
"""

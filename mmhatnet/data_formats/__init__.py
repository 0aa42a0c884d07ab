"""Annotations of objects in the formats of common tools, and how they become COCO's.

A format has a module whose ``read`` returns what a folder holds, or None where it is in another
format. The package writes JSON and a report beside the data, and changes no other file.
"""

from mmhatnet.data_formats.contents import DataFolder
from mmhatnet.data_formats.reading import read_folder
from mmhatnet.data_formats.writing import Conversion

__all__ = ['Conversion', 'DataFolder', 'read_folder']

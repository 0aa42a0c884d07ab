"""What the OpenMMLab packages lack or get wrong, a file each.

Nothing is imported here, because each file needs other packages.
"""

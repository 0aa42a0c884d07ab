"""The networks, and how their checkpoints are read.

Nothing is imported here: importing ``hatnet_literal`` registers a reference that users do not need.
"""

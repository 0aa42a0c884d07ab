"""The networks, and how they save memory.

Nothing is imported here, because ``hatnet_reference`` would register a network for tests.
"""

"""Checkpoints: files, the names of their tensors, and loading.

The modules import from left to right only: ``memory``, ``rehearsal`` and ``contents``, ``files``,
``folder``, ``safe_loader``, ``training_state``, ``loading``. ``keys`` needs PyTorch alone. Nothing
is imported here, because backbones need ``keys`` and ``safe_loader`` and ``loading`` needs the
backbones.
"""

# Semantic FPN 80k on ADE20K with HAT-Net small, under a short name.
_base_ = 'hatnet/hatnet-s_fpn_4xb4-80k_ade20k-512x512.py'

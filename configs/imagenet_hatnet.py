# ImageNet-1K classification with HAT-Net small, under a short name.
_base_ = 'hatnet/hatnet-small_8xb128_in1k.py'

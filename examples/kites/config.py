# Detects kites and umbrellas: mmhatnet's Mask R-CNN with the classes and data of this project, and
# the backbone frozen up to its second stage.

# With mmhatnet's tools, or after `import mmhatnet.openmmlab.setup`, this can also be
# 'mmhatnet::maskrcnn_hatnet.py'.
_base_ = __import__('mmhatnet').config_path('maskrcnn_hatnet.py')

# In the order of the annotation files, which determines MMDetection's class numbers.
classes = ('umbrella', 'kite')
model = dict(
    backbone=dict(frozen_stages=2),
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))
    ),
)

data_root = 'data/'
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    dataset=dict(**dataset, ann_file='train.json', data_prefix=dict(img='train/'))
)
val_dataloader = dict(dataset=dict(**dataset, ann_file='val.json', data_prefix=dict(img='val/')))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

# The synthetic data of tools/make_toy_data.py in COCO's layout, and a schedule of a few minutes.
# One dict holds it all, because two bases of a config may not set the same key.
data_root = 'data/toy/coco/'
dataset = dict(
    data_root=data_root,
    metainfo=dict(classes=('car', 'umbrella', 'sports ball', 'kite')),
)
resize = dict(type='Resize', scale=(160, 128), keep_ratio=True)
load_annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    load_annotations,
    resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    resize,
    load_annotations,
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

toy = dict(
    # The backbone's features sum many blocks. Without normalization, random weights start at
    # several times the loss of chance. MMDetection's configs for training from scratch normalize
    # in the same places.
    norm_cfg=dict(type='GN', num_groups=16, requires_grad=True),
    train_dataloader=dict(
        batch_size=4,
        num_workers=1,
        dataset=dict(**dataset, filter_cfg=dict(min_size=1), pipeline=train_pipeline),
    ),
    val_dataloader=dict(num_workers=1, dataset=dict(**dataset, pipeline=test_pipeline)),
    val_evaluator=dict(ann_file=data_root + 'annotations/instances_val2017.json'),
    train_cfg=dict(max_epochs=3, val_interval=3),
    optim_wrapper=dict(
        optimizer=dict(lr=7e-4, weight_decay=0.05, fused=True),
        clip_grad=dict(max_norm=10, norm_type=2),
    ),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
        dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, convert_to_iter_based=True),
    ],
    default_hooks=dict(logger=dict(interval=20)),
)
del data_root, dataset, resize, load_annotations, train_pipeline, test_pipeline

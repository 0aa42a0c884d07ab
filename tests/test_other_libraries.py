"""Libraries that hook, wrap, replace, trace or transform the backbone's modules get right results.

Each test covers one mechanism of adapters, pruning, counters, class activation maps and so on.
"""

import copy
from collections import Counter

import pytest
import torch
from mmpretrain.registry import MODELS
from synthetic import synthetic_checkpoint, synthetic_image
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

from mmhatnet import HATNet
from mmhatnet.backbones import memory
from mmhatnet.backbones.hatnet import KNOWN_LAYERS, MLP, Block, ImageNorm

SMALL = dict(embed_dims=(16, 16, 32, 32), head_dim=16, depths=(1, 2, 1, 1))
# The image has incomplete windows at both edges.
IMAGE = synthetic_image(2, 3, 61, 90)


@pytest.fixture(autouse=True)
def chunks_wherever_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, 'CHUNK_BYTES', 1)


@pytest.fixture
def model() -> HATNet:
    model = HATNet(SMALL)
    model.load_state_dict(synthetic_checkpoint(SMALL, num_classes=0), strict=False)
    return model.eval()


def last_feature(model: nn.Module) -> Tensor:
    return model(IMAGE)[-1]


def loss(model: nn.Module) -> Tensor:
    return sum((feature * feature.detach().cos()).mean() for feature in model(IMAGE))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Returns the gradients of all parameters that have one."""
    model.zero_grad()
    loss(model).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # The gradient of a bias before a normalization consists of rounding errors alone.
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-5, msg=name)


class Adapter(nn.Module):
    """Adds a low-rank branch with dropout to a linear layer."""

    def __init__(self, layer: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(self.dropout(x)))

    def merge(self) -> nn.Linear:
        self.layer.weight.data += self.up.weight @ self.down.weight
        return self.layer


def replace(model: nn.Module, wanted: type, change) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is wanted:
                setattr(module, name, change(child))


@pytest.mark.parametrize('recompute_mlp', [None, True])
def test_adapters_learn_and_merge(recompute_mlp: bool | None) -> None:
    model = HATNet(SMALL, recompute_mlp=recompute_mlp)
    model.load_state_dict(synthetic_checkpoint(SMALL, num_classes=0), strict=False)
    before = last_feature(model)
    replace(model, nn.Linear, lambda layer: Adapter(layer, dropout=0.5))
    model.eval()
    added = {name for name, _ in model.named_parameters() if 'up.' in name}
    assert added <= gradients(model).keys()
    adapted = last_feature(model)
    replace(model, Adapter, Adapter.merge)
    merged = last_feature(model)
    assert not torch.allclose(adapted, before, atol=1e-2)
    torch.testing.assert_close(merged, adapted, rtol=1e-3, atol=1e-4)


def test_recomputing_repeats_the_random_numbers_of_an_adapter() -> None:
    trained = {}
    for recompute_mlp in (False, True):
        torch.manual_seed(0)
        model = HATNet(SMALL, recompute_mlp=recompute_mlp).train()
        replace(model, nn.Linear, lambda layer: Adapter(layer, dropout=0.5))
        trained[recompute_mlp] = gradients(model)
    assert_same(trained[True], trained[False])


@pytest.mark.parametrize('training', [False, True])
def test_what_a_hook_has_seen_stays(model: HATNet, training: bool) -> None:
    seen = {}

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, out: Tensor | tuple) -> None:
            # Incomplete windows are separate calls, and both branches of a block have dropout.
            again = name.endswith(('.attn.qkv', '.drop', '.drop_path'))
            assert again or name not in seen, f'{name} is called twice'
            seen[name] = (out, copy.deepcopy(out.detach()))

        return hook

    expected = last_feature(model)
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            module.register_forward_hook(keep(name))
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(last_feature(model), expected)
    assert len(seen) == sum(not isinstance(m, nn.ModuleList) for m in model.modules()) - 1
    for name, (out, copied) in seen.items():
        assert torch.equal(out, copied), name


def test_backward_hooks_on_every_module(model: HATNet) -> None:
    expected = gradients(model)
    called = Counter()
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList):
            module.register_full_backward_hook(
                lambda module, grad_in, grad_out, name=name: called.update([name])
            )
    assert_same(gradients(model), expected)
    assert len(called) == sum(not isinstance(m, nn.ModuleList) for m in model.modules()) - 1


def test_counters_by_hooks_miss_nothing(model: HATNet) -> None:
    """Such counters know the exact types of layers and the shapes of their inputs."""
    counted = Counter()

    def linear(module: nn.Linear, args: tuple, out: Tensor) -> None:
        counted['operations'] += 2 * out.numel() * module.in_features

    def convolution(module: nn.Conv2d, args: tuple, out: Tensor) -> None:
        assert args[0].shape[1] == module.in_channels
        counted['operations'] += 2 * out.numel() * module.weight[0].numel()

    for module in model.modules():
        if type(module) is nn.Linear:
            module.register_forward_hook(linear)
        elif type(module) is nn.Conv2d:
            module.register_forward_hook(convolution)
        else:
            assert type(module) is ImageNorm or not module._parameters
    with FlopCounterMode(display=False) as counter:
        model(IMAGE)
    known = ('convolution', 'mm', 'addmm', 'bmm')
    operations = {op.__name__.split('.')[0]: n for op, n in counter.flop_counts['Global'].items()}
    assert counted['operations'] == sum(operations.get(name, 0) for name in known)


def test_pruned_weights_stay_pruned_through_training(model: HATNet) -> None:
    layer = model.stages[0].blocks[0].mlp.expand
    prune.l1_unstructured(layer, 'weight', amount=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        before = last_feature(model)
        gradients(model)
        optimizer.step()
        assert not torch.equal(last_feature(model), before)
    pruned = layer.weight_mask == 0
    assert (layer.weight[pruned] == 0).all() and (layer.weight_orig[~pruned] != 0).all()
    assert (layer.weight_orig.grad[pruned] == 0).all()


def test_parametrized_weights(model: HATNet) -> None:
    expected = last_feature(model)
    layer = model.stages[2].blocks[0].mlp.depthwise
    parametrizations.weight_norm(layer)
    torch.testing.assert_close(last_feature(model), expected)
    assert gradients(model)[
        'stages.2.blocks.0.mlp.depthwise.parametrizations.weight.original0'
    ].any()


def test_dynamic_quantization(model: HATNet) -> None:
    expected = last_feature(model)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    with torch.no_grad():
        error = (last_feature(quantized) - expected).norm() / expected.norm()
    assert 0 < error < 0.1


def test_class_activation_map_of_the_default_layer() -> None:
    """mmpretrain's vis_cam takes the last normalization, and its output as (N, C, H, W)."""
    torch.manual_seed(0)
    classifier = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='HATNet', arch=SMALL, out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=4, in_channels=32),
        )
    ).eval()
    layer = [m for m in classifier.backbone.modules() if isinstance(m, nn.GroupNorm)][-1]
    kept = {}

    def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
        out.register_hook(lambda gradient: kept.update(gradient=gradient))
        kept.update(activation=out.detach())

    layer.register_forward_hook(keep)
    classifier(IMAGE)[:, 2].sum().backward()
    assert kept['activation'].shape == kept['gradient'].shape == (2, 32, 2, 3)
    # Through the pooling, every position gets the classifier's weight of a channel as its gradient.
    expected = classifier.head.fc.weight[2].view(1, -1, 1, 1).expand(2, -1, 2, 3) / 6
    torch.testing.assert_close(kept['gradient'], expected)


def test_activations_kept_elsewhere(model: HATNet) -> None:
    expected = gradients(model)
    with torch.autograd.graph.save_on_cpu():
        assert_same(gradients(model), expected)


def test_blocks_wrapped_for_checkpointing(model: HATNet) -> None:
    expected = gradients(model)
    for stage in model.stages:
        for index, block in enumerate(stage.blocks):
            stage.blocks[index] = checkpoint_wrapper(block)
    actual = gradients(model)
    actual = {n.replace('_checkpoint_wrapped_module.', ''): g for n, g in actual.items()}
    assert_same(actual, expected)


def test_function_transforms(model: HATNet) -> None:
    expected = gradients(model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss_of(parameters: dict, image: Tensor) -> Tensor:
        features = torch.func.functional_call(model, parameters, (image,))
        return sum((feature * feature.detach().cos()).mean() for feature in features)

    assert_same(torch.func.grad(loss_of)(parameters, IMAGE), expected)
    of_each_image = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0))
    each = of_each_image(parameters, IMAGE[:, None])
    assert_same({name: gradient.mean(0) for name, gradient in each.items()}, expected)


def test_tracing_with_gradients_on(model: HATNet) -> None:
    traced = torch.jit.trace(model, IMAGE)
    other = synthetic_image(2, 3, 61, 90).flip(3)
    for feature, reference in zip(traced(other), model(other)):
        torch.testing.assert_close(feature, reference)


def test_meta_device() -> None:
    with torch.device('meta'):
        model = HATNet(SMALL, drop_path_rate=0.1)
        features = model(torch.rand(2, 3, 61, 90))
    assert all(p.is_meta for p in model.parameters())
    shapes = [(2, 16, 16, 23), (2, 16, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
    assert [tuple(feature.shape) for feature in features] == shapes


@pytest.mark.parametrize('training', [False, True])
def test_empty_batch(model: HATNet, training: bool) -> None:
    with torch.set_grad_enabled(training):
        features = model(IMAGE[:0])
    assert [len(feature) for feature in features] == [0, 0, 0, 0]
    assert features[0].shape[1:] == (16, 16, 23)
    if training:
        sum(feature.sum() for feature in features).backward()
        assert not any(p.grad.any() for p in model.parameters())


def test_compiled_block(model: HATNet) -> None:
    expected = last_feature(model)
    model.stages[1].blocks[0].compile(backend='eager')
    torch.testing.assert_close(last_feature(model), expected)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gradients_have_the_strides_of_their_parameters(
    model: HATNet, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """DDP warns about other strides and copies the gradients."""
    image = IMAGE.contiguous(memory_format=memory_format)
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        sum(feature.float().square().mean() for feature in model(image)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


def observe_by_subclass(block: Block) -> None:
    class Mine(MLP):
        pass

    block.mlp.__class__ = Mine


def ignore(*args) -> None:
    pass


OBSERVERS = {
    'forward hook': lambda b: b.mlp.expand.register_forward_hook(ignore),
    'pre-hook': lambda b: b.mlp.depthwise.register_forward_pre_hook(ignore),
    'backward hook': lambda b: b.mlp.project.register_full_backward_hook(ignore),
    'backward pre-hook': lambda b: b.mlp.out_norm.register_full_backward_pre_hook(ignore),
    'replaced layer': lambda b: setattr(b.mlp, 'depthwise', nn.Identity()),
    'subclass': observe_by_subclass,
    'forward': lambda b: setattr(b.mlp.norm, 'forward', b.mlp.norm.forward),
    'compiled layer': lambda b: b.mlp.expand.compile(),
    'buffer for weight': lambda b: prune.identity(b.mlp.expand, 'weight'),
}


def unobserved_parts(model: HATNet) -> list[str]:
    """Returns the blocks and MLPs that may overwrite sums and run in chunks."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (Block, MLP)) and memory.unobserved(module, IMAGE, KNOWN_LAYERS)
    ]


@pytest.mark.parametrize('observe', OBSERVERS.values(), ids=OBSERVERS)
def test_an_observer_changes_one_block_alone(model: HATNet, observe) -> None:
    every = unobserved_parts(model)
    assert len(every) == 2 * sum(SMALL['depths'])
    observe(model.stages[1].blocks[0])
    left = [name for name in every if not name.startswith('stages.1.blocks.0')]
    found = unobserved_parts(model)
    # A subclass of the MLP itself changes nothing inside it.
    assert [name for name in found if name != 'stages.1.blocks.0.mlp'] == left
    assert ('stages.1.blocks.0.mlp' in found) == (observe is observe_by_subclass)


def test_observers_of_all_modules_are_recognized(model: HATNet) -> None:
    handle = nn.modules.module.register_module_forward_hook(ignore)
    assert unobserved_parts(model) == []
    handle.remove()
    assert unobserved_parts(model)
    with FlopCounterMode(display=False):
        assert unobserved_parts(model) == []


@pytest.mark.parametrize('name', ['_has_transforms', '_has_dispatch_modes', '_has_function_modes'])
def test_a_private_function_that_pytorch_removes(model: HATNet, name: str, monkeypatch) -> None:
    with torch.no_grad():
        expected = last_feature(model)
        monkeypatch.setattr(memory, name, memory._missing)
        assert unobserved_parts(model) == []
        torch.testing.assert_close(last_feature(model), expected)


def test_one_observer_leaves_chunks_elsewhere(model: HATNet, monkeypatch) -> None:
    """Class activation maps hook the last stage only."""
    calls = Counter()
    run_hidden = MLP.run_hidden

    def counted(self, x: Tensor, in_place: bool = False) -> Tensor:
        calls[self] += 1
        return run_hidden(self, x, in_place)

    monkeypatch.setattr(MLP, 'run_hidden', counted)
    model.stages[-1].register_forward_hook(ignore)
    model.stages[-1].blocks[-1].mlp.depthwise.register_forward_hook(ignore)
    with torch.no_grad():
        model(IMAGE)
    first, last = (model.stages[index].blocks[-1].mlp for index in (0, -1))
    assert calls[first] > 1 and calls[last] == 1


def change(**attributes):
    return lambda mlp: mlp.depthwise.__dict__.update(attributes)


def replace_depthwise(**settings):
    def replaced(mlp: MLP) -> None:
        channels = mlp.depthwise.out_channels
        mlp.depthwise = nn.Conv2d(channels, channels, groups=channels, **settings)

    return replaced


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize(
    'edit',
    [
        change(dilation=(3, 3), padding=(3, 3)),
        change(padding_mode='circular', _reversed_padding_repeated_twice=[1] * 4),
        replace_depthwise(kernel_size=7, padding=3),
        replace_depthwise(kernel_size=5, padding='same', dilation=2),
        replace_depthwise(kernel_size=(4, 3), padding='same'),
        replace_depthwise(kernel_size=3, padding=(1, 1), padding_mode='reflect'),
        lambda mlp: setattr(mlp, 'depthwise', nn.Dropout(0.0)),
    ],
)
def test_another_depthwise_convolution(model: HATNet, edit, grad: bool) -> None:
    for module in model.modules():
        if isinstance(module, MLP):
            edit(module)
    with torch.set_grad_enabled(grad):
        features = model(IMAGE)
        for module in model.modules():
            if isinstance(module, MLP):
                module.norm.register_forward_hook(ignore)  # which prevents chunks
        for feature, expected in zip(features, model(IMAGE)):
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


def test_outputs_that_a_mode_keeps_stay(model: HATNet) -> None:
    kept = []

    class Keep(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                kept.append((out, out.clone()))
            return out

    with torch.no_grad(), Keep():
        model(IMAGE)
    assert kept and all(torch.equal(out, copied) for out, copied in kept)


@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('part', ['mlp', 'attn', 'block', 'both'])
def test_removed_parts(model: HATNet, part: str, grad: bool) -> None:
    """Pruning in depth and ablations replace a module by an identity."""
    stage = model.stages[1]
    block = stage.blocks[1]
    if part == 'block':
        stage.blocks[1] = nn.Identity()
    else:
        for name in ('attn', 'mlp') if part == 'both' else (part,):
            setattr(block, name, nn.Identity())
    seen = {}

    def keep(module: nn.Module, args: tuple, out: Tensor) -> None:
        seen.update(input=args[0], before=args[0].clone(), out=out)

    stage.blocks[1].register_forward_hook(keep)
    with torch.set_grad_enabled(grad):
        features = model(IMAGE)
        x = seen['before']
        if part == 'block':
            expected = x
        else:
            expected = x + (x if part in ('attn', 'both') else block.attn(x))
            expected = expected + (expected if part in ('mlp', 'both') else block.mlp(expected))
    torch.testing.assert_close(seen['out'], expected)
    assert torch.equal(seen['input'], seen['before'])
    if grad:
        sum(feature.square().mean() for feature in features).backward()
        assert all(p.grad is not None for p in model.stages[0].parameters())

"""Saves memory on a CPU, and time with it, where nothing can observe the difference.

Two savings: a function runs over chunks of its input that stay in the cache, and a sum overwrites
one of its terms. Libraries that hook, wrap, replace or trace modules would see layers run several
times and outputs change, so a module asks ``unobserved`` about itself first.
"""

from collections.abc import Callable, Set

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

# Beyond about this size glibc takes fresh memory from the system, which clears it page by page. A
# CPU waits longer for that than for the arithmetic.
CHUNK_BYTES = 16 * 10**6

HOOKS = ('_forward_pre_hooks', '_forward_hooks', '_backward_pre_hooks', '_backward_hooks')
GLOBAL_HOOKS = [f'_global{name}' for name in HOOKS]


def _missing() -> bool:
    return True


# PyTorch has no public names for these. A version without them counts as an observer.
_has_transforms = getattr(torch._C, '_are_functorch_transforms_active', _missing)
_has_dispatch_modes = getattr(torch._C, '_len_torch_dispatch_stack', _missing)
_has_function_modes = getattr(torch._C, '_len_torch_function_stack', _missing)


def unobserved(module: nn.Module, x: Tensor, known: Set[type[nn.Module]]) -> bool:
    """Whether nothing can tell how often the layers inside a module run, or overwrite outputs.

    Hooks, wrappers, replaced layers, compilers, tracers, function transforms and modes of PyTorch
    can.

    Args:
        module (nn.Module): The module that asks. Its own hooks do not matter.
        x (Tensor): Its input.
        known (Set[type[nn.Module]]): The exact types of layers that return a new tensor and do
            nothing else.
    """
    # In this order: Dynamo evaluates the first test and compiles none of the others.
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or _has_transforms()
        or _has_dispatch_modes()
        or _has_function_modes()
        or type(x) is not Tensor
        or any(getattr(module_hooks, name, True) for name in GLOBAL_HOOKS)
    ):
        return False
    return all(
        type(layer) in known
        and not any(getattr(layer, name) for name in HOOKS)
        and 'forward' not in vars(layer)
        and layer._compiled_call_impl is None
        # Pruning and parametrization keep the weight elsewhere, other libraries subclass it.
        and all(type(p) is nn.Parameter for p in layer._parameters.values() if p is not None)
        for child in module.children()
        for layer in child.modules()
    )


def add(branch: Tensor, x: Tensor, in_place: bool) -> Tensor:
    """``branch + x``, into the memory of ``branch`` where that is allowed and has the right dtype.

    Autocast mixes dtypes. The sum has the more precise one.
    """
    return branch.add_(x) if in_place and branch.dtype == x.dtype else branch + x


def row_margin(layer: nn.Module) -> int | None:
    """The number of rows above and below a chunk that a convolution needs for its output.

    It is None for layers that cannot run in chunks of rows. Users may replace a convolution or
    change its attributes.
    """
    if type(layer) is not nn.Conv2d or layer.stride[0] != 1 or layer.padding_mode != 'zeros':
        return None
    reach = layer.dilation[0] * (layer.kernel_size[0] - 1)
    padding = layer.padding if isinstance(layer.padding, str) else 2 * layer.padding[0]
    return reach // 2 if padding in (reach, 'same') and reach % 2 == 0 else None


def in_chunks(
    function: Callable[[Tensor], Tensor], x: Tensor, num_bytes: int, margin: int
) -> Tensor:
    """Applies a function to a few images at a time, or to a few rows of one image.

    Args:
        function (Callable): Maps (n, C, h, W) to (n, C', h, W). A row of its output depends on at
            most ``margin`` rows of the input above and below it.
        x (Tensor): The whole input (N, C, H, W).
        num_bytes (int): The memory that the function needs for the whole input.
        margin (int): The overlap of neighboring chunks in rows.

    Returns:
        Tensor: The same as ``function(x)``, (N, C', H, W).
    """
    height = x.shape[2]
    images = CHUNK_BYTES * len(x) // num_bytes
    if images:
        return torch.cat([function(chunk) for chunk in x.split(images)])
    if len(x) > 1:
        num_bytes //= len(x)
        return torch.cat([in_chunks(function, image, num_bytes, margin) for image in x.split(1)])
    rows = max(CHUNK_BYTES * height // num_bytes - 2 * margin, 8 * margin, 1)
    chunks = []
    for top in range(0, height, rows):
        first = max(top - margin, 0)
        chunk = function(x[:, :, first : top + rows + margin])
        chunks.append(chunk[:, :, top - first : top - first + rows])
    return torch.cat(chunks, dim=2)

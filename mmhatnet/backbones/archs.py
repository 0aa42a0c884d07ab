"""The variants of HAT-Net (paper, table 1), and the settings of custom ones."""

ARCHS = {
    'tiny': dict(embed_dims=(48, 96, 240, 384), head_dim=48, depths=(2, 2, 6, 3)),
    'small': dict(embed_dims=(64, 128, 320, 512), head_dim=64, depths=(2, 3, 8, 3)),
    'medium': dict(
        embed_dims=(64, 128, 320, 512),
        head_dim=64,
        depths=(3, 6, 18, 3),
        kernel_sizes=(5, 3, 5, 3),
    ),
    'large': dict(embed_dims=(64, 128, 320, 640), head_dim=64, depths=(3, 8, 27, 3)),
}
ARCH_DEFAULTS = dict(
    kernel_sizes=(3, 3, 3, 3),
    mlp_ratios=(8, 8, 4, 4),
    windows=(8, 7, 7, None),
    poolings=(8, 4, 2, None),
)


def resolve_arch(arch: str | dict) -> dict:
    """Returns the complete settings of a named or custom architecture.

    Raises:
        ValueError: If the name or a setting is unknown or missing, if the settings of the stages
            differ in number, or if a head does not divide a stage's channels.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch={arch!r} is not a HAT-Net variant: choose one of {list(ARCHS)}')
        return {**ARCH_DEFAULTS, **ARCHS[arch]}

    known = [*ARCHS['tiny'], *ARCH_DEFAULTS]
    settings = {**ARCH_DEFAULTS, **arch}
    unknown = [key for key in settings if key not in known]
    missing = [key for key in known if key not in settings]
    if unknown or missing:
        raise ValueError(
            f'arch={arch!r}: unknown settings {unknown}, missing settings {missing}; '
            f'a custom architecture has the settings {known}'
        )
    head_dim = settings['head_dim']
    per_stage = {key: tuple(settings[key]) for key in known if key != 'head_dim'}
    lengths = {key: len(values) for key, values in per_stage.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f'arch={arch!r}: the numbers of stages differ: {lengths}')
    indivisible = [dim for dim in per_stage['embed_dims'] if dim % head_dim]
    if indivisible:
        raise ValueError(f'embed_dims {indivisible} cannot be divided by head_dim={head_dim}')
    half_given = [
        stage
        for stage, (window, pooling) in enumerate(zip(per_stage['windows'], per_stage['poolings']))
        if (window is None) != (pooling is None)
    ]
    if half_given:
        raise ValueError(
            f'stages {half_given}: windows and poolings are None together or not at all'
        )
    return dict(per_stage, head_dim=head_dim)

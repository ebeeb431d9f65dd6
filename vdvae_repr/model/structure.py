"""The grammar of the strings that list a VDVAE's blocks (Child 2020, figure 3); it needs no torch."""

from __future__ import annotations

from typing import NamedTuple

from vdvae_repr.config import (
    MOST_CHANNELS,
    AnyModelConfig,
    ModelConfig,
    PixelCNNConfig,
    StudentConfig,
    shown,
)
from vdvae_repr.errors import ConfigError


class BlockSpec(NamedTuple):
    """One block of a block string."""

    resolution: int
    down_rate: int | None = None  # `32d2`: average pooling by 2 after the block
    mixin: int | None = None  # `8m4`: adds the 4x4 state, unpooled, before the block


MOST_BLOCKS = 1000  # of an encoder or a decoder; the deepest published one has 78


def parse_blocks(string: str, *, key: str) -> list[BlockSpec]:
    """Read `32x11,32d2,16x6` (encoder) or `1x1,4m1,4x2` (decoder) into blocks, in order.

    Raises:
        ConfigError: an item that is none of RxCOUNT, RdRATE, RmRESOLUTION, R; more than `MOST_BLOCKS`.
    """
    blocks: list[BlockSpec] = []
    for item in string.split(","):
        try:
            for letter in "xmd":
                if letter in item:
                    resolution, number = (int(part) for part in item.split(letter))
                    if min(resolution, number) < 1:
                        raise ValueError
                    match letter:
                        case "x":
                            blocks += [BlockSpec(resolution)] * min(number, MOST_BLOCKS + 1)
                        case "m":
                            blocks.append(BlockSpec(resolution, mixin=number))
                        case _:
                            blocks.append(BlockSpec(resolution, down_rate=number))
                    break
            else:
                blocks.append(BlockSpec(int(item)))
        except ValueError as error:
            raise ConfigError(
                f"{key}: expected items as 32x11, 32d2 or 8m4, found {shown(item)} in {shown(string)}"
            ) from error
        if len(blocks) > MOST_BLOCKS:
            raise ConfigError(
                f"{key}: expected {MOST_BLOCKS} blocks at most, found more in {shown(string)}"
            )
    return blocks


def parse_widths(string: str) -> dict[int, int]:
    """Read `16:128,8:192` into {resolution: channels}; an empty string gives {}.

    Raises:
        ConfigError: another form, or channels that are none or too many.
    """
    try:
        items = [item.split(":") for item in string.split(",") if item]
        widths = {int(resolution): int(channels) for resolution, channels in items}
    except ValueError as error:
        raise ConfigError(f"model.widths: expected 16:128,8:192, found {shown(string)}") from error
    if not all(1 <= channels <= MOST_CHANNELS for channels in widths.values()):
        raise ConfigError(
            f"model.widths: expected channels from 1 to {MOST_CHANNELS}, found {shown(string)}"
        )
    return widths


def check_structure(config: ModelConfig) -> None:
    """Refuse block strings and widths that do not fit together, before any tensor is made.

    Raises:
        ConfigError: names the first block that does not fit, and what would.
    """
    reached = check_bottom_up(config)
    top_down = parse_blocks(config.top_down, key="model.top_down")
    named = parse_widths(config.widths)
    before: set[int] = set()
    for spec in top_down:
        if spec.resolution not in reached or spec.down_rate is not None:
            raise ConfigError(
                f"model.top_down: the encoder never reaches {_item(spec)}; "
                f"it reaches {sorted(reached)}"
            )
        if spec.mixin is not None and (spec.mixin not in before or spec.resolution % spec.mixin):
            raise ConfigError(
                f"model.top_down: expected {_item(spec)} to mix in a resolution before it that divides "
                f"{spec.resolution}, one of {sorted(before)}"
            )
        if spec.mixin is not None and config.unpool != "transposed":
            coarse, own = (named.get(r, config.width) for r in (spec.mixin, spec.resolution))
            if coarse < own:
                raise ConfigError(
                    f"model.widths: expected at least {own} channels at {spec.mixin}, as at "
                    f"{spec.resolution}, where {_item(spec)} mixes it in, found {coarse}"
                )
        before.add(spec.resolution)
    if top_down[-1].resolution != config.image_size:
        raise ConfigError(
            f"model.top_down must end at image_size {config.image_size}, found {top_down[-1].resolution}"
        )


def check_bottom_up(config: ModelConfig | StudentConfig) -> set[int]:
    """Return the resolutions that the bottom-up blocks reach; refuse blocks and widths that do not fit.

    Raises:
        ConfigError: names the first block that does not fit, and what would.
    """
    resolution = config.image_size
    reached = {resolution}
    for spec in parse_blocks(config.bottom_up, key="model.bottom_up"):
        if spec.resolution != resolution or spec.mixin is not None:
            raise ConfigError(
                f"model.bottom_up: expected a block at {resolution}, found {_item(spec)}"
            )
        if resolution % (spec.down_rate or 1):
            raise ConfigError(
                f"model.bottom_up: expected a rate that divides {resolution}, found {_item(spec)}"
            )
        resolution //= spec.down_rate or 1
        reached.add(resolution)
    named = parse_widths(config.widths)
    if named.get(config.image_size, config.width) != config.width:
        raise ConfigError(
            f"model.widths: expected {config.width} channels at {config.image_size}, as model.width, found "
            f"{named[config.image_size]}"
        )
    narrowest = min([config.width, *named.values()])
    if int(narrowest * config.bottleneck_multiple) < 1:
        raise ConfigError(
            f"model.bottleneck_multiple: expected 1 channel at least inside each block, found "
            f"{narrowest} x {config.bottleneck_multiple}"
        )
    return reached


def check_all_is_used(config: AnyModelConfig) -> None:
    """Refuse layers of a VDVAE that reach no pixel, and widths of no resolution or of one given twice.

    They make a model, so that one that was trained with them loads; a new run has no use for them.

    Raises:
        ConfigError: names them.
    """
    if isinstance(config, PixelCNNConfig):
        return
    items = [item for item in config.widths.split(",") if item]
    named = [int(item.partition(":")[0]) for item in items]
    if twice := [resolution for resolution in named if named.count(resolution) > 1]:
        raise ConfigError(
            f"model.widths: expected each resolution once, found {twice[0]} twice in {shown(config.widths)}"
        )
    reached = sorted(check_bottom_up(config))
    if strange := [resolution for resolution in named if resolution not in reached]:
        raise ConfigError(
            f"model.widths: expected resolutions that the blocks reach, {reached}, found {strange[0]}"
        )
    if isinstance(config, StudentConfig):
        return
    blocks = parse_blocks(config.top_down, key="model.top_down")
    read = {config.image_size}  # resolutions whose states later blocks, or the pixels, depend on
    unread = set()
    for spec in reversed(blocks):
        if spec.resolution not in read:
            unread.add(spec.resolution)
        elif spec.mixin is not None:
            read.add(spec.mixin)
    if unread:
        coarse = max(unread)
        finer = min(spec.resolution for spec in blocks if spec.resolution > coarse)
        layers = " and ".join(f"{resolution}x{resolution}" for resolution in sorted(unread))
        raise ConfigError(
            f"model.top_down: layers at {layers} reach no pixel, as no block after them mixes them in; mix "
            f"each in where the next resolution begins, as {finer}m{coarse}"
        )


def _item(spec: BlockSpec) -> str:
    """Write a block as block strings do."""
    if spec.mixin is not None:
        return f"{spec.resolution}m{spec.mixin}"
    return str(spec.resolution) if spec.down_rate is None else f"{spec.resolution}d{spec.down_rate}"

"""Still images to pixel tensors, and how many placeholder tokens each takes: patches, tiles, the grids between them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparrow.video.image_settings import PatchImages, TileImages
from sparrow.video.info import VideoError
from sparrow.video.pixel_settings import Pair
from sparrow.video.pixels import MAX_BYTES, Memo, frame_pixels, once, patch_pixels, resized


@dataclass(frozen=True)
class ImagePixels:
    """What a prompt's images become.

    Attributes:
        inputs: the model's arguments; InternVL: none, its images and frames go together in the prompt's order.
        tokens: placeholders of each image.
        tiles: InternVL: float32 [tiles, 3, H, W] of each image.
    """

    inputs: dict[str, Tensor]
    tokens: list[int]
    tiles: list[Tensor]


def image_pixels(
    images: list[np.ndarray], settings: PatchImages | TileImages, sizes: list[Pair | None], memo: Memo | None = None
) -> ImagePixels:
    """The images of one prompt, in order.

    Args:
        images: uint8 [H, W, 3] each, at least one.
        settings: the family's.
        sizes: (height, width) after the resize where the message asks for one; patch models only.
        memo: see prepare.

    Raises:
        VideoError: one side of an image is more than 200 times the other (patch models), or it takes over 16 GiB.
    """
    if isinstance(settings, PatchImages):
        made = [once(memo, _patches, image, settings, size) for image, size in zip(images, sizes, strict=True)]
        pixels, grids = (torch.cat(tensors) for tensors in zip(*made, strict=True))
        tokens = [int(grid.prod()) // settings.merge_size**2 for grid in grids]
        return ImagePixels({"pixel_values": pixels, "image_grid_thw": grids}, tokens, [])
    if settings.family == "internvl":
        tiles = [once(memo, _tiles, image, settings) for image in images]
        return ImagePixels({}, [len(t) * settings.tokens for t in tiles], tiles)
    return _llava(images, settings, memo)


def _patches(image: np.ndarray, settings: PatchImages, size: Pair | None) -> tuple[Tensor, Tensor]:
    return patch_pixels(image[None], settings, size)


def _llava(images: list[np.ndarray], settings: TileImages, memo: Memo | None) -> ImagePixels:
    """LLaVA: tiles padded to one number, [images, tiles, 3, H, W]."""
    onevision = settings.family == "llava_onevision"
    if onevision and len(images) > 1:
        tiles = [once(memo, _squared, image, settings) for image in images]
        # one newline embedding each
        tokens = [settings.tokens + 1] * len(images)
    else:
        tiles = [once(memo, _anyres, image, settings) for image in images]
        height, width = tiles[0].shape[-2:]
        tokens = [_anyres_tokens(image.shape, (height, width), settings) for image in images]
    most = max(map(len, tiles))
    pixels = torch.stack([F.pad(t, (0, 0, 0, 0, 0, 0, 0, most - len(t))) for t in tiles])
    sizes = torch.tensor([image.shape[:2] for image in images])
    inputs = {"pixel_values": pixels, "image_sizes": sizes}
    return ImagePixels(inputs | ({"batch_num_images": torch.tensor([len(images)])} if onevision else {}), tokens, [])


def _tiles(image: np.ndarray, settings: TileImages) -> Tensor:
    """InternVL: float32 [tiles, 3, H, W], row by row, and the whole image last where there are several."""
    assert settings.size is not None
    height, width = settings.size
    columns, rows = _canvas(image.shape, settings)
    whole = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    canvas = _resized(whole, (height * rows, width * columns))[0]
    tiles = [
        _cut(canvas, row * height, column * width, height, width) for row in range(rows) for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(_array(_resized(whole, settings.size)[0]))
    return frame_pixels(np.stack(tiles), settings)


def _canvas(shape: tuple[int, ...], settings: TileImages) -> tuple[int, int]:
    """(columns, rows) of tiles nearest to the image's aspect ratio; of equal ones the largest that it half fills."""
    assert settings.size is not None
    height, width = shape[:2]
    most = range(1, settings.max_tiles + 1)
    grids = [(c, r) for c in most for r in most if settings.min_tiles <= c * r <= settings.max_tiles]
    best, least = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        difference = abs(width / height - columns / rows)
        fills = height * width > 0.5 * settings.size[0] * settings.size[1] * columns * rows
        if difference < least or (difference == least and fills):
            best, least = (columns, rows), difference
    return best


def _anyres(image: np.ndarray, settings: TileImages) -> Tensor:
    """LLaVA: float32 [1 + tiles, 3, H, W]: the whole image, and the tiles of it at the best resolution, row by row."""
    target = _best_resolution(image.shape, settings)
    edge = settings.shortest_edge
    size, side = settings.size or (edge, edge), settings.crop[0] if settings.crop else (settings.size or (edge,))[0]
    assert size[0] is not None and size[1] is not None and side is not None
    whole = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    inner = _inner_size(image.shape, target)
    rest = target[0] - inner[0], target[1] - inner[1]
    border = rest[1] // 2, rest[1] - rest[1] // 2, rest[0] // 2, rest[0] - rest[0] // 2
    canvas = F.pad(_resized(whole, inner), border)[0]
    tiles = [_array(_resized(whole, (size[0], size[1]))[0])]
    tiles += [_cut(canvas, y, x, side, side) for y in range(0, target[0], side) for x in range(0, target[1], side)]
    # one by one: those at the edge may be smaller
    return torch.cat([frame_pixels(tile[None], settings) for tile in tiles])


def _best_resolution(shape: tuple[int, ...], settings: TileImages) -> Pair:
    """The pinpoint that keeps most of the image's pixels; of equal ones, that which wastes fewest."""
    height, width = shape[:2]

    def worth(pinpoint: Pair) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pinpoint[0] * pinpoint[1]

    return max(settings.pinpoints, key=worth)


def _inner_size(shape: tuple[int, ...], target: Pair) -> Pair:
    """(height, width) of the largest image of this aspect ratio in `target`."""
    scale_h, scale_w = target[0] / shape[0], target[1] / shape[1]
    if scale_w < scale_h:
        return min(math.ceil(shape[0] * scale_w), target[0]), target[1]
    return target[0], min(math.ceil(shape[1] * scale_h), target[1])


def _anyres_tokens(shape: tuple[int, ...], tile: Pair, settings: TileImages) -> int:
    """Placeholders of an image: its whole, and the features of its tiles without the border, a newline for each row."""
    height, width = shape[:2]
    best = _best_resolution(shape, settings)
    rows, columns = (grid * (side // edge) for grid, side, edge in zip(settings.grid, best, tile, strict=True))
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    if settings.max_area is not None:
        ratio = math.sqrt(rows * columns / (settings.max_area * settings.grid[0] ** 2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return settings.tokens + rows * columns + rows


def _squared(image: np.ndarray, settings: TileImages) -> Tensor:
    """LLaVA-OneVision: float32 [1, 3, H, W], the image in the middle of a square of the mean colour."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(mean * 255) for mean in settings.image_mean]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return frame_pixels(square[None], settings)


def _resized(image: Tensor, size: Pair) -> Tensor:
    if 3 * size[0] * size[1] > MAX_BYTES:
        raise VideoError(f"an image must take at most {MAX_BYTES >> 30} GiB, got {size[0]} x {size[1]} pixels")
    return resized(image, size)


def _cut(canvas: Tensor, top: int, left: int, height: int, width: int) -> np.ndarray:
    return _array(canvas[:, top : top + height, left : left + width])


def _array(image: Tensor) -> np.ndarray:
    """[3, H, W] -> [H, W, 3]."""
    return image.permute(1, 2, 0).numpy()

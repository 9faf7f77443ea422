"""Softmaxes and products of vision models that attend to nothing, or only nearly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.sites.look_alikes.case import LookAlike, kt, weight

IMAGE = ((2, 8, 6, 6),)
FRAMES = ((2, 8, 6, 6), (2, 8, 6, 6))


def grid() -> Tensor:
    """Return the coordinates of 36 pixels, ``[36, 2]``."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    return torch.stack([columns, rows], -1).view(36, 2)


def keypoints(x: Tensor) -> Tensor:
    """Spatial softmax: the expected coordinate of each channel."""
    return x.flatten(2).softmax(-1) @ grid()


def keypoints_by_axis(x: Tensor) -> Tensor:
    weights = x.flatten(2).softmax(-1).view(2, 8, 6, 6)
    place = torch.arange(6.0)
    return torch.stack([(weights.sum(2) * place).sum(-1), (weights.sum(3) * place).sum(-1)], -1)


def disparity(x: Tensor) -> Tensor:
    """Soft-argmin of a cost volume: the channels are candidates."""
    return ((-x).softmax(1) * torch.arange(8.0).view(1, 8, 1, 1)).sum(1)


def disparity_by_convolution(x: Tensor) -> Tensor:
    return F.conv2d((-x).softmax(1), torch.arange(8.0).view(1, 8, 1, 1))


def correlation(a: Tensor, b: Tensor) -> list[Tensor]:
    """All pairs of pixels, pooled at several levels: no softmax and no values."""
    volume = (kt(a.flatten(2)) @ b.flatten(2) / 8**0.5).view(72, 1, 6, 6)
    return [volume, F.avg_pool2d(volume, 2), F.avg_pool2d(volume, 3)]


def correlation_lookup(a: Tensor, b: Tensor) -> Tensor:
    volume = (kt(a.flatten(2)) @ b.flatten(2)).view(72, 1, 6, 6)
    return F.grid_sample(volume, torch.zeros(72, 3, 3, 2), align_corners=True)


def matching(a: Tensor, b: Tensor) -> Tensor:
    """Global matching: attention whose values are the coordinates of the pixels."""
    return (kt(a.flatten(2)) @ b.flatten(2) / 8**0.5).softmax(-1) @ grid()


def dual_softmax(a: Tensor, b: Tensor) -> Tensor:
    """Mutual matching: the product of the softmaxes over both sides."""
    scores = kt(a.flatten(2)) @ b.flatten(2)
    return scores.softmax(1) * scores.softmax(2)


def dual_softmax_and_values(a: Tensor, b: Tensor) -> Tensor:
    scores = kt(a.flatten(2)) @ b.flatten(2)
    return (scores.softmax(1) * scores.softmax(2)) @ kt(b.flatten(2))


def gram(a: Tensor, b: Tensor) -> Tensor:
    """The style of an image."""
    return (a.flatten(2) @ kt(a.flatten(2)) - b.flatten(2) @ kt(b.flatten(2))).square().sum()


def second_order(a: Tensor, b: Tensor) -> Tensor:
    """Covariance pooling, whitened by two Newton-Schulz steps: products of products."""
    x = a.flatten(2)
    c = x @ kt(x) / 36
    y, z, eye = c, torch.eye(8).expand(2, 8, 8), torch.eye(8)
    for _ in range(2):
        t = 0.5 * (3 * eye - z @ y)
        y, z = y @ t, t @ z
    return y


def predicted_kernels(x: Tensor) -> Tensor:
    """Content-aware reassembly: weights are predicted from the pixel, and padding takes part."""
    weights = F.conv2d(x, weight(9, 8, 1, 1)).softmax(1)
    patches = F.unfold(x, 3, padding=1).view(2, 8, 9, 6, 6)
    return (patches * weights.unsqueeze(1)).sum(2)


def convex_upsampling(x: Tensor) -> Tensor:
    """Each fine pixel is a convex combination of nine coarse ones."""
    mask = F.conv2d(x, weight(36, 8, 1, 1)).view(2, 1, 9, 2, 2, 6, 6).softmax(2)
    patches = F.unfold(x[:, :2], 3, padding=1).view(2, 2, 9, 1, 1, 6, 6)
    return (mask * patches).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 12, 12)


def padded_neighbours(a: Tensor, b: Tensor) -> Tensor:
    """Local attention over unfolded windows: the zeros of the padding take softmax mass."""
    keys = F.unfold(a, 3, padding=1).view(2, 8, 9, 36)
    values = F.unfold(b, 3, padding=1).view(2, 8, 9, 36)
    scores = torch.einsum("bdn,bdkn->bnk", a.flatten(2), keys)
    return torch.einsum("bnk,bdkn->bdn", scores.softmax(-1), values)


def shifted_neighbours(a: Tensor, b: Tensor) -> Tensor:
    """The same by padding and slicing."""
    keys, values = F.pad(a, (1, 1)), F.pad(b, (1, 1))
    near = [keys[..., n : n + 6] for n in range(3)], [values[..., n : n + 6] for n in range(3)]
    k, v = (torch.stack(parts, -1) for parts in near)
    weights = (a.unsqueeze(-1) * k).sum(1, keepdim=True).softmax(-1)
    return (weights * v).sum(-1)


def cosine_map(a: Tensor, b: Tensor) -> Tensor:
    """Few-shot comparison: similarities, a maximum, and no values."""
    return (kt(F.normalize(a.flatten(2), dim=1)) @ F.normalize(b.flatten(2), dim=1)).amax(-1)


def prototype(a: Tensor, b: Tensor) -> Tensor:
    """Masked average pooling and a similarity."""
    m = b[:, :1].sigmoid()
    centre = (a * m).sum((-2, -1)) / m.sum((-2, -1))
    return torch.einsum("bdhw,bd->bhw", a, centre)


def global_context(x: Tensor) -> Tensor:
    """One softmax over the pixels from a 1x1 convolution, and one vector."""
    weights = F.conv2d(x, weight(1, 8, 1, 1)).flatten(2).softmax(-1)
    return x + (x.flatten(2) @ kt(weights)).unsqueeze(-1)


def local_response(x: Tensor) -> Tensor:
    return x / (1 + F.avg_pool3d(x.square().unsqueeze(1), (3, 1, 1), 1, (1, 0, 0)).squeeze(1)).sqrt()


def soft_pool(x: Tensor) -> Tensor:
    """Exponentials over their sum in windows, as averages."""
    e = x.exp()
    return F.avg_pool2d(e * x, 2) / F.avg_pool2d(e, 2)


def soft_max_pool(x: Tensor) -> Tensor:
    """The expected value of each channel under its own softmax."""
    return (x.flatten(2).softmax(-1) * x.flatten(2)).sum(-1)


def fixed_filters(x: Tensor) -> Tensor:
    """A learned filter bank, normalised by softmax: constants only."""
    return x @ weight(6, 6).softmax(-1)


def discrete_transform(x: Tensor) -> Tensor:
    return weight(6, 6) @ x @ weight(6, 6).mT


COORDINATES = ("additive-attention", "pooling", "outlook-attention")
OUTLOOK = ("outlook-attention", "additive-attention", "pooling")

CASES: dict[str, LookAlike] = {
    "keypoints": LookAlike(keypoints, IMAGE, COORDINATES, reason=("no product", "")),
    "keypoints by axis": LookAlike(keypoints_by_axis, IMAGE, COORDINATES, reason=("",)),
    "disparity": LookAlike(disparity, IMAGE, COORDINATES, reason=("",)),
    "disparity by convolution": LookAlike(disparity_by_convolution, IMAGE, COORDINATES, reason=("",)),
    "correlation volume": LookAlike(correlation, FRAMES),
    "correlation lookup": LookAlike(correlation_lookup, FRAMES),
    "matching": LookAlike(matching, FRAMES, ("attention",), reason=("",), constant=("v",)),
    "mutual matching": LookAlike(dual_softmax, FRAMES, reason=("not followed", "")),
    "mutual matching and values": LookAlike(
        dual_softmax_and_values, FRAMES, ("attention",), ("weight-function",), ("",)
    ),
    "Gram matrices": LookAlike(gram, FRAMES),
    "covariance pooling": LookAlike(second_order, FRAMES, ("linear-attention", "channel-attention")),
    "predicted kernels": LookAlike(predicted_kernels, IMAGE, OUTLOOK, reason=("",)),
    "convex upsampling": LookAlike(convex_upsampling, IMAGE, OUTLOOK, reason=("",)),
    "padded neighbours": LookAlike(padded_neighbours, FRAMES, ("attention", "pooling"), reason=("",)),
    "shifted neighbours": LookAlike(shifted_neighbours, FRAMES, ("attention", "pooling"), reason=("",)),
    "cosine map": LookAlike(cosine_map, FRAMES),
    "prototype": LookAlike(prototype, FRAMES),
    "global context": LookAlike(
        global_context, IMAGE, ("pooling", "latent-attention", *COORDINATES), reason=("",)
    ),
    "local response": LookAlike(local_response, IMAGE),
    "soft pooling": LookAlike(soft_pool, IMAGE),
    "expected value": LookAlike(soft_max_pool, IMAGE, COORDINATES, reason=("",)),
    "fixed filters": LookAlike(fixed_filters, IMAGE, ("positional-attention",), reason=("",)),
    "discrete transform": LookAlike(discrete_transform, IMAGE),
}
"""``matching`` is attention to constant values. In ``padded neighbours`` a query's keys are its own: each
query is alone with nine keys, which is exact, zeros included, or is left alone."""

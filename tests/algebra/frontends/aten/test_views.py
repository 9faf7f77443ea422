"""Operators of torch.export graphs that move entries, against torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.algebra.frontends.aten.family import Family, check_operator

VIEWS = Family(
    {
        "view": lambda t: t.q.view(2, 6, 20),
        "reshape-infer": lambda t: t.q.reshape(-1, 4, 3),
        "flatten": lambda t: t.q.flatten(1, 2),
        "unflatten": lambda t: t.a.unflatten(-1, (2, 3)),
        "squeeze": lambda t: (
            t.m[None, :, None].squeeze() + t.m[None].squeeze(0) + t.m[None, None].squeeze((0, 1))
        ),
        "unsqueeze": lambda t: t.m.unsqueeze(-1).unsqueeze(0),
        "transpose": lambda t: t.q.transpose(-1, 1),
        "permute": lambda t: t.q.permute(2, 0, -1, 1),
        "matrix-transpose": lambda t: (
            t.q.mT @ t.q + (t.m.t() @ t.m)[:4, :4] + t.m[:, :4].T + t.m[:, :4].adjoint()
        ),
        "movedim": lambda t: t.q.movedim(1, -1),
        "movedim-several": lambda t: t.q.movedim((0, 3), (2, 0)),
        "swapaxes": lambda t: t.q.swapaxes(0, 2),
        "expand": lambda t: t.u.expand(3, -1),
        "expand-as": lambda t: t.u[None].expand_as(t.m),
        "select": lambda t: t.q[:, 1] + t.q[:, -2],
        "slice": lambda t: t.q[:, :, 1:4],
        "slice-from-the-end": lambda t: t.q[:, :, -2:] + t.q[:, :, :-3],
        "slice-too-far": lambda t: t.q[:, :, -100:] + t.q[:, :, :100],
        "slice-step": lambda t: t.q[:, 1::2, 0:5:2],
        "slice-none": lambda t: t.q[..., 2:2],
        "narrow": lambda t: t.q.narrow(2, 1, 3),
        "narrow-from-the-end": lambda t: t.q.narrow(2, -3, 2),
        "split": lambda t: t.a.split(4, -1)[1] + t.a.split(4, -1)[0][..., :2],
        "split-sizes": lambda t: t.a.split([1, 3, 2], -1)[1],
        "chunk": lambda t: t.k.chunk(3, 2)[2] + t.k.chunk(3, 2)[0][:, :, :1],
        "unbind": lambda t: t.m.unbind(0)[1] - t.m.unbind(0)[3],
        "cat": lambda t: torch.cat([t.k, t.k[:, :, :2], t.q], -2),
        "cat-empty": lambda t: torch.cat([torch.zeros(0, dtype=torch.float64), t.u]),
        "stack": lambda t: torch.stack([t.m, t.m + 1], 1),
        "stack-last": lambda t: torch.stack([t.m, -t.m], -1).flatten(-2),
        "repeat": lambda t: t.m.repeat(2, 3),
        "repeat-more-axes": lambda t: t.m.repeat(3, 1, 2),
        "repeat-one": lambda t: t.m[None].repeat(5, 1, 1),
        "tile": lambda t: t.q.tile(2, 1),
        "repeat-interleave": lambda t: t.kg.repeat_interleave(3, 1),
        "repeat-interleave-flat": lambda t: t.m.repeat_interleave(2),
        "roll": lambda t: t.q.roll((1, -2), (1, 2)),
        "roll-around": lambda t: t.q.roll(12, 1),
        "flip": lambda t: t.q.flip(1, -1),
        "pad": lambda t: F.pad(t.m, (1, 2, 3, 0), value=-1.5),
        "pad-cut": lambda t: F.pad(t.m, (-1, 2)),
        "windows": lambda t: t.a.unfold(1, 3, 2),
        "windows-2d": lambda t: F.unfold(t.q, (3, 2)),
        "windows-2d-spaced": lambda t: F.unfold(t.q, (2, 3), dilation=(2, 1), padding=(1, 2), stride=(2, 3)),
        "windows-2d-of-one": lambda t: F.unfold(t.q, 1, stride=2) + F.unfold(t.q, 1, padding=1)[..., :6],
        "windows-2d-whole": lambda t: F.unfold(t.q[0], (5, 4)),
        "diff": lambda t: t.a.diff(dim=1),
        "diff-ends": lambda t: torch.diff(t.a, prepend=t.a[:, -1:], append=t.a[:, :2], dim=1),
        "diff-truths": lambda t: torch.diff(t.t, dim=-1),
        "slice-scatter": lambda t: torch.slice_scatter(t.m, t.m[:, :2] * 2, 1, 3, 5),
        "select-scatter": lambda t: torch.select_scatter(t.m, t.u, 0, 2),
        "tril": lambda t: t.q.tril(-1) + t.q.triu(1),
        "tril-truths": lambda t: t.t.tril(),
    }
)


@pytest.mark.parametrize("core", [False, True], ids=["captured", "core"])
@pytest.mark.parametrize("case", VIEWS.cases)
def test_operator(case: str, core: bool) -> None:
    check_operator(VIEWS, case, core)

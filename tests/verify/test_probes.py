from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rewriter.algebra.prims import leaf
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Read
from rewriter.verify.probes import Probe, bindings, probes

Declared = tuple[Sequence[int | str], str]


@dataclass
class Oracle:
    """Everything is free, but ``positions``, which it counts up."""

    fixed: str = "positions"

    def free_inputs(self, program: Any, site: Any) -> tuple[str, ...]:
        return tuple(name for name in site.inputs if name != self.fixed)

    def complete(
        self, program: Any, site: Any, arrays: Mapping[str, Any], sizes: Any = None
    ) -> dict[str, Any]:
        known = {self.fixed: np.arange(sizes["n"])} if self.fixed in site.inputs else {}
        return {name: {**arrays, **known}[name] for name in site.inputs}


def made(
    inputs: Mapping[str, Declared], seed: int = 0, normalizer: str = "softmax"
) -> tuple[Any, list[Probe]]:
    prims = {n: leaf("input", s, d, n) for n, (s, d) in inputs.items()}
    program = SimpleNamespace(prims=lambda: prims)
    operands = [SimpleNamespace(value=next((n for n in inputs if n.startswith(role)), "q")) for role in "qkv"]
    read = {name: Read(prim, ()) for name, prim in prims.items()}
    formula = SimpleNamespace(
        operands=operands,
        factors=[(read[name], False) for name in inputs if name == "temperature"],
        q=operands[0],
        k=operands[1],
        sink=read.get("sink"),
        bias=read.get("bias"),
    )
    site = SimpleNamespace(
        inputs=tuple(inputs),
        formula=formula,
        batch=Size.symbol("b"),
        heads=Size.of(3),
        queries=Size.symbol("n"),
        keys=Size.symbol("n"),
        normalizer=normalizer,
    )
    return site, probes(site, program, seed, oracle=Oracle())  # type: ignore[arg-type]


QKV: dict[str, Declared] = {n: (("b", 3, "n", 4), "float32") for n in "qkv"}
MASK: Declared = (("b", 1, 1, "n"), "bool")
BIAS: Declared = (("b", 1, "n", "n"), "float32")


def named(found: list[Probe]) -> dict[str, Probe]:
    """Return those of the first sizes by name."""
    return {p.name.split(", b=")[0]: p for p in reversed(found)}


def test_every_input_has_its_shape_and_dtype_at_every_size() -> None:
    _, found = made(
        {**QKV, "mask": MASK, "cache": (("b", "n + 1", "2*n"), "bfloat16"), "ids": (("b", "n//2"), "int64")}
    )
    lengths = set()
    for probe in found:
        b, _, n, _ = probe.arrays["q"].shape
        lengths.add((b, n))
        assert probe.arrays["mask"].shape == (b, 1, 1, n) and probe.arrays["mask"].dtype == bool
        assert (
            probe.arrays["cache"].shape == (b, n + 1, 2 * n)
            and probe.arrays["cache"].dtype.name == "bfloat16"
        )
        assert probe.arrays["ids"].shape == (b, n // 2) and set(np.unique(probe.arrays["ids"])) <= {0, 1}
    assert lengths == {(2, 7), (1, 33), (1, 1), (3, 3)}


def test_factors_and_sinks_are_no_masks() -> None:
    logits: Declared = ((3, 1, 1), "float32")
    _, found = made({**QKV, "bias": BIAS, "temperature": logits, "sink": logits})
    for probe in found:
        assert np.isfinite(probe.arrays["temperature"]).all() and np.isfinite(probe.arrays["sink"]).all()
    assert any((probe.arrays["bias"] == -np.inf).any() for probe in found)
    large = named(found)["large"].arrays
    assert np.abs(large["sink"]).max() > 2 * np.abs(large["bias"]).max()


def test_queries_and_keys_that_are_divided_by_their_sum_are_positive() -> None:
    for probe in made(QKV, normalizer="sum")[1]:
        assert (probe.arrays["q"] >= 0).all() and (probe.arrays["k"] >= 0).all()
    signs = {name: (made(QKV, normalizer="sum")[1][0].arrays[name] < 0).any() for name in "qkv"}
    assert signs == {"q": False, "k": False, "v": True}


def test_names_are_unique_and_seeds_decide() -> None:
    _, found = made({**QKV, "mask": MASK})
    assert len({p.name for p in found}) == len(found)
    _, again = made({**QKV, "mask": MASK})
    _, other = made({**QKV, "mask": MASK}, seed=1)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.arrays["q"], b.arrays["q"])
    assert not np.array_equal(found[0].arrays["q"], other[0].arrays["q"])


def test_operands_are_large_tied_and_coinciding() -> None:
    probes_ = named(made(QKV)[1])
    normal, large = probes_["normal"].arrays, probes_["large"].arrays
    scores = [np.abs(np.einsum("bhid,bhjd->bhij", x["q"], x["k"])).max() for x in (normal, large)]
    assert scores[1] / scores[0] == pytest.approx(30, rel=1e-5)
    assert not probes_["zeros"].arrays["k"].any()
    assert np.ptp(probes_["constant"].arrays["v"]) == 0
    same = probes_["coinciding inputs"].arrays
    np.testing.assert_array_equal(same["q"], same["k"])
    assert not np.array_equal(normal["q"], normal["k"])


def test_one_input_for_all_operands_is_large_too() -> None:
    probes_ = named(made({"qkv": (("b", "n", 12), "float32")})[1])
    square = [float((p.arrays["qkv"] ** 2).max()) for p in (probes_["normal"], probes_["large"])]
    assert square[1] / square[0] == pytest.approx(30, rel=1e-5)


def test_boolean_masks_get_every_pattern() -> None:
    probes_ = named(made({**QKV, "mask": MASK})[1])
    rows = {name: p.arrays["mask"][:, 0, 0] for name, p in probes_.items()}
    assert rows["large"].all()
    assert not rows["left padding"][0, 0] and rows["left padding"][:, -1].all()
    assert not rows["right padding"][0, -1] and rows["right padding"][:, 0].all()
    assert (~rows["a row all false"]).all(-1).any()
    assert not rows["all false"].any()
    assert "all false, a small bias" not in rows  # the same where there is no bias
    assert rows["a row all true"].all(-1).any()


def test_a_bias_hides_some_keys_and_weighs_the_others() -> None:
    bias = named(made({**QKV, "bias": BIAS})[1])["random mask, a small bias"].arrays["bias"]
    assert np.isneginf(bias).any()
    assert 0 < np.abs(bias[np.isfinite(bias)]).max() < 5


def test_a_bias_is_left_where_a_mask_hides_everything() -> None:
    probe = named(made({**QKV, "mask": MASK, "bias": BIAS})[1])["all false, a small bias"]
    assert not probe.arrays["mask"].any()
    assert 0 < np.abs(probe.arrays["bias"]).max() < 5


def test_a_bias_is_small_or_hides_with_infinity_or_a_finite_number() -> None:
    probes_ = named(made({**QKV, "bias": BIAS})[1])
    assert 0 < np.abs(probes_["normal"].arrays["bias"]).max() < 5
    assert set(np.unique(probes_["left padding"].arrays["bias"])) == {-np.inf, 0.0}
    assert set(np.unique(probes_["right padding"].arrays["bias"])) == {-1e4, 0.0}
    assert np.isneginf(probes_["a row all false"].arrays["bias"]).all(-1).any()
    assert np.isfinite(probes_["random mask"].arrays["bias"]).any(-1).all()


def test_without_a_mask_no_probe_is_repeated() -> None:
    _, found = made(QKV)
    assert [p.name.split(", ")[0] for p in found] == [
        "normal",
        "large",
        "zeros",
        "constant",
        "coinciding inputs",
    ] + ["normal"] * 3


def test_what_the_graph_computes_keeps_its_value() -> None:
    for probe in made({**QKV, "positions": (("n",), "int64")})[1]:
        np.testing.assert_array_equal(probe.arrays["positions"], np.arange(probe.arrays["q"].shape[2]))


def test_chosen_sizes_are_used() -> None:
    site, _ = made(QKV)
    assert bindings(site) == [{"b": 2, "n": 7}, {"b": 1, "n": 33}, {"b": 1, "n": 1}, {"b": 3, "n": 3}]
    assert bindings(site, [Size.parse("n + t")])[0] == {"b": 2, "n": 7, "t": 11}


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="input m has dtype None"):
        made({**QKV, "m": (("n",), None)})  # type: ignore[dict-item]

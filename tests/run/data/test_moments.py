import numpy as np
import pytest

from vdm.run.data import moments


@pytest.mark.parametrize("cut", [1, 7, 29])
def test_moments_of_parts_join_to_those_of_all(cut):
    x = np.random.default_rng(0).normal([1e6, -3, 0], [2, 30, 1e-3], (30, 4, 3))
    found = moments.join(moments.of(x[:cut]), moments.of(x[cut:]))
    flat = x.reshape(-1, 3)
    np.testing.assert_allclose(found.mean, flat.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.variance, flat.var(0), rtol=1e-9)
    np.testing.assert_allclose(found.of_all, [x.mean(), x.var()], rtol=1e-9)
    assert found.size == 120


def test_rounding_is_what_float32_loses():
    x = np.array([[1.7e9 + 1, 0.5], [1.7e9 + 60, 0.25]])
    lost = moments.of(x).rounding
    assert lost[0] == np.abs(x[:, 0] - x[:, 0].astype(np.float32)).max() > 1
    assert lost[1] == 0
    assert np.all(moments.of(x.astype(np.float32)).rounding == 0)


def test_a_constant_has_the_spread_one():
    parts = [moments.of(np.full((n, 1), 1e8 + 0.1)) for n in (100, 7)]
    found = moments.join(*parts)
    assert found.mean[0] == 1e8 + 0.1 and found.variance[0] == 0 and found.is_constant[0]
    assert moments.spread(0.0) == 1.0 and moments.spread(4.0) == 2.0
    # Little of a large number is no constant.
    both = np.array([[1e8 + 0.1, 1000.0], [1e8 + 0.1, 1000.0001]])
    assert moments.of(both).is_constant.tolist() == [True, False]

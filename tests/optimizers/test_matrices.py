"""What methods for matrices, and optimizers of optimizers, do beyond their reference paths."""

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.base import clone

import kopt

RNG = np.random.default_rng(0)
ROUNDS = 6


def walk(optimizer, weights, gradients):
    """The weights after steps along the gradients: dictionaries by path, and a list of such."""
    variables = [keras.Variable(w, name=name) for name, w in weights.items()]
    optimizer.build(variables)
    for grads in gradients:
        optimizer.apply([ops.convert_to_tensor(g) for g in grads.values()])
    return {v.name: v.numpy() for v in variables}


def problem(**shapes):
    def draw():
        return {name: RNG.standard_normal(shape).astype("float32") for name, shape in shapes.items()}

    return draw(), [draw() for _ in range(ROUNDS)]


def rotation(size):
    return np.linalg.qr(RNG.standard_normal((size, size)))[0].astype("float32")


# A Kron whose Q is a triangle has no such invariance.
@pytest.mark.parametrize(
    "optimizer",
    [
        kopt.Muon(0.1),
        kopt.Muon(0.1, scale="adam-rms", nesterov=False),
        kopt.Shampoo(0.1, start=2, frequency=2, graft="sgd", epsilon=1e-3),
        kopt.Shampoo(0.1, start=2, frequency=1, graft=None, epsilon=1e-3),
    ],
    ids=repr,
)
def test_steps_turn_with_the_gradients(optimizer):
    start, gradients = problem(w=(4, 5))
    left, right = rotation(4), rotation(5)

    def turned(x):
        return {"w": left @ x["w"] @ right}

    plain = walk(clone(optimizer), start, gradients)
    other = walk(clone(optimizer), turned(start), [turned(g) for g in gradients])
    np.testing.assert_allclose(other["w"], turned(plain)["w"], atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [kopt.Muon(0.1), kopt.SOAP(0.1, frequency=2), kopt.Shampoo(0.1, start=1, epsilon=1e-2), kopt.Kron(0.1)],
    ids=repr,
)
def test_weights_of_one_shape_do_not_mix(optimizer):
    start, gradients = problem(a=(4, 3), b=(4, 3))
    together = walk(clone(optimizer), start, gradients)
    alone = walk(clone(optimizer), {"a": start["a"]}, [{"a": g["a"]} for g in gradients])
    if not isinstance(optimizer, kopt.Kron):  # whose random numbers are drawn for all weights of a shape at once
        np.testing.assert_allclose(together["a"], alone["a"], atol=1e-5)
    assert abs(together["a"] - together["b"]).max() > 0.01


@pytest.mark.parametrize(
    ("shape", "scale", "size"),
    [
        ((3, 12), "spectral", 2.0),
        ((12, 3), "spectral", 1.0),
        ((2, 2, 3, 48), "spectral", 2.0),
        ((3, 12), "adam-rms", 0.2 * 12**0.5),
        ((12, 3), "adam-rms", 0.2 * 12**0.5),
    ],
)
def test_muon_scales_by_outputs_and_inputs(shape, scale, size):
    start, gradients = problem(w=shape)
    end = walk(kopt.Muon(1.0, scale=scale, steps=10), start, gradients[:1])
    values = np.linalg.svd((end["w"] - start["w"]).reshape(-1, shape[-1]), compute_uv=False)
    np.testing.assert_allclose(values / size, 1, atol=0.35)


def test_muon_gives_vectors_and_embeddings_to_adamw():
    start, gradients = problem(kernel=(4, 3), bias=(3,), token_embedding=(5, 3))
    muon = walk(kopt.Muon(0.1, auxiliary_rate=0.5, weight_decay=0.1), start, gradients)
    adamw = walk(kopt.AdamW(0.05, beta_2=0.95, epsilon=1e-10, weight_decay=0.1), start, gradients)
    for name in ("bias", "token_embedding"):
        np.testing.assert_allclose(muon[name], adamw[name], atol=1e-6)
    assert abs(muon["kernel"] - adamw["kernel"]).max() > 0.01
    assert abs(walk(kopt.Muon(0.1, auxiliary=()), start, gradients)["token_embedding"] - muon["token_embedding"]).max()


def test_muon_in_bfloat16_is_near():
    start, gradients = problem(w=(8, 8))
    exact, rounded = (walk(kopt.Muon(0.1, precision=p), start, gradients)["w"] for p in (None, "bfloat16"))
    assert 1e-5 < abs(exact - rounded).max() < 0.1


def test_soap_without_factors_is_adam_a_step_late():
    start, gradients = problem(w=(4, 3), b=(3,))
    soap = walk(kopt.SOAP(0.1, max_size=0, epsilon=1e-12, weight_decay=None), start, gradients)
    adam = walk(kopt.Adam(0.1, beta_1=0.95, beta_2=0.95, epsilon=1e-12), start, gradients[1:])
    for name, w in soap.items():
        np.testing.assert_allclose(w, adam[name], atol=1e-5)


@pytest.mark.slow
def test_shampoo_pads_blocks_without_effect():
    start, gradients = problem(w=(3, 4))
    padded = walk(kopt.Shampoo(0.1, block_size=2, start=1, frequency=1, epsilon=1e-2), start, gradients)["w"]
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(2, 3), slice(2, 4))):
        part = walk(
            kopt.Shampoo(0.1, start=1, frequency=1, epsilon=1e-2),
            {"w": start["w"][rows, columns]},
            [{"w": g["w"][rows, columns]} for g in gradients],
        )["w"]
        if rows == slice(0, 2):  # a block of one row has one axis alone, when it is a weight
            np.testing.assert_allclose(padded[rows, columns], part, atol=1e-4)
    assert np.isfinite(padded).all()


def test_kron_keeps_a_diagonal_for_long_axes():
    shapes = {name: slot for name, slot in kopt.Kron(max_size=4).slots((2, 3, 4)).items()}
    assert shapes == {"m": (2, 3, 4), "q_1": (6,), "q_2": (4, 4)}
    assert kopt.Kron().slots((5,)) == {"m": (5,), "q_1": (5,)}


# ---- optimizers of optimizers ----------------------------------------------------------------------------------------


def test_route_gives_each_weight_to_its_optimizer():
    start, gradients = problem(kernel=(4, 3), bias=(3,), head=(3, 2))
    route = kopt.Route({"bias": kopt.SGD(0.1), "^head": kopt.Lion(0.01)}, kopt.Muon(0.05))
    found = walk(route, start, gradients)
    for name, optimizer in dict(kernel=kopt.Muon(0.05), bias=kopt.SGD(0.1), head=kopt.Lion(0.01)).items():
        np.testing.assert_allclose(found[name], walk(optimizer, start, gradients)[name], atol=1e-6)


def test_matrices_gives_kernels_to_one_and_the_rest_to_the_other():
    start, gradients = problem(kernel=(4, 3), bias=(3,), head=(3, 2))
    both = kopt.Matrices(kopt.Adam(0.1), kopt.SGD(0.1), exclude="head")
    found = walk(both, start, gradients)
    adam, sgd = (walk(optimizer, start, gradients) for optimizer in (kopt.Adam(0.1), kopt.SGD(0.1)))
    for name, expected in dict(kernel=adam, bias=sgd, head=sgd).items():
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_a_router_leads_rates_and_decays():
    start, gradients = problem(kernel=(4, 3), bias=(3,))
    led = kopt.Matrices(
        kopt.Cautious(kopt.Adam(0.2)), kopt.SGD(0.4), learning_rate=0.5, weight_decay=0.1, no_decay="bias"
    )
    found = walk(led, start, gradients)
    adam = kopt.Cautious(kopt.Adam(0.1, weight_decay=0.1))
    np.testing.assert_allclose(found["kernel"], walk(adam, start, gradients)["kernel"], atol=1e-6)
    np.testing.assert_allclose(found["bias"], walk(kopt.SGD(0.2), start, gradients)["bias"], atol=1e-6)
    led.learning_rate = 0.0
    before = [v.numpy() for v in led._trainable_variables]
    led.apply([ops.ones(v.shape) for v in led._trainable_variables])
    assert all((v.numpy() == w).all() for v, w in zip(led._trainable_variables, before, strict=True))


def test_a_wrapper_of_a_router_wraps_each():
    start, gradients = problem(kernel=(4, 3), bias=(3,))
    found = walk(kopt.Cautious(kopt.Matrices(kopt.Adam(0.1), kopt.Lion(0.1))), start, gradients)
    for name, inner in dict(kernel=kopt.Adam(0.1), bias=kopt.Lion(0.1)).items():
        np.testing.assert_allclose(found[name], walk(kopt.Cautious(inner), start, gradients)[name], atol=1e-6)


def test_a_wrapper_of_a_router_keeps_the_scalars_of_each():
    start, gradients = problem(kernel=(4, 3), bias=(3,))
    pairs = (kopt.Muon(0.1), kopt.Prodigy()), (kopt.Nadam(0.1, beta_1=0.5), kopt.Nadam(0.1))
    for kernel, bias in pairs:
        found = walk(kopt.Cautious(kopt.Matrices(clone(kernel), clone(bias))), start, gradients)
        for name, inner in dict(kernel=kernel, bias=bias).items():
            alone = {name: start[name]}, [{name: g[name]} for g in gradients]
            expected = walk(kopt.Cautious(clone(inner)), *alone)
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_a_wrapper_with_scalars_refuses_a_router_of_several_sets():
    start, gradients = problem(kernel=(4, 3), bias=(3,))
    with pytest.raises(ValueError, match=r"Mechanic: .* must not be around some that keep different ones of their own"):
        walk(kopt.Mechanic(kopt.Matrices(kopt.Nadam(0.1), kopt.SGD(0.1))), start, gradients)


def test_graft_takes_length_and_direction():
    start, gradients = problem(a=(4, 3), b=(4, 3), c=(3,))
    graft, adam, muon = (
        walk(optimizer, start, gradients[:1])
        for optimizer in (kopt.Graft(kopt.Adam(0.1), kopt.Muon()), kopt.Adam(0.1), kopt.Muon())
    )
    for name in start:
        step, length, heading = (end[name] - start[name] for end in (graft, adam, muon))
        assert np.linalg.norm(step) == pytest.approx(np.linalg.norm(length), rel=1e-4)
        cosine = (step * heading).sum() / np.linalg.norm(step) / np.linalg.norm(heading)
        assert cosine == pytest.approx(1, abs=1e-5)


# ---- what a user gets wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: kopt.Muon(steps=0), ValueError, "Muon: steps must be an integer in"),
        (lambda: kopt.Muon(scale="rms"), ValueError, "Muon: scale must be one of 'spectral', 'adam-rms'"),
        (lambda: kopt.Muon(precision="float16"), ValueError, "Muon: precision must be one of"),
        (lambda: kopt.Muon(auxiliary="("), ValueError, "Muon: auxiliary must hold regular expressions"),
        (lambda: kopt.Muon(auxiliary_rate=-1.0), ValueError, "Muon: auxiliary_rate must be a number in"),
        (lambda: kopt.SOAP(frequency=0), ValueError, "SOAP: frequency must be an integer in"),
        (lambda: kopt.SOAP(frequency=1.5), TypeError, "SOAP: frequency must be an integer in"),
        (lambda: kopt.SOAP(max_size=-1), ValueError, "SOAP: max_size must be an integer in"),
        (lambda: kopt.SOAP(epsilon=0.0), ValueError, "SOAP: epsilon must be a number in"),
        (lambda: kopt.Shampoo(start=0), ValueError, "Shampoo: start must be an integer in"),
        (lambda: kopt.Shampoo(block_size=0), ValueError, "Shampoo: block_size must be an integer in"),
        (lambda: kopt.Shampoo(graft="lamb"), ValueError, "Shampoo: graft must be one of 'adam', 'sgd', None"),
        (lambda: kopt.Shampoo(frequency=0), ValueError, "Shampoo: frequency must be an integer in"),
        (lambda: kopt.Kron(max_size=-1), ValueError, "Kron: max_size must be an integer in"),
        (lambda: kopt.Kron(seed=0.5), TypeError, "Kron: seed must be an integer in"),
        (lambda: kopt.Kron(min_probability=0.0), ValueError, "Kron: min_probability must be a number in"),
        (lambda: kopt.Matrices(kopt.Muon, kopt.Adam()), TypeError, r"matrices must be a kopt optimizer.*Try Muon\(\)"),
        (lambda: kopt.Route({"(": kopt.SGD()}, kopt.SGD()), ValueError, "optimizers must hold regular expressions"),
        (lambda: kopt.Route({"a": kopt.SGD(clipnorm=1.0)}, kopt.SGD()), ValueError, "must leave clipnorm to"),
        (lambda: kopt.Graft(kopt.SGD(), kopt.Kron()), ValueError, "heading must keep neither scalars"),
        (lambda: kopt.Graft(kopt.SGD(), kopt.SGD(no_decay="bias")), ValueError, "must leave no_decay to"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()

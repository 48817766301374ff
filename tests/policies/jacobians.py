"""Computes gᵀ Z⁻¹ g from the Jacobian, in PyTorch, as a reference for `neural_ucb`, which forms none.

g = ∇f(x; θ) is the gradient of the network's logit with respect to all p parameters, in the order of
`service.policies.network`: W row by row, then b, layer after layer. **n** candidates, **d** features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import Linear, Module, ReLU, Sequential

from service.policies.network import Layers, count

Array = NDArray[Any]

SHAPES = pytest.mark.parametrize(("d", "hidden"), [(1, (2,)), (5, (8,)), (7, (12, 6)), (4, (6, 10, 8))])


def at_random(d: int, hidden: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Draw θ (p,) and the diagonal of Z⁻¹ (p,), without symmetries, and x (9, d)."""
    rng = np.random.default_rng(d)
    p = count(d, hidden)
    return rng.normal(size=p), rng.uniform(0.1, 2.0, p), rng.normal(size=(9, d))


def network(layers: Layers) -> Sequential:
    """Build the network in PyTorch, of the same precision. PyTorch keeps W as (o, i)."""
    modules: list[Module] = []
    for W, b in layers:
        linear = Linear(W.shape[0], W.shape[1], dtype=torch.from_numpy(b).dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(W.T.copy()))
            linear.bias.copy_(torch.from_numpy(b.copy()))
        modules += [linear, ReLU()]
    return Sequential(*modules[:-1])


def forward(net: Sequential, x: Array) -> Array:
    """Compute f (n,) of x (n, d)."""
    with torch.no_grad():
        f: Array = net(torch.from_numpy(x))[:, 0].numpy()
    return f


def k_passes(net: Sequential, x: Array, variance: Array) -> Array:
    """Compute gᵀ Z⁻¹ g (n,) by one backward pass per candidate, from the diagonal of Z⁻¹ (p,)."""
    weights, parameters = torch.from_numpy(variance), list(net.parameters())
    out = torch.empty(len(x), dtype=weights.dtype)
    for row, candidate in enumerate(torch.from_numpy(x)):
        gradients = torch.autograd.grad(net(candidate)[0], parameters)
        g = _flat(gradients, batch=())
        out[row] = (g * g) @ weights
    return out.numpy()


def vectorised(net: Sequential, x: Array, variance: Array) -> Array:
    """Compute gᵀ Z⁻¹ g (n,) from the Jacobian (n, p) of `torch.func`, and the diagonal of Z⁻¹ (p,)."""
    g = jacobian(net, x)
    return ((g * g) @ torch.from_numpy(variance)).numpy()


def full_matrix(net: Sequential, x: Array, inverse: Tensor) -> Array:
    """Compute gᵀ Z⁻¹ g (n,) as Algorithm 1 does, from the Jacobian (n, p) and all of Z⁻¹ (p, p)."""
    g = jacobian(net, x)
    return ((g @ inverse) * g).sum(dim=1).numpy()


def jacobian(net: Sequential, x: Array) -> Tensor:
    """Compute ∇f of each row of x (n, d): (n, p)."""
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def f(parameters: dict[str, Tensor], candidate: Tensor) -> Tensor:
        output: Tensor = functional_call(net, parameters, (candidate,))
        return output[0]

    gradients = vmap(grad(f), in_dims=(None, 0))(parameters, torch.from_numpy(x))
    return _flat(list(gradients.values()), batch=(len(x),))


def _flat(gradients: Sequence[Tensor], *, batch: tuple[int, ...]) -> Tensor:
    """Join the gradients into (*batch, p): W transposed as `layers_of` keeps it, then b, layer after layer."""
    return torch.cat([(g.mT if g.ndim == 2 + len(batch) else g).reshape(*batch, -1) for g in gradients], dim=-1)

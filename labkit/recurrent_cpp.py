"""The loop over time in C++: `recurrent_fast`'s layer without Python between its steps.

Optional: torch compiles `SOURCE` on first use, which takes half a minute, and the lab's cache keeps
the result. It needs a C++ compiler and ninja, which `problem` looks for.
"""

from __future__ import annotations

import functools
import os
import shutil
from types import ModuleType

import torch
from torch import Tensor

from labkit import digests, environment
from labkit.recurrent_fast import Workspace, WorkspaceLSTM, WorkspaceLSTMLayer

# fast-math lets the compiler take several exponentials at once; nothing here depends on NaN
FLAGS = ("-O3", "-march=native", "-ffast-math")


SOURCE = r"""
// The two loops over time of `recurrent_fast`, on the same workspace. In Python a step costs half a
// dozen calls of operators; here it is one matrix product and one pass over its numbers while the
// cache holds them. All tensors are contiguous, of one floating type, with time first: Z and d_Z
// (T, B, 4H) hold the gates o, i, f, c~ side by side, hidden and cell (T + 1, B, H) the states from
// the start on, squashed (T, B, H) tanh of the cell state.
#include <cmath>

#include <torch/extension.h>

using torch::Tensor;

template <typename real>
static void activate(real* __restrict z, int64_t H) {
  for (int64_t k = 0; k < 3 * H; ++k) z[k] = 1 / (1 + std::exp(-z[k]));
  for (int64_t k = 3 * H; k < 4 * H; ++k) z[k] = 2 / (1 + std::exp(-2 * z[k])) - 1;
}

template <typename real>
static void update(const real* __restrict z, const real* __restrict c_before, real* __restrict c,
                   real* __restrict squashed, real* __restrict h, int64_t H) {
  const real *o = z, *i = z + H, *f = z + 2 * H, *g = z + 3 * H;
  for (int64_t k = 0; k < H; ++k) {
    c[k] = f[k] * c_before[k] + i[k] * g[k];
    squashed[k] = 2 / (1 + std::exp(-2 * c[k])) - 1;
    h[k] = o[k] * squashed[k];
  }
}

// Fill Z, which holds the input's part of the gates, and the states after the first ones.
void forward(Tensor Z, Tensor hidden, Tensor cell, Tensor squashed, Tensor U, int64_t T) {
  const int64_t B = hidden.size(1), H = hidden.size(2);
  AT_DISPATCH_FLOATING_TYPES(Z.scalar_type(), "forward", [&] {
    for (int64_t t = 0; t < T; ++t) {
      Tensor z = Z[t];
      at::addmm_out(z, z, hidden[t], U);
      scalar_t* gates = z.data_ptr<scalar_t>();
      const scalar_t* c_before = cell.data_ptr<scalar_t>() + t * B * H;
      scalar_t* c = cell.data_ptr<scalar_t>() + (t + 1) * B * H;
      scalar_t* s = squashed.data_ptr<scalar_t>() + t * B * H;
      scalar_t* h = hidden.data_ptr<scalar_t>() + (t + 1) * B * H;
      for (int64_t b = 0; b < B; ++b) {
        activate(gates + b * 4 * H, H);
        update(gates + b * 4 * H, c_before + b * H, c + b * H, s + b * H, h + b * H, H);
      }
    }
  });
}

template <typename real>
static void step_back(const real* __restrict z, const real* __restrict c_before,
                      const real* __restrict squashed, const real* __restrict d_h,
                      real* __restrict d_c, real* __restrict d_z, int64_t H) {
  const real *o = z, *i = z + H, *f = z + 2 * H, *g = z + 3 * H;
  for (int64_t k = 0; k < H; ++k) {
    const real d_cell = d_c[k] + d_h[k] * o[k] * (1 - squashed[k] * squashed[k]);
    d_z[k] = d_h[k] * squashed[k] * o[k] * (1 - o[k]);
    d_z[H + k] = d_cell * g[k] * i[k] * (1 - i[k]);
    d_z[2 * H + k] = d_cell * c_before[k] * f[k] * (1 - f[k]);
    d_z[3 * H + k] = d_cell * i[k] * (1 - g[k] * g[k]);
    d_c[k] = d_cell * f[k];
  }
}

// Fill d_Z from what reaches the outputs, d_out (T, B, H); d_h and d_c (B, H) come in as what
// reaches the final states, that of the last output included, and go out as the start states'.
void backward(Tensor Z, Tensor cell, Tensor squashed, Tensor d_out, Tensor U_T, Tensor d_Z,
              Tensor d_h, Tensor d_c, int64_t T) {
  const int64_t B = cell.size(1), H = cell.size(2);
  AT_DISPATCH_FLOATING_TYPES(Z.scalar_type(), "backward", [&] {
    for (int64_t t = T - 1; t >= 0; --t) {
      const scalar_t* z = Z.data_ptr<scalar_t>() + t * B * 4 * H;
      const scalar_t* c_before = cell.data_ptr<scalar_t>() + t * B * H;
      const scalar_t* s = squashed.data_ptr<scalar_t>() + t * B * H;
      scalar_t* d_z = d_Z.data_ptr<scalar_t>() + t * B * 4 * H;
      for (int64_t b = 0; b < B; ++b) {
        step_back(z + b * 4 * H, c_before + b * H, s + b * H, d_h.data_ptr<scalar_t>() + b * H,
                  d_c.data_ptr<scalar_t>() + b * H, d_z + b * 4 * H, H);
      }
      if (t > 0) {
        at::addmm_out(d_h, d_out[t - 1], d_Z[t], U_T);
      } else {
        at::mm_out(d_h, d_Z[0], U_T);
      }
    }
  });
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("forward", &forward);
  module.def("backward", &backward);
}
"""


def problem() -> str:
    """Why the extension cannot be compiled here, for the reader; empty if nothing is missing."""
    compiler = os.environ.get("CXX") or "c++"
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler}); a package such as g++ brings one"
    if not shutil.which("ninja"):
        return "the build tool ninja is missing; pip install ninja brings it"
    return ""


@functools.cache
def extension() -> ModuleType:
    """The compiled module. RuntimeError, with the compiler's words, when it cannot be made."""
    missing = problem()
    if missing:
        raise RuntimeError(f"the C++ layer is left out: {missing}")
    from torch.utils import cpp_extension

    # a name for each source, compiler flags and torch: an older build is never taken for this one
    stamp = {"source": SOURCE, "flags": FLAGS, "torch": torch.__version__}
    key = digests.sha256(digests.canonical(stamp))[:12]
    folder = environment.CACHE / "extensions" / key
    folder.mkdir(parents=True, exist_ok=True)
    return cpp_extension.load_inline(
        f"lstm_steps_{key}", SOURCE, extra_cflags=list(FLAGS), build_directory=str(folder)
    )


def compiled_forward(X: Tensor, h: Tensor, c: Tensor, U: Tensor, work: Workspace) -> None:
    """As `recurrent_fast.fill_forward`."""
    T = len(X)
    work.Z[:T] = X
    work.hidden[0], work.cell[0] = h, c
    extension().forward(work.Z, work.hidden, work.cell, work.squashed, U, T)


def compiled_backward(
    d_output: Tensor, d_h: Tensor, d_c: Tensor, U: Tensor, work: Workspace
) -> tuple[Tensor, Tensor, Tensor]:
    """As `recurrent_fast.fill_backward`."""
    T = len(d_output)
    work.d_out[:T] = d_output
    d_h, d_c = d_h + work.d_out[T - 1], d_c.clone(memory_format=torch.contiguous_format)
    U_T = U.t().contiguous()
    states = work.cell, work.squashed, work.d_out
    extension().backward(work.Z, *states, U_T, work.d_Z, d_h, d_c, T)
    return work.d_Z[:T], d_h, d_c


class CompiledLSTMLayer(WorkspaceLSTMLayer):
    """The layer on a workspace, its two loops in C++."""

    passes = (compiled_forward, compiled_backward)


class CompiledLSTM(WorkspaceLSTM):
    """As `WorkspaceLSTM`, its loops in C++."""

    layer_class = CompiledLSTMLayer

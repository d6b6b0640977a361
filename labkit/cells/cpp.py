"""The LSTM layer in C++: the loops of `recurrent_fast` without Python between their steps.

Optional: torch compiles `SOURCE` on first use, which takes half a minute, and the lab's cache keeps
the result. It needs a C++ compiler and ninja, which `problem` looks for. CPU only.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labkit.cells.layers import FusedLSTM, FusedLSTMLayer, LayerState
from labkit.lab import digests, environment
from labkit.lab.download import lock

# fast-math lets the compiler take several exponentials at once; nothing here makes NaN or infinity
FLAGS = ("-O3", "-march=native", "-ffast-math")
SOURCE = r"""
// Forward and backward through time. A step is one matrix product and one pass over its numbers
// while the cache holds them. Time comes first inside; the gates stand side by side, i f o c~.
#include <algorithm>
#include <cmath>

#include <torch/extension.h>

using torch::Tensor;
using Tensors = std::vector<Tensor>;

// Beyond 80 it is 0 for the caller's purposes; an infinite exponential would make NaN.
template <typename real>
static inline real sigma(real a) { return 1 / (1 + std::exp(std::min(-a, real(80)))); }

#ifdef __AVX512F__
constexpr int64_t BYTES = 64;  // of a vector register
#else
constexpr int64_t BYTES = 32;
#endif

// R rows and two registers' width of out += a b. The sums stay in registers while k runs.
template <int R, typename real>
static inline void add_block(real* __restrict out, const real* __restrict a,
                             const real* __restrict b, int64_t K, int64_t N) {
  typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
  constexpr int64_t lanes = BYTES / sizeof(real);
  vec sum[R][2];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 2; ++j) sum[r][j] = *(const vec*)(out + r * N + j * lanes);
  for (int64_t k = 0; k < K; ++k) {
    const vec left = *(const vec*)(b + k * N), right = *(const vec*)(b + k * N + lanes);
    for (int r = 0; r < R; ++r) {
      sum[r][0] += a[r * K + k] * left;
      sum[r][1] += a[r * K + k] * right;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 2; ++j) *(vec*)(out + r * N + j * lanes) = sum[r][j];
}

// out (M, N) += a (M, K) b (K, N). At small sizes a library's call costs more than its arithmetic.
template <typename real>
static void add_product(real* __restrict out, const real* __restrict a, const real* __restrict b,
                        int64_t M, int64_t K, int64_t N) {
  constexpr int64_t R = 4, W = 2 * BYTES / sizeof(real);
  const int64_t rows = M / R * R, columns = N / W * W;
  for (int64_t n = 0; n < columns; n += W)
    for (int64_t m = 0; m < rows; m += R) add_block<R>(out + m * N + n, a + m * K, b + n, K, N);
  for (int64_t m = 0; m < M; ++m) {  // what does not fill a block
    const int64_t first = m < rows ? columns : 0;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = first; n < N; ++n) out[m * N + n] += a[m * K + k] * b[k * N + n];
  }
}

static bool is_small(int64_t B, int64_t H) { return B * H * 4 * H <= 1 << 16; }

template <typename real>
static void step(real* __restrict z, const real* __restrict c_before, real* __restrict c,
                 real* __restrict squashed, real* __restrict h, int64_t H) {
  real *i = z, *f = z + H, *o = z + 2 * H, *g = z + 3 * H;
  for (int64_t k = 0; k < 3 * H; ++k) z[k] = sigma(z[k]);
  for (int64_t k = 0; k < H; ++k) g[k] = 2 * sigma(2 * g[k]) - 1;  // tanh
  for (int64_t k = 0; k < H; ++k) {
    c[k] = f[k] * c_before[k] + i[k] * g[k];
    squashed[k] = 2 * sigma(2 * c[k]) - 1;
    h[k] = o[k] * squashed[k];
  }
}

// X (B, T, I), states (B, H), W (I, 4H), U (H, 4H), b (1, 4H): the output (B, T, H), the final
// states, and what the backward pass reads.
Tensors forward(Tensor X, Tensor h_0, Tensor c_0, Tensor W, Tensor U, Tensor b) {
  TORCH_CHECK(X.device().is_cpu(), "the C++ layer runs on a CPU only, got ", X.device());
  at::AutoDispatchBelowAutograd guard;
  const int64_t B = X.size(0), T = X.size(1), H = U.size(0);
  U = U.contiguous();
  Tensor by_time = X.transpose(0, 1).reshape({T * B, X.size(2)});
  Tensor Z = at::addmm(b, by_time, W).view({T, B, 4 * H});
  Tensor hidden = at::empty({T + 1, B, H}, X.options()), cell = at::empty_like(hidden);
  Tensor squashed = at::empty({T, B, H}, X.options());
  hidden[0].copy_(h_0);
  cell[0].copy_(c_0);
  AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), "forward", [&] {
    scalar_t *z = Z.data_ptr<scalar_t>(), *s = squashed.data_ptr<scalar_t>();
    scalar_t *h = hidden.data_ptr<scalar_t>(), *c = cell.data_ptr<scalar_t>();
    const scalar_t* u = U.data_ptr<scalar_t>();
    for (int64_t t = 0; t < T; ++t) {
      if (is_small(B, H))
        add_product(z + t * B * 4 * H, h + t * B * H, u, B, H, 4 * H);
      else
        Z[t].addmm_(hidden[t], U);
      for (int64_t row = t * B; row < (t + 1) * B; ++row)
        step(z + row * 4 * H, c + row * H, c + (row + B) * H, s + row * H, h + (row + B) * H, H);
    }
  });
  Tensor output = hidden.slice(0, 1).transpose(0, 1).clone(at::MemoryFormat::Contiguous);
  return {output, hidden[T].clone(), cell[T].clone(), by_time, Z, hidden, cell, squashed};
}

template <typename real>
static void step_back(const real* __restrict z, const real* __restrict c_before,
                      const real* __restrict squashed, const real* __restrict d_h,
                      real* __restrict d_c, real* __restrict d_z, int64_t H) {
  const real *i = z, *f = z + H, *o = z + 2 * H, *g = z + 3 * H;
  for (int64_t k = 0; k < H; ++k) {
    const real d_cell = d_c[k] + d_h[k] * o[k] * (1 - squashed[k] * squashed[k]);
    d_z[k] = d_cell * g[k] * i[k] * (1 - i[k]);
    d_z[H + k] = d_cell * c_before[k] * f[k] * (1 - f[k]);
    d_z[2 * H + k] = d_h[k] * squashed[k] * o[k] * (1 - o[k]);
    d_z[3 * H + k] = d_cell * i[k] * (1 - g[k] * g[k]);
    d_c[k] = d_cell * f[k];
  }
}

// Gradients of X, the start states, W, U and b from those of the output and the final states.
Tensors backward(Tensor d_output, Tensor d_h_T, Tensor d_c_T, Tensor W, Tensor U, Tensor by_time,
                 Tensor Z, Tensor hidden, Tensor cell, Tensor squashed) {
  at::AutoDispatchBelowAutograd guard;
  const int64_t B = Z.size(1), T = Z.size(0), H = U.size(0);
  Tensor d_out = d_output.transpose(0, 1).contiguous(), U_T = U.t().contiguous();
  Tensor d_Z = at::empty_like(Z), d_h = (d_h_T + d_out[T - 1]).contiguous();
  Tensor d_c = at::empty_like(d_h).copy_(d_c_T);
  AT_DISPATCH_FLOATING_TYPES(Z.scalar_type(), "backward", [&] {
    const scalar_t *z = Z.data_ptr<scalar_t>(), *s = squashed.data_ptr<scalar_t>();
    const scalar_t *c = cell.data_ptr<scalar_t>();
    scalar_t *dz = d_Z.data_ptr<scalar_t>(), *dc = d_c.data_ptr<scalar_t>();
    scalar_t* dh = d_h.data_ptr<scalar_t>();
    const scalar_t *out = d_out.data_ptr<scalar_t>(), *u = U_T.data_ptr<scalar_t>();
    for (int64_t t = T - 1; t >= 0; --t) {
      for (int64_t b = 0, row = t * B; b < B; ++b, ++row)
        step_back(z + row * 4 * H, c + row * H, s + row * H, dh + b * H, dc + b * H,
                  dz + row * 4 * H, H);
      if (t)  // what reaches the output before, plus what comes through the gates
        std::copy_n(out + (t - 1) * B * H, B * H, dh);
      else
        d_h.zero_();
      if (is_small(B, H))
        add_product(dh, dz + t * B * 4 * H, u, B, 4 * H, H);
      else
        d_h.addmm_(d_Z[t], U_T);
    }
  });
  Tensor flat = d_Z.view({T * B, 4 * H}), before = hidden.slice(0, 0, T).view({T * B, H});
  Tensor d_X = flat.mm(W.t()).view({T, B, W.size(0)}).transpose(0, 1);
  return {d_X, d_h, d_c, by_time.t().mm(flat), before.t().mm(flat), flat.sum(0, true)};
}
"""


def problem() -> str:
    """Why the layer cannot be compiled here, for the reader; empty if nothing is missing."""
    compiler = os.environ.get("CXX") or "c++"
    if not shutil.which(compiler):
        return f"there is no C++ compiler ({compiler}); a package such as g++ brings one"
    if not shutil.which("ninja", path=_search_path()):
        return "the build tool ninja is missing; pip install ninja brings it"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's header Python.h is missing; a package such as python3-dev brings it"
    return ""


def _search_path() -> str:
    """Where programs are looked for: first beside this Python, as pip installs them."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@functools.cache
def extension() -> ModuleType:
    """The compiled module. RuntimeError, with the compiler's words, when it cannot be made."""
    if problem():
        raise RuntimeError(f"the C++ layer is left out: {problem()}")
    from torch.utils import cpp_extension

    # a name for all that decides the machine code: an older build, or that of another processor in
    # a shared home, is never taken for this one
    machine = environment.provenance()
    stamp = {"source": SOURCE, "flags": FLAGS, "torch": torch.__version__}
    stamp |= {name: machine[name] for name in ("cpu", "cpu_capability", "platform")}
    key = digests.sha256(digests.canonical(stamp))[:12]
    folder = environment.CACHE / "extensions" / key
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        (folder / "lock").unlink(missing_ok=True)  # torch's own, of a build that was killed
        os.environ["PATH"] = _search_path()
        return cpp_extension.load_inline(
            f"lstm_{key}", SOURCE, functions=["forward", "backward"],
            extra_cflags=list(FLAGS), build_directory=str(folder),
        )  # fmt: skip


class _InCpp(torch.autograd.Function):
    """One layer as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, h, c, *kept = extension().forward(*inputs)
        _, _, _, W, U, _ = inputs
        ctx.save_for_backward(W, U, *kept)
        return output, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(extension().backward(*gradients, *ctx.saved_tensors))


class CompiledLSTMLayer(FusedLSTMLayer):
    """The LSTM layer, its steps in C++."""

    def forward(self, X: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Outputs (B, T, H), the hidden state after each step, and the last state."""
        output, h, c = _InCpp.apply(X, *state, self.W, self.U, self.b)
        return output, (h, c)


class CompiledLSTM(FusedLSTM):
    """`FusedLSTM` with its steps in C++."""

    layer_class = CompiledLSTMLayer

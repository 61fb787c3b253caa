// Kernels on dense matrices for randomized SVD: sum of squares, A^H (A X), Gram matrix, one pass of Cholesky QR.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "lapack.hpp"
#include "parallel.hpp"
#include "view.hpp"
#include "workspace.hpp"

namespace tensorfact {

inline constexpr index fixed_block = 1 << 15;  // elements of a partial sum: part of the result's bits, never the thread count

// Sum of squares of one contiguous run in float64. Sixteen accumulators, because a single one is a chain of dependent additions
// that the compiler may not reorder.
template <class T>
double sum_squares_run(const T* __restrict p, index n) {
    constexpr index lanes = 16;
    double acc[lanes] = {};
    index i = 0;
    for (; i + lanes <= n; i += lanes)
        for (index k = 0; k < lanes; ++k) {
            const double x = static_cast<double>(p[i + k]);
            acc[k] += x * x;
        }
    for (index k = 0; i + k < n; ++k) acc[k] += static_cast<double>(p[i + k]) * static_cast<double>(p[i + k]);
    for (index half = lanes / 2; half > 0; half /= 2)
        for (index k = 0; k < half; ++k) acc[k] += acc[k + half];
    return acc[0];
}

// Reads m n elements once. Same bits for any nthreads.
template <class T>
double sum_squares(Mat<const T> a, Workspace& ws, int nthreads) {
    Lines<const T> l = lines(a, "a");
    if (l.count == 0 || l.length == 0) return 0.0;
    if (l.dense()) {
        l.length *= l.count;
        l.count = 1;
    }
    const index per_line = (l.length + fixed_block - 1) / fixed_block;          // partial sums along a line
    const index per_task = std::max<index>(1, fixed_block / l.length);          // short lines of one partial sum each, together
    const index total = l.count * per_line;
    Workspace::Frame frame(ws);
    double* partial = frame.take<double>(total);
    parallel_for(total, nthreads, per_task * 4, [=](index lo, index hi) {
        for (index t = lo; t < hi; ++t) {
            const index line = t / per_line, first = t % per_line * fixed_block;
            partial[t] = sum_squares_run(l.data + line * l.ld + first, std::min(fixed_block, l.length - first));
        }
    });
    double sum = 0.0;
    for (index t = 0; t < total; ++t) sum += partial[t];
    return sum;
}

template <class T>
void conjugate_all(T* p, index n) {
    if constexpr (is_complex<T>)
        for (index i = 0; i < n; ++i) p[i] = std::conj(p[i]);
}

// out = A^H (A X) over blocks of rows, so that A is read once: 4 m n l flops (real), m n elements of traffic.
// BLAS threads each product.
template <class T>
void normal_apply(Mat<const T> a, Mat<const T> x, Mat<T> out, index block_rows, Workspace& ws) {
    const auto [m, n] = a.shape;
    const index l = x.shape[1];
    require(x.shape[0] == n, "normal_apply: x must have ", n, " rows, the columns of a, got ", x.shape[0]);
    require(out.shape == x.shape, "normal_apply: out must have shape (", n, ", ", l, "), got (", out.shape[0], ", ", out.shape[1], ")");
    require(block_rows >= 1, "normal_apply: block_rows must be positive, got ", block_rows);
    const Lines<const T> s = lines(a, "a");
    const T* xs = contiguous(x, "x");
    T* sum = contiguous(out, "out");
    if (m == 0 || n == 0 || l == 0) {
        std::fill_n(sum, n * l, T(0));
        return;
    }
    block_rows = std::min(block_rows, m);
    Workspace::Frame frame(ws);
    T* y = frame.take<T>(block_rows * l);
    for (index lo = 0; lo < m; lo += block_rows) {
        const index rows = std::min(block_rows, m - lo);
        const T beta = lo == 0 ? T(0) : T(1);
        if (s.by_row) {
            const T* block = s.data + lo * s.ld;
            lapack::gemm('N', 'N', rows, l, n, T(1), block, s.ld, xs, l, T(0), y, l);
            lapack::gemm('C', 'N', n, l, rows, T(1), block, s.ld, y, l, beta, sum, l);
        } else {
            // The block holds A^T, and BLAS cannot conjugate it without transposing: sum conj(A^H Y) = A^T conj(Y), turn round at
            // the end. Costs (m + n) l, nothing for real numbers.
            const T* block = s.data + lo;
            lapack::gemm('T', 'N', rows, l, n, T(1), block, s.ld, xs, l, T(0), y, l);
            conjugate_all(y, rows * l);
            lapack::gemm('N', 'N', n, l, rows, T(1), block, s.ld, y, l, beta, sum, l);
        }
    }
    if (!s.by_row) conjugate_all(sum, n * l);
}

// out = A B. BLAS threads it: 2 m n l flops (real).
template <class T>
void matmul(Mat<const T> a, Mat<const T> b, Mat<T> out) {
    const index m = a.shape[0], k = a.shape[1], n = b.shape[1];
    require(b.shape[0] == k, "matmul: b must have ", k, " rows, the columns of a, got ", b.shape[0]);
    require(out.shape[0] == m && out.shape[1] == n, "matmul: out must have shape (", m, ", ", n, "), got (", out.shape[0], ", ",
            out.shape[1], ")");
    const Lines<const T> left = lines(a, "a"), right = lines(b, "b");
    T* product = contiguous(out, "out");
    if (k == 0) std::fill_n(product, m * n, T(0));
    else lapack::gemm(left.by_row ? 'N' : 'T', right.by_row ? 'N' : 'T', m, n, k, T(1), left.data, left.ld, right.data, right.ld, T(0), product, n);
}

// Eigenvalues (ascending) of a Hermitian matrix, and over it its eigenvectors: row j holds the conjugate of the j-th.
template <class T>
int eigh(Mat<T> a, Mat<real_t<T>> values, Workspace& ws) {
    const index n = a.shape[0];
    require(a.shape[1] == n, "eigh: a must be square, got (", n, ", ", a.shape[1], ")");
    require(values.shape[0] == 1 && values.shape[1] == n, "eigh: values must have shape (1, ", n, ")");
    return lapack::heevd(n, contiguous(a, "a"), contiguous(values, "values"), ws);
}

// Fills the upper triangle of a row-major Hermitian matrix from the lower one, in tiles because one side walks down columns.
template <class T>
void mirror(T* g, index n, int nthreads) {
    constexpr index tile = 32;
    const index tiles = (n + tile - 1) / tile;
    parallel_for(tiles, nthreads, n < 512 ? tiles : 2, [=](index lo, index hi) {
        for (index bi = lo; bi < hi; ++bi)
            for (index bj = 0; bj <= bi; ++bj)
                for (index i = bi * tile; i < std::min(n, (bi + 1) * tile); ++i)
                    for (index j = bj * tile; j < std::min(i, (bj + 1) * tile); ++j) g[j * n + i] = conjugate(g[i * n + j]);
    });
}

// Row-major lower triangle of g = A^H A. With a wider Acc, blocks of lines are converted in the workspace first.
template <class T, class Acc>
void gram_lower(Mat<const T> a, Acc* g, Workspace& ws, int nthreads) {
    const auto [m, n] = a.shape;
    const Lines<const T> s = lines(a, "a");
    if (m == 0 || n == 0) {
        std::fill_n(g, n * n, Acc(0));
        return;
    }
    if constexpr (std::is_same_v<T, Acc>) {
        lapack::herk(s.by_row, n, m, s.data, s.ld, real_t<Acc>(0), g, n);
    } else {
        const index rows = std::clamp<index>((index{4} << 20) / (n * static_cast<index>(sizeof(Acc))), std::min<index>(m, 256), m);
        Workspace::Frame frame(ws);
        Acc* wide = frame.take<Acc>(rows * n);
        for (index lo = 0; lo < m; lo += rows) {
            const index k = std::min(rows, m - lo);
            const T* block = s.data + (s.by_row ? lo * s.ld : lo);
            const index count = s.by_row ? k : n, length = s.by_row ? n : k;
            parallel_for(count, nthreads, std::max<index>(1, fixed_block / length), [=](index first, index last) {
                for (index i = first; i < last; ++i)
                    for (index j = 0; j < length; ++j) wide[i * length + j] = static_cast<Acc>(block[i * s.ld + j]);
            });
            lapack::herk(s.by_row, n, k, wide, length, real_t<Acc>(lo == 0 ? 0 : 1), g, n);
        }
    }
    if (!s.by_row) conjugate_all(g, n * n);
}

// out = A^H A, both triangles: m n^2 flops (real).
template <class T, class Acc>
void gram(Mat<const T> a, Mat<Acc> out, Workspace& ws, int nthreads) {
    const index n = a.shape[1];
    require(out.shape[0] == n && out.shape[1] == n, "gram: out must have shape (", n, ", ", n, "), got (", out.shape[0], ", ",
            out.shape[1], ")");
    Acc* g = contiguous(out, "out");
    gram_lower<T, Acc>(a, g, ws, nthreads);
    mirror(g, n, nthreads);
}

// One pass of Cholesky QR: Y = Q R through Y^H Y = R^H R. `g` (l x l) is scratch in the type that accumulates: first the Gram
// matrix, then R^H, then R^-H, each in the lower triangle. q may be y itself.
// Returns spread = min_j r_jj / |y_j|: the least part of a column outside the span of the earlier ones. ||Q^H Q - I|| is of order
// eps / spread^2. 0 means failure, with y untouched. 2 m l^2 flops.
template <class T, class Acc>
double cholesky_qr(Mat<const T> y, Mat<T> q, Mat<T> r, Mat<Acc> g, Workspace& ws, int nthreads) {
    const auto [m, l] = y.shape;
    require(q.shape == y.shape, "cholesky_qr: q must have shape (", m, ", ", l, "), got (", q.shape[0], ", ", q.shape[1], ")");
    for (const auto& shape : {r.shape, g.shape})
        require(shape[0] == l && shape[1] == l, "cholesky_qr: r and g must have shape (", l, ", ", l, "), got (", shape[0], ", ",
                shape[1], ")");
    const T* ys = contiguous(y, "y");
    T *qs = contiguous(q, "q"), *rs = contiguous(r, "r");
    Acc* gs = contiguous(g, "g");
    if (m < l) return 0.0;
    Workspace::Frame frame(ws);
    real_t<Acc>* norm2 = frame.take<real_t<Acc>>(l);
    gram_lower<T, Acc>(y, gs, ws, nthreads);
    for (index j = 0; j < l; ++j) norm2[j] = std::real(gs[j * l + j]);
    if (lapack::potrf(l, gs, l) != 0) return 0.0;
    double spread = 1.0;
    for (index j = 0; j < l; ++j) {
        // squares near the bottom of the range have no digits left to tell columns apart
        if (!(norm2[j] > std::numeric_limits<real_t<Acc>>::min() / std::numeric_limits<real_t<Acc>>::epsilon())) return 0.0;
        const double part = static_cast<double>(std::real(gs[j * l + j])) / std::sqrt(static_cast<double>(norm2[j]));
        if (!(part > 0.0) || !std::isfinite(part)) return 0.0;  // NaN included: potrf does not promise to notice it
        spread = std::min(spread, part);
    }
    for (index i = 0; i < l; ++i)
        for (index j = 0; j < l; ++j) rs[i * l + j] = j < i ? T(0) : conjugate(static_cast<T>(gs[j * l + i]));
    for (index j = 0; j < l; ++j)
        if (!(std::real(rs[j * l + j]) > 0)) return 0.0;  // underflow in the narrower type
    if (lapack::trtri(l, gs, l) != 0) return 0.0;
    if (qs != ys)
        parallel_for(m, nthreads, std::max<index>(1, fixed_block / std::max<index>(1, l)),
                     [=](index lo, index hi) { std::memcpy(qs + lo * l, ys + lo * l, static_cast<std::size_t>((hi - lo) * l) * sizeof(T)); });
    // Multiplying by the inverse runs at GEMM speed, three times faster than trsm on tall blocks; its error is of the same
    // order, eps times the condition of R, which `spread` reports.
    if constexpr (std::is_same_v<T, Acc>) {
        lapack::trmm_right_adjoint(m, l, gs, l, qs, l);
    } else {
        T* inverse = frame.take<T>(l * l);
        for (index i = 0; i < l; ++i)
            for (index j = 0; j <= i; ++j) inverse[i * l + j] = static_cast<T>(gs[i * l + j]);
        lapack::trmm_right_adjoint(m, l, inverse, l, qs, l);
    }
    return spread;
}

}  // namespace tensorfact

// Product of a tall matrix with a few columns, by blocks of rows that stay in the cache, and the norms of what is kept and lost.
#pragma once

#include "tall.hpp"

namespace tensorfact {

// Rows x vectors of accumulators that fill the registers, by the number of vectors.
inline constexpr index tile_vectors = vector_registers == 32 ? 4 : 2;
template <index nv>
inline constexpr index tile_rows = vector_registers == 32 ? (nv == 1 ? 12 : nv == 4 ? 6 : 8) : (nv == 1 ? 8 : 4);

// acc (+/-)= a (mr x inner, lda apart) b (inner x nv vectors, ldb apart). Asks for the rows behind these while it works: the
// hardware follows one row at a time, which leaves the memory bus idle.
template <class R, index mr, index nv, bool minus>
inline void tile(const R* __restrict a, index lda, const R* __restrict b, index ldb, index inner, Vec<R> (&acc)[mr][nv]) {
    constexpr index line_numbers = 64 / static_cast<index>(sizeof(R)), every = std::max<index>(1, line_numbers / mr);
    const R* ahead = a + mr * lda;
    for (index k = 0; k < inner; ++k) {
        if constexpr (!minus) {
            if (k % every == 0) {
                __builtin_prefetch(ahead + k * mr);
                if constexpr (mr > line_numbers) __builtin_prefetch(ahead + k * mr + line_numbers);
            }
        }
        Vec<R> line[nv];
        for (index c = 0; c < nv; ++c) line[c] = vec(b + k * ldb + c * lanes<R>);
        for (index i = 0; i < mr; ++i)
            for (index c = 0; c < nv; ++c) {
                if constexpr (minus) acc[i][c] -= line[c] * a[i * lda + k];
                else acc[i][c] += line[c] * a[i * lda + k];
            }
    }
}

// One block of rows against a matrix of `vectors` vectors a row, packed in strips of up to tile_vectors: f(row, first vector, acc).
template <class R>
struct Strips {
    const R* data;  // [strip][inner][vectors of the strip]
    index inner, vectors;

    static index count(index columns) { return (columns + lanes<R> - 1) / lanes<R>; }
    static index size(index inner, index columns) { return inner * count(columns) * lanes<R>; }

    const R* strip(index first) const { return data + inner * first * lanes<R>; }
    index wide(index first) const { return std::min(tile_vectors, vectors - first); }

    // Element (k, j) of a matrix into its place.
    static index place(index k, index j, index inner, index vectors) {
        const index v = j / lanes<R>, first = v / tile_vectors * tile_vectors, width = std::min(tile_vectors, vectors - first);
        return inner * first * lanes<R> + k * width * lanes<R> + (v - first) * lanes<R> + j % lanes<R>;
    }
};

template <class R, index mr, index nv, bool minus, class Start, class Stop>
void rows_by(const R* a, index lda, index rows, const R* b, index inner, Start& start, Stop& stop) {
    index i = 0;
    for (; i + mr <= rows; i += mr) {
        Vec<R> acc[mr][nv];
        for (index k = 0; k < mr; ++k) start(i + k, acc[k]);
        tile<R, mr, nv, minus>(a + i * lda, lda, b, nv * lanes<R>, inner, acc);
        for (index k = 0; k < mr; ++k) stop(i + k, acc[k]);
    }
    for (; i < rows; ++i) {
        Vec<R> acc[1][nv];
        start(i, acc[0]);
        tile<R, 1, nv, minus>(a + i * lda, lda, b, nv * lanes<R>, inner, acc);
        stop(i, acc[0]);
    }
}

template <class T>
struct Product {
    using R = real_t<T>;
    static constexpr index block = 96;  // rows; a multiple of every tile's

    index n, k, padded;      // in real numbers; padded: k rounded up to whole vectors
    Strips<R> basis, adjoint;  // V, and V^H when the residual is wanted
    bool residual;

    // w (rows x padded) = y V for a block of rows; adds up its squares.
    template <index nv>
    void multiply_strip(const R* y, index ld, index rows, R* w, index first) const {
        auto start = [](index, Vec<R>(&acc)[nv]) {
            for (index c = 0; c < nv; ++c) acc[c] = Vec<R>{};
        };
        auto stop = [&](index i, Vec<R>(&acc)[nv]) {
            for (index c = 0; c < nv; ++c) vec(w + i * padded + (first + c) * lanes<R>) = acc[c];
        };
        rows_by<R, tile_rows<nv>, nv, false>(y, ld, rows, basis.strip(first), n, start, stop);
    }

    // Sum of squares of y - w V^H over one strip of columns.
    template <index nv>
    double lose_strip(const R* y, index ld, index rows, const R* w, index first) const {
        SumSquares squares;
        double rest = 0;
        alignas(64) R buffer[lanes<R>];
        const auto partial = [&](index c) { return (first + c + 1) * lanes<R> > n; };
        auto start = [&](index i, Vec<R>(&acc)[nv]) {
            for (index c = 0; c < nv; ++c) {
                const R* from = y + i * ld + (first + c) * lanes<R>;
                if (partial(c)) {
                    for (index j = 0; j < lanes<R>; ++j) buffer[j] = (first + c) * lanes<R> + j < n ? from[j] : R(0);
                    from = buffer;
                }
                acc[c] = vec(from);
            }
        };
        auto stop = [&](index, Vec<R>(&acc)[nv]) {
            for (index c = 0; c < nv; ++c) {
                vec(buffer) = acc[c];
                squares.add(buffer);  // columns beyond n are zero in y and in V^H
            }
        };
        rows_by<R, tile_rows<nv>, nv, true>(w, padded, rows, adjoint.strip(first), k, start, stop);
        return squares.total() + rest;
    }

    template <class F>
    static void by_strip(const Strips<R>& strips, F&& f) {
        for (index first = 0; first < strips.vectors; first += tile_vectors) {
            const index nv = strips.wide(first);
            if (nv == 1) f(first, std::integral_constant<index, 1>{});
            else if (nv == 2) f(first, std::integral_constant<index, 2>{});
            else if constexpr (tile_vectors > 2) {
                if (nv == 3) f(first, std::integral_constant<index, 3>{});
                else f(first, std::integral_constant<index, 4>{});
            }
        }
    }
};

// A block of the product, rows `padded` apart, to its place in the result.
template <class T>
void store_rows(const real_t<T>* from, index padded, index rows, index k, T* to, index ld, bool by_row) {
    using R = real_t<T>;
    if (by_row) {
        for (index i = 0; i < rows; ++i) std::memcpy(static_cast<void*>(to + i * ld), from + i * padded, static_cast<std::size_t>(k) * sizeof(T));
        return;
    }
    for (index j = 0; j < k; ++j)
        for (index i = 0; i < rows; ++i) {
            if constexpr (is_complex<T>) to[j * ld + i] = T(from[i * padded + 2 * j], from[i * padded + 2 * j + 1]);
            else to[j * ld + i] = static_cast<R>(from[i * padded + j]);
        }
}

// w = y v; sums[0] = ||w||^2, and sums[1] = ||y - w v^H||^2 when `residual`. 2 m n k flops (real), twice that with the residual.
template <class T>
void tall_product(Mat<const T> y, Mat<const T> v, Mat<T> w, double* sums, bool residual, Workspace& ws, int nthreads) {
    using R = real_t<T>;
    constexpr index parts = TallRows<T>::parts, block = Product<T>::block;
    const TallRows<T> tall(y);
    const index n = tall.width(), k = v.shape[1] * parts;
    require(v.shape[0] == tall.cols, "tall_product: v must have ", tall.cols, " rows, got ", v.shape[0]);
    require(w.shape[0] == tall.rows && w.shape[1] == v.shape[1], "tall_product: out must have shape (", tall.rows, ", ", v.shape[1], ")");
    const T* basis = contiguous(v, "v");
    const Lines<T> to = lines(w, "out");
    require(to.by_row == tall.l.by_row || w.shape[1] == 1 || tall.rows == 1 || tall.cols == 1, "tall_product: out must have the layout of y");
    const index vectors = Strips<R>::count(k), padded = vectors * lanes<R>;
    Workspace::Frame frame(ws);
    R* packed = frame.take<R>(Strips<R>::size(n, k));
    std::fill_n(packed, Strips<R>::size(n, k), R(0));
    const index wide = Strips<R>::count(n);
    R* turned = frame.take<R>(residual ? Strips<R>::size(k, n) : 0);
    if (residual) std::fill_n(turned, Strips<R>::size(k, n), R(0));
    const auto put = [&](index i, index j, R x) {
        packed[Strips<R>::place(i, j, n, vectors)] = x;
        if (residual) turned[Strips<R>::place(j, i, k, wide)] = x;
    };
    for (index i = 0; i < v.shape[0]; ++i)
        for (index j = 0; j < v.shape[1]; ++j) {
            const T x = basis[i * v.shape[1] + j];
            if constexpr (is_complex<T>) {  // (a + ib)(x + iy): two real rows for two real columns
                put(2 * i, 2 * j, x.real());
                put(2 * i, 2 * j + 1, x.imag());
                put(2 * i + 1, 2 * j, -x.imag());
                put(2 * i + 1, 2 * j + 1, x.real());
            } else {
                put(i, j, x);
            }
        }
    const Product<T> product{n, k, padded, {packed, n, vectors}, {turned, k, wide}, residual};
    const index blocks = (tall.rows + block - 1) / block;
    double* kept = frame.take<double>(2 * blocks);
    double* lost = kept + blocks;
    parallel_for(blocks, nthreads, 4, [=](index first, index last) {
        Workspace::Frame own(local_workspace());
        R* scratch = own.take<R>(tall.scratch(block));
        R* image = own.take<R>(block * padded);
        for (index b = first; b < last; ++b) {
            const index lo = b * block, rows = std::min(block, tall.rows - lo);
            const R* from = tall.block(lo, rows, scratch);
            Product<T>::by_strip(product.basis, [&](index at, auto nv) {
                product.template multiply_strip<nv()>(from, tall.ld(), rows, image, at);
            });
            SumSquares squares;
            for (index i = 0; i < rows * padded; i += lanes<R>) squares.add(image + i);
            kept[b] = squares.total();
            lost[b] = 0;
            if (residual)
                Product<T>::by_strip(product.adjoint, [&](index at, auto nv) {
                    lost[b] += product.template lose_strip<nv()>(from, tall.ld(), rows, image, at);
                });
            store_rows<T>(image, padded, rows, v.shape[1], to.by_row ? to.data + lo * to.ld : to.data + lo, to.ld, to.by_row);
        }
    });
    sums[0] = sums[1] = 0;
    for (index b = 0; b < blocks; ++b) {
        sums[0] += kept[b];
        sums[1] += lost[b];
    }
}

}  // namespace tensorfact

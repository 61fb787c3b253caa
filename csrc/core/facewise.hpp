// y = G (F x  facewise times  W): transform along the tubes, one product a face, transform back, nothing stored in between.
//
// A block of tokens goes through all three steps while it is in the cache of one CPU core. W is packed once, into panels that the
// register tiles read from front to back.
#pragma once

#include <atomic>

#include "parallel.hpp"
#include "populate.hpp"
#include "tiled.hpp"
#include "tubes.hpp"
#include "workspace.hpp"

namespace tensorfact {

// Faces (p, l, n) anywhere in memory.
template <class T>
struct Faces {
    const T* data;
    index p, l, n, face, row, column;  // sizes, then strides
};

namespace faces {

// Widths of the panels in vectors; three leave a tile its eight rows.
inline constexpr index widest = std::min<index>(tiled::widest, 3);

template <class T>
index vectors(index n) {
    return (n + tiled::lanes<T> - 1) / tiled::lanes<T>;
}

struct Panel {
    index first, width;  // in vectors
};

inline Panel panel(index q, index vectors) {
    const index panels = (vectors + widest - 1) / widest, first = vectors * q / panels;
    return {first, vectors * (q + 1) / panels - first};
}

// Panel by panel, each (l, width) and filled up with zeros.
template <class T>
void pack(const Faces<T>& w, index u, index q, T* packed) {
    constexpr index lanes = tiled::lanes<T>;
    const index all = vectors<T>(w.n);
    const auto [first, width] = panel(q, all);
    T* to = packed + (u * all + first) * lanes * w.l;
    const index begin = first * lanes, count = std::min(width * lanes, w.n - begin);
    const T* from = w.data + u * w.face + begin * w.column;
    if (w.column == 1) {
        for (index k = 0; k < w.l; ++k, to += width * lanes, from += w.row) {
            std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
            std::fill(to + count, to + width * lanes, T(0));
        }
        return;
    }
    constexpr index edge = 16;  // a square at a time, so that lines of both sides stay in the cache
    for (index k0 = 0; k0 < w.l; k0 += edge)
        for (index j0 = 0; j0 < width * lanes; j0 += edge)
            for (index k = k0; k < std::min(w.l, k0 + edge); ++k)
                for (index j = j0; j < std::min(width * lanes, j0 + edge); ++j)
                    to[k * width * lanes + j] = j < count ? from[k * w.row + j * w.column] : T(0);
}

// c (rows, n) = a (rows, l) times the packed face u.
template <class T>
void multiply(const T* a, const T* packed, index u, index rows, index l, index n, T* c) {
    constexpr index lanes = tiled::lanes<T>;
    const index all = vectors<T>(n), panels = (all + widest - 1) / widest;
    for (index q = 0; q < panels; ++q) {
        const auto [first, width] = panel(q, all);
        const index tail = std::min(lanes, n - (first + width - 1) * lanes);
        const tiled::Product<T> part{a, l, packed + (u * all + first) * lanes * l, width * lanes, l, nullptr, c + first * lanes, n};
        if constexpr (widest > 2) {
            if (width == 3) tiled::multiply_panel<T, 3>(part, rows, tail);
        }
        if (width == 2) tiled::multiply_panel<T, 2>(part, rows, tail);
        if (width == 1) tiled::multiply_panel<T, 1>(part, rows, tail);
    }
}

// Calls numbers into the second-level cache: while products keep a core busy, its memory would have nothing to do.
template <class T>
void call([[maybe_unused]] const T* x, [[maybe_unused]] index count) {
#if defined(__GNUC__)
    for (index i = 0; i < count; i += 64 / static_cast<index>(sizeof(T))) __builtin_prefetch(x + i, 0, 2);
#endif
}

}  // namespace faces

// Tokens that go together: their faces take a part of the second-level cache, the weights the rest. Where the weights are too large
// for it they come from further away with every block, and there are more tokens to a block.
inline constexpr index faces_cached_bytes = index{1} << 20, faces_block = 24, faces_block_uncached = 48;

// Numbers that one thread moves as fast as it takes to wake another.
inline constexpr index faces_alone = index{1} << 17;

// x (tokens, l p) and y (tokens, n p), rows of tubes one after the other if `last`, else of p slices. forward and inverse (p, p).
// bias (n p) or null, not with `last`. Returns whether x is finite.
// 2 tokens p (l n + p (l + n)) flops; reads x and writes y once. Same bits for any nthreads.
template <class T>
bool facewise(Mat<const T> x, const Faces<T>& w, const T* forward, const T* inverse, const T* bias, Mat<T> y, bool last, Workspace& ws, int nthreads) {
    const index p = w.p, l = w.l, n = w.n, tokens = x.shape[0];
    require(p >= 1 && p <= max_tube && l >= 1 && n >= 1, "facewise: faces must be (1 to ", max_tube, ", l, n), got (", p, ", ", l, ", ", n, ")");
    require(x.shape[1] == p * l, "facewise: x must have ", p * l, " columns, got ", x.shape[1]);
    require(y.shape[0] == tokens && y.shape[1] == p * n, "facewise: y must have shape (", tokens, ", ", p * n, "), got (", y.shape[0], ", ", y.shape[1],
            ")");
    require(!(last && bias), "facewise: a bias goes with slices only");
    const T* xs = contiguous(x, "x");
    T* ys = contiguous(y, "y");
    Workspace::Frame frame(ws);
    const index all = faces::vectors<T>(n), panels = (all + faces::widest - 1) / faces::widest;
    T* packed = frame.take<T>(p * all * tiled::lanes<T> * l);
    // Waking a thread takes longer than packing a small weight.
    parallel_for(p * panels, nthreads, faces_alone / (l * faces::widest * tiled::lanes<T>) + 1, [&, packed](index lo, index hi) {
        for (index t = lo; t < hi; ++t) faces::pack(w, t / panels, t % panels, packed);
    });
    const index size = static_cast<index>(sizeof(T));
    const index share = (tokens + nthreads - 1) / std::max(1, nthreads);
    const index fitting = p * l * n * size <= faces_cached_bytes ? faces_block : faces_block_uncached;
    const index block = std::clamp<index>(std::min(fitting, share), 1, fitting);
    const index chunk = std::max(block, std::min((index{1} << 20) / (p * n * size), share / 16) / block * block);
    std::atomic<bool> finite{true};
    parallel_for(tokens, nthreads, chunk, [&, xs, ys, packed](index lo, index hi) {
        Workspace& local = local_workspace();
        Workspace::Frame scratch(local);
        T* a = scratch.take<T>(p * block * l);
        T* c = scratch.take<T>(p * block * n);
        for (index t = lo, ready = lo; t < hi; t += block) {
            if (t == ready && tokens * p * n * size >= populate_from) {
                ready = std::min(hi, t + chunk);
                populate(ys + t * p * n, (ready - t) * p * n * size);
            }
            const index rows = std::min(block, hi - t);
            with_tube(p, [&](auto known) {
                if (!tubes::to_faces<T, known()>(xs + t * p * l, rows, l, p, last, forward, a, block * l)) finite.store(false, std::memory_order_relaxed);
            });
            const T* next = xs + (t + rows) * p * l;
            const index ahead = std::min(block, hi - (t + rows)) * l;  // numbers of the next tokens for each product to call
            for (index u = 0; u < p; ++u) {
                faces::call(next + u * ahead, ahead);
                faces::multiply(a + u * block * l, packed, u, rows, l, n, c + u * block * n);
            }
            with_tube(p, [&](auto known) { tubes::from_faces<T, known()>(c, block * n, rows, n, p, last, inverse, bias, ys + t * p * n); });
        }
    });
    return finite.load();
}

// The faces (p, rows, columns) of x (rows, columns p or p columns), one after the other in out. Returns whether x is finite.
template <class T>
bool tube_faces(Mat<const T> x, index p, const T* forward, T* out, bool last, int nthreads) {
    require(p >= 1 && p <= max_tube, "tube_faces: tubes must have 1 to ", max_tube, " numbers, got ", p);
    const index rows = x.shape[0], columns = x.shape[1] / p;
    const T* xs = contiguous(x, "x");
    std::atomic<bool> finite{true};
    parallel_for(rows, nthreads, faces_alone / (x.shape[1] + 1) + 1, [&, xs, out](index lo, index hi) {
        with_tube(p, [&](auto known) {
            if (!tubes::to_faces<T, known()>(xs + lo * x.shape[1], hi - lo, columns, p, last, forward, out + lo * columns, rows * columns))
                finite.store(false, std::memory_order_relaxed);
        });
    });
    return finite.load();
}

}  // namespace tensorfact

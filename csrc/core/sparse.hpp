// y = x V for a dense x (tokens, k) and a sparse V (k, n), packed once and used for many x.
//
// Tokens lie along the vector registers, so that a stored number of V is one broadcast and a few multiply-adds, and nothing is gathered.
// V is cut into blocks of rows, so that the rows of x^T that a block needs stay in the first-level cache, and into windows of columns.
// Within a block the columns of a window are sorted by their number of entries and taken four at a time; shorter ones are padded, as in
// SELL-C-sigma (Kreutzer, Hager, Wellein, Fehske, Bishop 2014). One loop without branches then serves four columns, enough independent
// sums to hide the latency of a multiply-add.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "parallel.hpp"
#include "vector.hpp"
#include "view.hpp"
#include "workspace.hpp"

namespace tensorfact {

inline constexpr index sparse_rows = 128;   // of a block; a stored row index fits a byte, and this one says "no row"
inline constexpr index sparse_window = 64;  // columns that are sorted together
inline constexpr index sparse_group = 4;    // columns of one loop
inline constexpr index sparse_widest = vector_registers == 32 ? 4 : 2;  // vectors of tokens
inline constexpr index sparse_chunk = 16;   // windows whose sums stay in the second-level cache

// Group g of block b: entries 4 starts[i] to 4 starts[i + 1] for i = b groups + g, entry by entry of its four columns, which are
// columns[4 i + 0..3] of window g / 16.
template <class T>
struct Sparse {
    index k, n, blocks, windows;
    const T* values;
    const std::uint8_t* rows;
    const std::uint8_t* columns;
    const std::int64_t* starts;

    static constexpr index groups = sparse_window / sparse_group;  // of a window

    Sparse(index k_, index n_, Mat<const T> values_, Mat<const std::uint8_t> rows_, Mat<const std::uint8_t> columns_,
           Mat<const std::int64_t> starts_)
        : k(k_), n(n_), blocks((k + sparse_rows - 1) / sparse_rows), windows((n + sparse_window - 1) / sparse_window),
          values(contiguous(values_, "values")), rows(contiguous(rows_, "rows")), columns(contiguous(columns_, "columns")),
          starts(contiguous(starts_, "starts")) {
        const index all = blocks * windows * groups;
        require(values_.shape[0] == 1 && rows_.shape == values_.shape, "rows must have the shape of values, got ", rows_.shape[1], " and ",
                values_.shape[1]);
        require(columns_.shape[0] == 1 && columns_.shape[1] == all * sparse_group, "columns must have shape (1, ", all * sparse_group, ")");
        require(starts_.shape[0] == 1 && starts_.shape[1] == all + 1, "starts must have shape (1, ", all + 1, ")");
        // A broken plan must not become a read or a write anywhere in memory.
        bool sound = starts[0] == 0 && starts[all] * sparse_group == values_.shape[1];
        for (index i = 0; i < all; ++i) sound = sound && starts[i] <= starts[i + 1];
        for (index i = 0; i < all * sparse_group; ++i) sound = sound && columns[i] < sparse_window;
        std::uint8_t most = 0;
        for (index i = 0; i < values_.shape[1]; ++i) most = std::max(most, rows[i]);
        require(sound && most <= sparse_rows, "the plan is not one that pack made");
    }
};

namespace sparse_detail {

template <class R, std::size_t... I>
inline void interleave(const Vec<R>* from, Vec<R>* to, std::index_sequence<I...>) {
    constexpr index w = lanes<R>, h = w / 2;
#pragma GCC unroll 16
    for (index i = 0; i < h; ++i) {
        to[2 * i] = __builtin_shufflevector(from[i], from[i + h], (static_cast<index>(I) % 2 * w + static_cast<index>(I) / 2)...);
        to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + h], (static_cast<index>(I) % 2 * w + static_cast<index>(I) / 2 + h)...);
    }
}

// A square of as many numbers as a vector has, turned.
template <class R>
inline void turn_square(const R* from, index lf, R* to, index lt) {
    constexpr index w = lanes<R>;
    Vec<R> a[w], b[w];
#pragma GCC unroll 16
    for (index i = 0; i < w; ++i) a[i] = vec(from + i * lf);
    Vec<R>*source = a, *target = b;
#pragma GCC unroll 4
    for (index stride = 1; stride < w; stride *= 2) {
        interleave<R>(source, target, std::make_index_sequence<static_cast<std::size_t>(w)>{});
        std::swap(source, target);
    }
#pragma GCC unroll 16
    for (index i = 0; i < w; ++i) vec(to + i * lt) = source[i];
}

// to (columns, rows) = from (rows, columns)^T, nothing read beyond the edges and, with `pad`, zeros up to whole squares in `to`.
template <class R>
void turn(const R* from, index lf, index rows, index columns, R* to, index lt, bool pad) {
    constexpr index w = lanes<R>;
    for (index j = 0; j < columns; j += w)
        for (index i = 0; i < rows; i += w) {
            const index height = std::min(w, rows - i), width = std::min(w, columns - j);
            const R* source = from + i * lf + j;
            R* target = to + j * lt + i;
            if (height == w && width == w) {
                turn_square(source, lf, target, lt);
                continue;
            }
            R part[w * w] = {}, turned[w * w];
            for (index r = 0; r < height; ++r) std::memcpy(part + r * w, source + r * lf, static_cast<std::size_t>(width) * sizeof(R));
            turn_square(part, w, turned, w);
            for (index c = 0; c < (pad ? w : width); ++c)
                std::memcpy(target + c * lt, turned + c * w, static_cast<std::size_t>(pad ? w : height) * sizeof(R));
        }
}

// Adds what block b gives to the sums of some windows. x has the rows of a block and one of zeros, y the columns of whole windows, both
// `Width` vectors of tokens a row.
template <class T, index Width>
void add_block(const Sparse<T>& s, index b, index first, index last, const T* __restrict x, T* __restrict y) {
    constexpr index w = lanes<T>, tokens = Width * w, c4 = sparse_group;
    for (index v = first; v < last; ++v, y += sparse_window * tokens)
        for (index g = 0; g < s.groups; ++g) {
            const index at = (b * s.windows + v) * s.groups + g;
            const index entries = static_cast<index>(s.starts[at + 1] - s.starts[at]);
            if (entries == 0) break;  // sorted: the rest of the window is empty, too
            const std::uint8_t* column = s.columns + at * c4;
            Vec<T> sum[c4][Width];
#pragma GCC unroll 4
            for (index c = 0; c < c4; ++c)
#pragma GCC unroll 4
                for (index i = 0; i < Width; ++i) sum[c][i] = vec(y + column[c] * tokens + i * w);
            const T* value = s.values + s.starts[at] * c4;
            const std::uint8_t* row = s.rows + s.starts[at] * c4;
            for (const T* end = value + entries * c4; value != end; value += c4, row += c4)
#pragma GCC unroll 4
                for (index c = 0; c < c4; ++c) {
                    const T* line = x + static_cast<index>(row[c]) * tokens;
#pragma GCC unroll 4
                    for (index i = 0; i < Width; ++i) sum[c][i] += value[c] * vec(line + i * w);
                }
#pragma GCC unroll 4
            for (index c = 0; c < c4; ++c)
#pragma GCC unroll 4
                for (index i = 0; i < Width; ++i) vec(y + column[c] * tokens + i * w) = sum[c][i];
        }
}

template <class T>
using AddBlock = void (*)(const Sparse<T>&, index, index, index, const T*, T*);

template <class T>
inline constexpr auto add_blocks = []<index... I>(std::integer_sequence<index, I...>) {
    return std::array<AddBlock<T>, sizeof...(I)>{add_block<T, I + 1>...};
}(std::make_integer_sequence<index, sparse_widest>{});

}  // namespace sparse_detail

// y (tokens, n) = x (tokens, k) V + bias (n, or null). 2 tokens flops an entry; V is read once for every 64 tokens (float32, AVX-512).
// A sum takes the entries of its column in the order of the rows: same bits for any nthreads and any other tokens. A number of x that
// meets no entry is never used, be it NaN.
template <class T>
void sparse_product(Mat<const T> x, const Sparse<T>& s, const T* bias, Mat<T> y, int nthreads) {
    using namespace sparse_detail;
    constexpr index w = lanes<T>;
    const index tokens = x.shape[0];
    require(x.shape[1] == s.k, "x must have ", s.k, " columns, got ", x.shape[1]);
    require(y.shape[0] == tokens && y.shape[1] == s.n, "y must have shape (", tokens, ", ", s.n, "), got (", y.shape[0], ", ", y.shape[1], ")");
    const T* xs = contiguous(x, "x");
    T* ys = contiguous(y, "y");
    const index panel = sparse_widest * w, panels = (tokens + panel - 1) / panel;
    // Few tokens leave the threads nothing to share but the columns.
    const index wanted = 4 * static_cast<index>(nthreads), cuts = std::max<index>(1, (wanted + panels - 1) / std::max<index>(1, panels));
    const index chunk = std::clamp<index>((s.windows + cuts - 1) / cuts, 1, sparse_chunk), chunks = (s.windows + chunk - 1) / chunk;
    parallel_for(panels * chunks, nthreads, 1, [&, xs, ys](index lo, index hi) {
        Workspace::Frame own(local_workspace());
        T* block = own.take<T>((sparse_rows + 1) * panel);
        T* sums = own.take<T>(chunk * sparse_window * panel);
        for (index u = lo; u < hi; ++u) {
            const index t = u / chunks * panel, count = std::min(panel, tokens - t), vectors = (count + w - 1) / w, width = vectors * w;
            const index first = u % chunks * chunk, last = std::min(s.windows, first + chunk);
            const index j = first * sparse_window, columns = std::min(s.n, last * sparse_window) - j;
            std::fill_n(block + sparse_rows * width, width, T(0));
            for (index c = 0; c < (last - first) * sparse_window; ++c) std::fill_n(sums + c * width, width, bias && c < columns ? bias[j + c] : T(0));
            for (index b = 0; b < s.blocks; ++b) {
                const index row = b * sparse_rows;
                turn(xs + t * s.k + row, s.k, count, std::min(sparse_rows, s.k - row), block, width, true);
                add_blocks<T>[static_cast<std::size_t>(vectors - 1)](s, b, first, last, block, sums);
            }
            turn(sums, width, columns, count, ys + t * s.n + j, s.n, false);
        }
    });
}

}  // namespace tensorfact

// Gram matrix of a tall matrix in one read of it: blocks of rows are copied into strips of columns that stay in the cache, and the
// upper triangle is summed up in register tiles. Sums are in double precision beyond one block of rows.
#pragma once

#include "tall.hpp"

namespace tensorfact {

// One block of rows as strips of `across` vectors, each strip [row][column]; columns beyond the last are zero.
template <class R>
struct GramBlock {
    static constexpr index w = lanes<R>;
    static constexpr index across = vector_registers == 32 ? 3 : 2;  // vectors of a strip
    static constexpr index down = vector_registers == 32 ? 8 : 4;    // columns that one tile multiplies with a strip
    static constexpr index width = across * w;

    index n, strips, padded;

    explicit GramBlock(index n_) : n(n_), strips((n_ + width - 1) / width), padded(strips * width) {}

    // As many rows as leave the strips half of the second-level cache.
    index most_rows() const { return std::clamp<index>((index{1} << 20) / (padded * static_cast<index>(sizeof(R))) / 32 * 32, 32, 256); }

    void load(const R* from, index ld, index rows, R* to) const {
        for (index s = 0; s < strips; ++s) {
            R* strip = to + s * rows * width;
            const index first = s * width, count = std::min(width, n - first);
            if (count == width)
                for (index i = 0; i < rows; ++i)
                    for (index c = 0; c < across; ++c) vec(strip + i * width + c * w) = vec(from + i * ld + first + c * w);
            else
                for (index i = 0; i < rows; ++i) {
                    std::memcpy(strip + i * width, from + i * ld + first, static_cast<std::size_t>(count) * sizeof(R));
                    std::fill_n(strip + i * width + count, width - count, R(0));
                }
        }
    }

    // sums[:down, :nv vectors] += a^T b over the rows of the block.
    template <index nv>
    static void tile(const R* __restrict a, const R* __restrict b, index rows, double* __restrict sums, index ld) {
        Vec<R> acc[down][nv] = {};
        for (index r = 0; r < rows; ++r) {
            Vec<R> line[nv];
            for (index c = 0; c < nv; ++c) line[c] = vec(b + r * width + c * w);
            for (index i = 0; i < down; ++i)
                for (index c = 0; c < nv; ++c) acc[i][c] += line[c] * a[r * width + i];
        }
        for (index i = 0; i < down; ++i)
            for (index c = 0; c < nv; ++c)
                for (index j = 0; j < w; ++j) sums[i * ld + c * w + j] += static_cast<double>(acc[i][c][j]);
    }

    // The upper triangle of sums (padded x padded), and a little below it. Asks on the way for the numbers that come after.
    void multiply(const R* block, index rows, double* sums, const R* next, index count) const {
        constexpr index line = 64 / static_cast<index>(sizeof(R));
        for (index s = 0; s < strips; ++s) {
            for (index i = count * s / strips; i < count * (s + 1) / strips; i += line) __builtin_prefetch(next + i, 0, 2);
            const R* b = block + s * rows * width;
            const index vectors = std::min(across, (n - s * width + w - 1) / w);
            for (index i = 0; i < std::min(n, (s + 1) * width); i += down) {
                const R* a = block + i / width * rows * width + i % width;
                const index skip = std::max<index>(0, i - s * width) / w;
                double* to = sums + i * padded + s * width + skip * w;
                switch (vectors - skip) {
                    case 1: tile<1>(a, b + skip * w, rows, to, padded); break;
                    case 2: tile<2>(a, b + skip * w, rows, to, padded); break;
                    case 3:
                        if constexpr (across > 2) tile<3>(a, b + skip * w, rows, to, padded);
                        break;
                    default: break;
                }
            }
        }
    }
};

// g (n x n, row-major, double precision) = Y^H Y, both triangles: m n^2 flops (real), one read. A fixed number of panels of rows have
// sums of their own, added in their order: same bits for any nthreads.
template <class T, class Acc>
void tall_gram(Mat<const T> y, Acc* g, Workspace& ws, int nthreads) {
    using R = real_t<T>;
    const TallRows<T> tall(y);
    const GramBlock<R> shape(tall.width());
    const index n = tall.cols, padded = shape.padded, size = padded * padded, block = shape.most_rows();
    // The sums of all panels are at most a sixteenth of the numbers of y.
    const index most = std::clamp<index>((index{1} << 21) / size, 8, 64);
    const index panels = std::clamp<index>(tall.rows / std::max(4 * block, 16 * padded), 1, most);
    const index per_panel = (tall.rows + panels - 1) / panels;
    Workspace::Frame frame(ws);
    double* sums = frame.take<double>(panels * size);
    parallel_for(panels, nthreads, 1, [=](index first, index last) {
        Workspace::Frame own(local_workspace());
        R* scratch = own.take<R>(tall.scratch(block));
        R* strips = own.take<R>(block * padded);
        for (index p = first; p < last; ++p) {
            double* to = sums + p * size;
            std::fill_n(to, size, 0.0);
            const index end = std::min(tall.rows, (p + 1) * per_panel);
            for (index lo = p * per_panel; lo < end; lo += block) {
                const index rows = std::min(block, end - lo), after = std::min(block, end - lo - rows);
                const R* from = tall.block(lo, rows, scratch);
                shape.load(from, tall.ld(), rows, strips);
                shape.multiply(strips, rows, to, from + rows * tall.ld(), tall.l.by_row ? after * tall.ld() : 0);
            }
        }
    });
    for (index p = 1; p < panels; ++p)
        for (index i = 0; i < size; ++i) sums[i] += sums[p * size + i];
    for (index i = 0; i < n; ++i)
        for (index j = i; j < n; ++j) {
            if constexpr (is_complex<T>) {  // conj(a + ib) (c + id)
                const double* top = sums + 2 * i * padded + 2 * j;
                const double* low = top + padded;
                const double imaginary = i == j ? 0.0 : top[1] - low[0];
                g[i * n + j] = Acc(top[0] + low[1], imaginary);
                g[j * n + i] = Acc(top[0] + low[1], -imaginary);
            } else {
                g[i * n + j] = g[j * n + i] = sums[i * padded + j];
            }
        }
}

}  // namespace tensorfact

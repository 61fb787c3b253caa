// A tall matrix by blocks of rows of real numbers, and its sparse-sign sketch.
#pragma once

#include <cstdint>
#include <cstring>

#include "parallel.hpp"
#include "vector.hpp"
#include "workspace.hpp"

namespace tensorfact {

// Rows of a tall matrix as real numbers (a complex one has twice the columns). Row-contiguous matrices are read in place; of
// column-contiguous ones each block is transposed into scratch.
template <class T>
struct TallRows {
    using R = real_t<T>;
    static constexpr index parts = is_complex<T> ? 2 : 1;

    Lines<const T> l;
    index rows, cols;  // cols in numbers of type T

    explicit TallRows(Mat<const T> y) : l(lines(y, "y")), rows(y.shape[0]), cols(y.shape[1]) {}

    index width() const { return cols * parts; }
    index scratch(index count) const { return l.by_row ? 0 : count * width(); }
    index ld() const { return l.by_row ? l.ld * parts : width(); }

    const R* block(index lo, index count, R* scratch) const {
        if (l.by_row) return reinterpret_cast<const R*>(l.data + lo * l.ld);
        constexpr index tile = 16;
        T* to = reinterpret_cast<T*>(scratch);
        for (index j0 = 0; j0 < cols; j0 += tile)
            for (index i0 = 0; i0 < count; i0 += tile)
                for (index j = j0; j < std::min(cols, j0 + tile); ++j)
                    for (index i = i0; i < std::min(count, i0 + tile); ++i) to[i * cols + j] = l.data[j * l.ld + lo + i];
        return scratch;
    }
};

// z += sign row, and the row's sum of squares.
template <class R, bool negative>
void add_row(const R* __restrict row, R* __restrict z, index n, SumSquares& squares, double& rest) {
    constexpr index step = lanes<R>;
    index j = 0;
    for (; j + step <= n; j += step) {
        if constexpr (negative) vec(z + j) -= vec(row + j);
        else vec(z + j) += vec(row + j);
        squares.add(row + j);
    }
    for (; j < n; ++j) {
        if constexpr (negative) z[j] -= row[j];
        else z[j] += row[j];
        rest += static_cast<double>(row[j]) * static_cast<double>(row[j]);
    }
}

// z (buckets x n, row-major) = S y, where S has one entry a column: codes[i] = 2 bucket + (1 if negative). Returns the sum of squares
// of y. A fixed number of panels of rows have sketches of their own, added in their order at the end: same bits for any nthreads.
template <class T>
double row_sketch(Mat<const T> y, const std::uint32_t* codes, T* z, index buckets, Workspace& ws, int nthreads) {
    using R = real_t<T>;
    constexpr index block = 64;
    const TallRows<T> tall(y);
    const index n = tall.width(), size = buckets * n;
    const index panels = std::clamp<index>(tall.rows / (16 * buckets), 1, 16);
    const index per_panel = ((tall.rows + panels - 1) / panels + block - 1) / block * block;
    Workspace::Frame frame(ws);
    R* sketches = frame.take<R>(panels * size);
    double* sums = frame.take<double>(panels);
    parallel_for(panels, nthreads, 1, [=](index first, index last) {
        Workspace& mine = local_workspace();
        Workspace::Frame own(mine);
        R* scratch = own.take<R>(tall.scratch(block));
        for (index p = first; p < last; ++p) {
            R* sketch = sketches + p * size;
            std::fill_n(sketch, size, R(0));
            double sum = 0;
            for (index lo = p * per_panel; lo < std::min(tall.rows, (p + 1) * per_panel); lo += block) {
                const index count = std::min({block, tall.rows - lo, (p + 1) * per_panel - lo});
                const R* rows = tall.block(lo, count, scratch);
                SumSquares squares;  // of one block: a longer chain of additions would lose digits
                double rest = 0;
                for (index i = 0; i < count; ++i) {
                    const std::uint32_t code = codes[lo + i];
                    R* to = sketch + static_cast<index>(code >> 1) * n;
                    if (code & 1) add_row<R, true>(rows + i * tall.ld(), to, n, squares, rest);
                    else add_row<R, false>(rows + i * tall.ld(), to, n, squares, rest);
                }
                sum += squares.total() + rest;
            }
            sums[p] = sum;
        }
    });
    R* out = reinterpret_cast<R*>(z);
    double total = 0;
    for (index p = 0; p < panels; ++p) total += sums[p];
    parallel_for(size, nthreads, 1 << 14, [=](index lo, index hi) {
        std::copy(sketches + lo, sketches + hi, out + lo);
        for (index p = 1; p < panels; ++p)
            for (index i = lo; i < hi; ++i) out[i] += sketches[p * size + i];
    });
    return total;
}

}  // namespace tensorfact

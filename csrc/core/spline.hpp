// B-spline kernels for a batch of branches, each with its own knots and points: local basis, splines, normal equations, banded solves.
#pragma once

#include <vector>

#include "parallel.hpp"
#include "spline_block.hpp"
#include "stream.hpp"

namespace tensorfact {

inline constexpr index stream_bytes = index{4} << 20;  // larger results leave the private caches anyway

// Points x (branches, points), knots (branches, basis functions + degree + 1), both C-contiguous.
template <class T>
struct SplineBatch {
    std::vector<SplineBranch<T>> branches;
    const T* x;
    index points, blocks;  // blocks of one branch

    SplineBatch(Mat<const T> x_, Mat<const T> knots, int degree, int nu, bool clamp, Workspace::Frame& frame)
        : x(contiguous(x_, "x")), points(x_.shape[1]), blocks((points + spline_block - 1) / spline_block) {
        const T* t = contiguous(knots, "knots");
        const index count = knots.shape[1] - degree - 1;
        require(degree >= 0 && degree <= max_degree, "degree must be 0 to ", max_degree, ", got ", degree);
        require(nu >= 0, "nu must not be negative, got ", nu);
        require(count > degree, "knots must be at least 2 degree + 2 = ", 2 * degree + 2, ", got ", knots.shape[1]);
        require(knots.shape[0] == x_.shape[0], "x and knots must have as many rows, got ", x_.shape[0], " and ", knots.shape[0]);
        const auto scratch = spline_scratch<T>(knots.shape[0], count, degree, frame);
        branches.reserve(static_cast<std::size_t>(knots.shape[0]));
        for (index b = 0; b < knots.shape[0]; ++b)
            branches.push_back(prepare(t + b * knots.shape[1], b, count, degree, nu, clamp, scratch));
    }

    const SplineBranch<T>& operator[](index b) const { return branches[static_cast<std::size_t>(b)]; }
    index size() const { return static_cast<index>(branches.size()); }

    // f(branch, lo, hi, values, first) for every block of points, in any order.
    template <class F>
    void for_each_block(index lo, index hi, F&& f) const {
        alignas(64) T values[(max_degree + 1) * spline_block];
        alignas(64) std::int32_t first[spline_block];
        for (index i = lo; i < hi; ++i) {
            const index b = i / blocks, from = i % blocks * spline_block, to = std::min(points, from + spline_block);
            evaluate_block((*this)[b], block_for((*this)[b]), x + b * points + from, to - from, values, first);
            f(b, from, to, values, first);
        }
    }

    // Blocks of values straight to their place, if every branch is uniform and no point lies outside; else false, some of them written.
    bool stream_blocks(index lo, index hi, T* values, std::int32_t* first) const {
        alignas(64) std::int32_t start[spline_block];
        for (index i = lo; i < hi; ++i) {
            const index b = i / blocks, from = i % blocks * spline_block, to = std::min(points, from + spline_block);
            const SplineBranch<T>& s = (*this)[b];
            const BlockOut<T> out{values + b * (s.degree + 1) * points + from, points, start, true};
            if (!s.uniform || !block_for(s)(s, x + b * points + from, to - from, out)) return false;
            stream_copy(first + b * points + from, start, to - from);
        }
        return true;
    }
};

// values (branches * (degree + 1), points): row b (degree + 1) + q holds function first[b, i] + q at point i.
template <class T>
void spline_basis(Mat<const T> x, Mat<const T> knots, int degree, int nu, bool clamp, Mat<T> values, Mat<std::int32_t> first,
                  Workspace& ws, int nthreads) {
    Workspace::Frame frame(ws);
    const SplineBatch<T> batch(x, knots, degree, nu, clamp, frame);
    const index order = degree + 1, n = batch.points;
    require(values.shape[0] == batch.size() * order && values.shape[1] == n && first.shape == x.shape,
            "values and first must fit x, got ", values.shape[0], " and ", first.shape[0], " rows");
    T* to = contiguous(values, "values");
    std::int32_t* to_first = contiguous(first, "first");
    const bool stream = values.shape[0] * n * static_cast<index>(sizeof(T)) > stream_bytes;
    // Straight from the registers where rows are aligned: writing then overlaps with computing.
    const auto misfit = (reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(to_first)) % 64;
    const bool direct = stream && misfit == 0 && n % Pack<T>::lanes == 0;
    parallel_for(batch.size() * batch.blocks, nthreads, 32, [&](index lo, index hi) {
        if (direct && batch.stream_blocks(lo, hi, to, to_first)) return stream_done();
        batch.for_each_block(lo, hi, [&](index b, index from, index end, const T* block, const std::int32_t* start) {
            const auto copy = [&](auto* out, const auto* in) {
                if (stream) stream_copy(out, in, end - from);
                else std::copy(in, in + (end - from), out);
            };
            for (index q = 0; q < order; ++q) copy(to + (b * order + q) * n + from, block + q * spline_block);
            copy(to_first + b * n + from, start);
        });
        if (stream) stream_done();
    });
}

// out (branches, points): the spline of each branch, coefficients (branches, basis functions), without its basis.
template <class T>
void spline_values(Mat<const T> x, Mat<const T> knots, int degree, int nu, bool clamp, Mat<const T> coefficients, Mat<T> out,
                   Workspace& ws, int nthreads) {
    Workspace::Frame frame(ws);
    const SplineBatch<T> batch(x, knots, degree, nu, clamp, frame);
    require(coefficients.shape[0] == batch.size() && coefficients.shape[1] == knots.shape[1] - degree - 1 && out.shape == x.shape,
            "coefficients and out must fit knots and x, got ", coefficients.shape[1], " coefficients");
    const T* c = contiguous(coefficients, "coefficients");
    T* to = contiguous(out, "out");
    parallel_for(batch.size() * batch.blocks, nthreads, 32, [&](index lo, index hi) {
        batch.for_each_block(lo, hi, [&](index b, index from, index end, const T* block, const std::int32_t* first) {
            const T* own = c + b * coefficients.shape[1];
            T* y = to + b * batch.points + from;
            for (index j = 0; j < end - from; ++j) {
                T sum = 0;
                for (index q = 0; q <= degree; ++q) sum += block[q * spline_block + j] * own[first[j] + q];
                y[j] = sum;
            }
        });
    });
}

// Normal equations of a weighted fit: band (branches * functions, degree + 1) with band[j, d] = sum_i w_i B_j(x_i) B_j+d(x_i), and
// rhs (branches, functions) = sum_i w_i B_j(x_i) y_i. Empty weights are ones, empty y leaves rhs zero. Accumulated in float64, in
// chunks of fixed size, so that the bits do not depend on the number of threads.
template <class T>
void spline_gram(Mat<const T> x, Mat<const T> knots, int degree, int nu, bool clamp, Mat<const T> weights, Mat<const T> y,
                 Mat<double> band, Mat<double> rhs, Workspace& ws, int nthreads) {
    constexpr index chunk = 32;  // blocks
    Workspace::Frame frame(ws);
    const SplineBatch<T> batch(x, knots, degree, nu, clamp, frame);
    const index order = degree + 1, count = knots.shape[1] - order, size = count * (order + 1);
    const bool weighted = weights.shape[0] > 0, fitted = y.shape[0] > 0;
    require(band.shape[0] == batch.size() * count && band.shape[1] == order && rhs.shape[0] == batch.size() && rhs.shape[1] == count,
            "band and rhs must fit knots, got ", band.shape[0], " and ", rhs.shape[0], " rows");
    require((!weighted || weights.shape == x.shape) && (!fitted || y.shape == x.shape), "weights and y must be empty or of the shape of x");
    const T *w = weighted ? contiguous(weights, "weights") : nullptr, *target = fitted ? contiguous(y, "y") : nullptr;
    double *g = contiguous(band, "band"), *r = contiguous(rhs, "rhs");
    const index chunks = (batch.blocks + chunk - 1) / chunk;
    double* partial = frame.take<double>(batch.size() * chunks * size);
    parallel_for(batch.size() * chunks, nthreads, 1, [&](index lo, index hi) {
        for (index task = lo; task < hi; ++task) {
            double* sum = partial + task * size;
            std::fill_n(sum, size, 0.0);
            const index b = task / chunks, from = b * batch.blocks + task % chunks * chunk;
            const index to = std::min(from + chunk, (b + 1) * batch.blocks);
            batch.for_each_block(from, to, [&](index, index begin, index end, const T* block, const std::int32_t* first) {
                for (index j = 0; j < end - begin; ++j) {
                    const index at = b * batch.points + begin + j;
                    double local[max_degree + 1];
                    for (index q = 0; q < order; ++q) local[q] = static_cast<double>(block[q * spline_block + j]);
                    const double weight = w ? static_cast<double>(w[at]) : 1.0, value = target ? static_cast<double>(target[at]) : 0.0;
                    double* row = sum + first[j] * (order + 1);
                    for (index q = 0; q < order; ++q, row += order + 1) {
                        const double scaled = weight * local[q];
                        for (index s = q; s < order; ++s) row[s - q] += scaled * local[s];
                        row[order] += scaled * value;
                    }
                }
            });
        }
    });
    std::fill_n(g, band.shape[0] * order, 0.0);
    std::fill_n(r, rhs.shape[0] * count, 0.0);
    for (index b = 0; b < batch.size(); ++b)
        for (index c = 0; c < chunks; ++c) {
            const double* sum = partial + (b * chunks + c) * size;
            for (index j = 0; j < count; ++j, sum += order + 1) {
                for (index d = 0; d < order; ++d) g[(b * count + j) * order + d] += sum[d];
                r[b * count + j] += sum[order];
            }
        }
}

// Solves banded symmetric positive definite systems in place by Cholesky's method: band (branches * n, width) as above becomes the
// factor, rhs (branches * n, m) the solution. Returns the smallest pivot over its diagonal entry; the solution of a branch that is not
// positive definite to working precision is NaN.
inline double spline_solve(Mat<double> band, Mat<double> rhs, index branches, int nthreads) {
    double *all = contiguous(band, "band"), *all_rhs = contiguous(rhs, "rhs");
    require(branches > 0 && band.shape[0] % branches == 0 && rhs.shape[0] == band.shape[0], "band and rhs must have as many rows, got ",
            band.shape[0], " and ", rhs.shape[0]);
    const index n = band.shape[0] / branches, width = band.shape[1], m = rhs.shape[1];
    std::vector<double> smallest(static_cast<std::size_t>(branches), 1.0);
    parallel_for(branches, nthreads, 16, [&](index lo, index hi) {
        for (index b = lo; b < hi; ++b) {
            double *a = all + b * n * width, *y = all_rhs + b * n * m;
            double& worst = smallest[static_cast<std::size_t>(b)];
            for (index j = 0; j < n; ++j) {
                double* row = a + j * width;  // holds U[j, j + d] on exit, A = U^T U
                const double before = row[0];
                for (index d = 1; d < std::min(width, j + 1); ++d) {
                    const double* above = a + (j - d) * width;
                    for (index s = d; s < width; ++s) row[s - d] -= above[d] * above[s];
                }
                const double share = before > 0 ? row[0] / before : 0.0;
                worst = std::min(worst, share > 0 ? share : 0.0);
                const double pivot = share > std::numeric_limits<double>::epsilon() ? std::sqrt(row[0]) : std::numeric_limits<double>::quiet_NaN();
                row[0] = pivot;
                for (index s = 1; s < width; ++s) row[s] = j + s < n ? row[s] / pivot : 0.0;
                for (index c = 0; c < m; ++c) {
                    double value = y[j * m + c];
                    for (index d = 1; d < std::min(width, j + 1); ++d) value -= a[(j - d) * width + d] * y[(j - d) * m + c];
                    y[j * m + c] = value / pivot;
                }
            }
            for (index j = n - 1; j >= 0; --j)
                for (index c = 0; c < m; ++c) {
                    double value = y[j * m + c];
                    for (index d = 1; d < std::min(width, n - j); ++d) value -= a[j * width + d] * y[(j + d) * m + c];
                    y[j * m + c] = value / a[j * width];
                }
        }
    });
    return *std::min_element(smallest.begin(), smallest.end());
}

}  // namespace tensorfact

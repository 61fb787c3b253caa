// y = x W^T + b for a matrix product operator, one core after another, W never formed.
//
// A core (r, m, n, s) maps n inputs to m outputs between the bonds r and s. Numbers on the way need no permutation:
//   from the right, each t[token, columns to come] is ((n, s) x rows so far) and is multiplied by the core as ((r, m) x (n, s));
//   from the left,  each t[token, rows so far] is ((r, n) x columns to come) and is multiplied by the core turned to ((m, s) x (r, n)).
// A few tokens go through all steps before the next ones, so that the numbers on the way stay in the cache of one CPU core.
#pragma once

#include <array>
#include <cstring>
#include <utility>

#include "parallel.hpp"
#include "populate.hpp"
#include "tiled.hpp"
#include "view.hpp"
#include "workspace.hpp"

namespace tensorfact {

struct Site {
    index r, m, n, s;
};

inline constexpr index max_sites = 16;

// One core's step. With the core on the left each token takes `batch` products core (rows x terms) by t (terms x columns);
// else the products are t (rows x terms) by core (terms x columns), the rows of all tokens in one.
template <class T>
struct ChainStep {
    bool core_on_left;
    const T* core;
    index batch, rows, terms, columns;
};

template <class T>
struct Chain {
    std::array<ChainStep<T>, max_sites> step;
    index count = 0, in = 1, out = 1;
    index between = 0;  // most numbers of one token between two steps

    // From the right only the last core is turned, from the left all are; the turned ones live in `frame`.
    Chain(const Site* sites, index sites_count, const T* const* cores, bool from_left, Workspace::Frame& frame) : count(sites_count) {
        for (index l = 0; l < count; ++l) {
            in *= sites[l].n;
            out *= sites[l].m;
        }
        index to_come = in, so_far = 1;
        for (index k = 0; k < count; ++k) {
            const index l = from_left ? k : count - 1 - k;
            const auto [r, m, n, s] = sites[l];
            to_come /= n;
            ChainStep<T>& to = step[at(k)];
            if (from_left && k + 1 == count) to = {false, transposed(cores[l], r, m, n, frame), 1, so_far, r * n, m};
            else if (from_left) to = {true, turned(cores[l], sites[l], frame), so_far, m * s, r * n, to_come};
            else if (k == 0) to = {false, transposed(cores[l], 1, r * m, n, frame), 1, to_come, n, r * m};
            else to = {true, cores[l], to_come, r * m, n * s, so_far};
            so_far *= m;
            if (k + 1 < count) between = std::max(between, to.batch * to.rows * to.columns);
        }
    }

    // `ping` and `pong` hold `between` numbers a token and one vector more.
    void run(const T* x, const T* bias, T* y, index tokens, T* ping, T* pong) const {
        for (index k = 0; k < count; ++k) {
            const ChainStep<T>& s = step[at(k)];
            const bool last = k + 1 == count;
            T* to = last ? y : ping;
            const T* init = last ? bias : nullptr;
            if (s.core_on_left) {
                for (index t = 0; t < tokens * s.batch; ++t)
                    tiled::multiply<T>({s.core, s.terms, x + t * s.terms * s.columns, s.columns, s.terms, init, to + t * s.rows * s.columns, s.columns},
                                      s.rows, s.columns);
            } else {
                const index groups = init ? tokens : 1, rows = init ? s.rows : tokens * s.rows;  // the bias begins anew with each token
                for (index g = 0; g < groups; ++g)
                    tiled::multiply<T>({x + g * rows * s.terms, s.terms, s.core, s.columns, s.terms, init, to + g * rows * s.columns, s.columns}, rows,
                                      s.columns);
            }
            x = to;
            std::swap(ping, pong);
        }
    }

   private:
    static std::size_t at(index k) { return static_cast<std::size_t>(k); }

    // Products may read one vector beyond the end.
    static T* padded(index n, Workspace::Frame& frame) {
        T* p = frame.take<T>(n + tiled::lanes<T>);
        std::fill_n(p + n, tiled::lanes<T>, T(0));
        return p;
    }

    // (count, rows, columns) -> (count, columns, rows)
    static const T* transposed(const T* a, index count, index rows, index columns, Workspace::Frame& frame) {
        constexpr index edge = 16;
        T* out = padded(count * rows * columns, frame);
        for (index c = 0; c < count; ++c)
            for (index i0 = 0; i0 < rows; i0 += edge)
                for (index j0 = 0; j0 < columns; j0 += edge)
                    for (index j = j0; j < std::min(columns, j0 + edge); ++j)
                        for (index i = i0; i < std::min(rows, i0 + edge); ++i) out[(c * columns + j) * rows + i] = a[(c * rows + i) * columns + j];
        return out;
    }

    // (r, m, n, s) -> ((m, s), (r, n))
    static const T* turned(const T* a, const Site& site, Workspace::Frame& frame) {
        const auto [r, m, n, s] = site;
        T* out = frame.take<T>(r * m * n * s);
        for (index i = 0; i < r; ++i)
            for (index j = 0; j < m; ++j)
                for (index k = 0; k < n; ++k)
                    for (index l = 0; l < s; ++l) out[((j * s + l) * r + i) * n + k] = *a++;
        return out;
    }
};

// Bytes on the way of the tokens that go together: most of the second-level cache is left to cores and input.
inline constexpr index chain_block_bytes = index{512} << 10;
inline constexpr index chain_block_tokens = 8;

// x (tokens, in), y (tokens, out), cores as stored, bias (out) or null. 2 tokens sum(step multiplications) flops; reads x and
// writes y once. Same bits for any nthreads.
template <class T>
void chain(Mat<const T> x, const Site* sites, index count, const T* const* cores, const T* bias, Mat<T> y, bool from_left, Workspace& ws,
           int nthreads) {
    require(count >= 1 && count <= max_sites, "chain: the number of cores must be from 1 to ", max_sites, ", got ", count);
    for (index l = 0; l < count; ++l) {
        const auto [r, m, n, s] = sites[l];
        require(r >= 1 && m >= 1 && n >= 1 && s >= 1, "chain: core ", l, " must have positive sizes");
        require(l == 0 ? r == 1 : r == sites[l - 1].s, "chain: the bonds of core ", l, " must fit its neighbours");
    }
    require(sites[count - 1].s == 1, "chain: the last bond must be 1, got ", sites[count - 1].s);
    Workspace::Frame frame(ws);
    const Chain<T> steps(sites, count, cores, from_left, frame);
    const index tokens = x.shape[0];
    require(x.shape[1] == steps.in, "chain: x must have ", steps.in, " columns, got ", x.shape[1]);
    require(y.shape[0] == tokens && y.shape[1] == steps.out, "chain: y must have shape (", tokens, ", ", steps.out, "), got (", y.shape[0], ", ",
            y.shape[1], ")");
    const T* xs = contiguous(x, "x");
    T* ys = contiguous(y, "y");
    const index cached = chain_block_bytes / (2 * steps.between * static_cast<index>(sizeof(T)) + 1);
    const index share = (tokens + nthreads - 1) / std::max(1, nthreads);
    const index block = std::clamp<index>(std::min(cached, share), 1, chain_block_tokens);
    // Only the first product reads x by whole vectors, and only there a vector may reach beyond the end of x.
    const bool reaches = steps.step[0].core_on_left && steps.step[0].columns % tiled::lanes<T> != 0;
    // Long runs of y for each thread, so that first touches of its pages do not meet.
    const index run = (index{2} << 20) / (static_cast<index>(sizeof(T)) * steps.out);
    const index chunk = std::max(block, std::min(run, share / 8) / block * block);
    const index row_bytes = steps.out * static_cast<index>(sizeof(T));
    parallel_for(tokens, nthreads, chunk, [&, xs, ys](index lo, index hi) {
        Workspace& local = local_workspace();
        Workspace::Frame scratch(local);
        const index room = block * steps.between + tiled::lanes<T>;
        T* ping = scratch.take<T>(room);
        T* pong = scratch.take<T>(room);
        // What follows these tokens is too short for a vector that reaches beyond them.
        const auto ends = [&](index end) { return reaches && (tokens - end) * steps.in < tiled::lanes<T>; };
        T* copy = ends(hi) ? scratch.take<T>(block * steps.in + tiled::lanes<T>) : nullptr;
        for (index t = lo, ready = lo; t < hi; t += block) {
            if (t == ready && tokens * row_bytes >= populate_from) {
                ready = std::min(hi, t + chunk);
                populate(ys + t * steps.out, (ready - t) * row_bytes);
            }
            const index n = std::min(block, hi - t);
            const T* from = xs + t * steps.in;
            if (ends(t + n)) from = static_cast<const T*>(std::memcpy(copy, from, static_cast<std::size_t>(n * steps.in) * sizeof(T)));
            steps.run(from, bias, ys + t * steps.out, n, ping, pong);
        }
    });
}

// out[k] = sum_a left[k][:, :, a] (x) right[k][a], a matrix product operator cut in two and multiplied out: left (m1, n1, r), right
// (r, m2, n2), out (m1 m2, n1 n2). Row (i1, i2) of out is the product left[i1] (n1 x r) by right[:, i2] (r x n2), so that nothing is
// permuted. 2 r out.size flops a member; writes out once. Same bits for any nthreads.
template <class T>
void kron_sum(index members, const T* const* left, const T* const* right, std::array<index, 3> left_shape, std::array<index, 3> right_shape,
              T* const* out, Workspace& ws, int nthreads) {
    const auto [m1, n1, r] = left_shape;
    const auto [r_right, m2, n2] = right_shape;
    require(r == r_right, "kron_sum: the bonds must be equal, got ", r, " and ", r_right);
    const index row = n1 * n2, reach = tiled::lanes<T>;
    Workspace::Frame frame(ws);
    require(m1 >= 1 && n1 >= 1 && r >= 1 && m2 >= 1 && n2 >= 1, "kron_sum: sizes must be positive");
    // Rows are read by whole vectors beyond their end, the last ones beyond the end of the right factor: of these, a copy.
    const bool reaches = n2 % reach != 0;
    const index kept = std::min(m2, 1 + (reach - 1) / n2), width = kept * n2, room = r * width + reach;
    T* edges = frame.take<T>(reaches ? members * room : 0);
    if (reaches)
        for (index k = 0; k < members; ++k)
            for (index a = 0; a < r; ++a)
                std::memcpy(edges + k * room + a * width, right[k] + (a * m2 + m2 - kept) * n2, static_cast<std::size_t>(width) * sizeof(T));
    const index work = m2 * row * std::max<index>(4, r);  // one step of the loop; below a few microseconds a second thread costs more
    parallel_for(members * m1, nthreads, std::max<index>(1, (index{1} << 18) / work), [=](index lo, index hi) {
        for (index t = lo; t < hi; ++t) {
            const index k = t / m1, i = t % m1, bytes = m2 * row * static_cast<index>(sizeof(T));
            if (m1 * bytes >= populate_from) populate(out[k] + i * m2 * row, bytes);
            for (index j = 0; j < m2; ++j) {
                const bool edge = reaches && j >= m2 - kept;
                const T* b = edge ? edges + k * room + (j - (m2 - kept)) * n2 : right[k] + j * n2;
                tiled::multiply<T>({left[k] + i * n1 * r, r, b, edge ? width : m2 * n2, r, nullptr, out[k] + (i * m2 + j) * row, n2}, n1, n2);
            }
        }
    });
}

}  // namespace tensorfact

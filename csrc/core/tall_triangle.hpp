// Q-less QR of a tall matrix: blocks of rows are folded into a triangle by Householder reflections, panels of blocks have triangles of
// their own, and a fixed tree joins those. Same bits for any number of threads.
//
// The matrix is never written: a block of rows is copied into strips of one vector's width, each strip contiguous, so that a
// reflector's passes run through the first-level cache whatever the power of two between two rows is.
#pragma once

#include <cmath>
#include <limits>

#include "tall.hpp"

namespace tensorfact {

// A sum of squares below this has lost digits to denormal numbers; a reflector made from it would not be orthogonal, so its factor is
// taken from the reflector itself.
template <class R>
inline constexpr R few_digits = std::numeric_limits<R>::min() / std::numeric_limits<R>::epsilon();

// Triangle and block as strips of `lanes` columns: element (i, j) of the block at [j / w][i][j % w].
template <class R>
struct Fold {
    static constexpr index w = lanes<R>;
    static constexpr index pair = 2 * w <= vector_registers / 2 ? 2 : 1;  // strips that one pass of the update takes
    using V = Vec<R>;

    index n, strips, nb;
    R *r, *b;  // r: [strip][n rounded up][w], b: [strip][nb][w]

    static index padded(index n) { return (n + w - 1) / w * w; }
    static index triangle_size(index n) { return padded(n) * padded(n); }

    R* r_row(index strip, index i) const { return r + (strip * strips * w + i) * w; }
    R* b_strip(index strip) const { return b + strip * nb * w; }

    // [R; B] -> R, B destroyed; `rows` of the block are used. Asks on the way for the numbers that come after.
    void absorb(index rows, const R* next = nullptr, index count = 0) const {
        constexpr index line = 64 / static_cast<index>(sizeof(R));
        for (index s = 0; s < strips; ++s) {
            for (index i = count * s / strips; i < count * (s + 1) / strips; i += line) __builtin_prefetch(next + i, 0, 2);
            alignas(64) R t[w * w];
            factor(s, rows, t);
            index to = s + 1;
            for (; to + pair <= strips; to += pair) update<pair>(s, to, rows, t);
            for (; to < strips; ++to) update<1>(s, to, rows, t);
        }
    }

    // Reflectors of the w columns of strip s: their lower parts over the block, their triangle T (upper, row-major) in t.
    void factor(index s, index rows, R* t) const {
        R* x = b_strip(s);
        alignas(64) R dots[w], u[w], top[w], kept[w];
        std::fill_n(t, w * w, R(0));
        {
            V acc[4] = {};
            index i = 0;
            for (; i + 4 <= rows; i += 4)
                for (index k = 0; k < 4; ++k) acc[k] += vec(x + (i + k) * w) * x[(i + k) * w];
            for (; i < rows; ++i) acc[0] += vec(x + i * w) * x[i * w];
            vec(dots) = (acc[0] + acc[1]) + (acc[2] + acc[3]);
        }
        for (index j = 0; j < w; ++j) {
            R* head = r_row(s, s * w + j);
            const R alpha = head[j], sigma = dots[j];
            R tau = 0, scale = 0;
            if (sigma != 0) {
                const R beta = -std::copysign(std::sqrt(alpha * alpha + sigma), alpha);
                tau = (beta - alpha) / beta;
                scale = 1 / (alpha - beta);
                head[j] = beta;
                if (sigma < few_digits<R>) {
                    R squares = 0;
                    for (index i = 0; i < rows; ++i) squares += (x[i * w + j] * scale) * (x[i * w + j] * scale);
                    tau = 2 / (1 + squares);
                }
            }
            for (index c = 0; c < w; ++c) {
                if (c > j) {
                    top[c] = tau * (head[c] + scale * dots[c]);
                    head[c] -= top[c];
                    u[c] = -top[c] * scale;
                } else {
                    u[c] = c == j ? scale : R(0);
                }
            }
            // T[:j, j] = -tau T[:j, :j] (V^T v_j)
            t[j * w + j] = tau;
            for (index a = 0; a < j; ++a) {
                R sum = 0;
                for (index c = a; c < j; ++c) sum += t[a * w + c] * dots[c];
                t[a * w + j] = -tau * scale * sum;
            }
            // One pass scales this reflector, applies it to the panel, and takes the products of the next column.
            // The reflector replaces its column: x + (scale - 1) x would lose the digits of a small scale. The column is masked, not
            // multiplied by 0, so that a number and `y` below, which must be the same, are rounded alike.
            std::fill_n(kept, w, R(1));
            kept[j] = 0;
            const V step = vec(u);
            const auto keep = vec(kept) != V{};
            if (j + 1 < w) {
                const R next = u[j + 1];
                V acc[4] = {};
                index i = 0;
                for (; i + 4 <= rows; i += 4)
                    for (index k = 0; k < 4; ++k) {
                        R* row = x + (i + k) * w;
                        const R v = row[j], y = row[j + 1] + v * next;
                        const V fresh = (keep ? vec(row) : V{}) + step * v;
                        acc[k] += fresh * y;
                        vec(row) = fresh;
                    }
                for (; i < rows; ++i) {
                    R* row = x + i * w;
                    const R v = row[j], y = row[j + 1] + v * next;
                    const V fresh = (keep ? vec(row) : V{}) + step * v;
                    acc[0] += fresh * y;
                    vec(row) = fresh;
                }
                vec(dots) = (acc[0] + acc[1]) + (acc[2] + acc[3]);
            } else {
                for (index i = 0; i < rows; ++i) x[i * w + j] *= scale;
            }
        }
    }

    // Strips to .. to + count - 1 -= V T^T V^T of themselves, with the reflectors of strip s.
    template <index count>
    void update(index s, index to, index rows, const R* t) const {
        const R* __restrict v = b_strip(s);
        R* __restrict y = b_strip(to);
        const index hop = nb * w;
        V product[w][count];
        for (index a = 0; a < w; ++a)
            for (index c = 0; c < count; ++c) product[a][c] = vec(r_row(to + c, s * w + a));
        for (index i = 0; i < rows; ++i)
            for (index c = 0; c < count; ++c) {
                const V line = vec(y + c * hop + i * w);
                for (index a = 0; a < w; ++a) product[a][c] += line * v[i * w + a];
            }
        for (index a = w - 1; a >= 0; --a)  // T^T from the last row up: each needs the earlier ones as they were
            for (index c = 0; c < count; ++c) {
                V sum = product[a][c] * t[a * w + a];
                for (index k = 0; k < a; ++k) sum += product[k][c] * t[k * w + a];
                product[a][c] = sum;
            }
        for (index a = 0; a < w; ++a)
            for (index c = 0; c < count; ++c) vec(r_row(to + c, s * w + a)) -= product[a][c];
        for (index i = 0; i < rows; ++i)
            for (index c = 0; c < count; ++c) {
                V line = vec(y + c * hop + i * w);
                for (index a = 0; a < w; ++a) line -= product[a][c] * v[i * w + a];
                vec(y + c * hop + i * w) = line;
            }
    }

    // Copies rows (ld apart, n numbers each) into the strips; columns beyond n are zero.
    void load(const R* from, index ld, index rows) const {
        const index whole = n / w;
        for (index i = 0; i < rows; ++i) {
            for (index s = 0; s < whole; ++s) vec(b_strip(s) + i * w) = vec(from + i * ld + s * w);
            if (whole == strips) continue;
            R* to = b_strip(whole) + i * w;
            for (index j = 0; j < w; ++j) to[j] = whole * w + j < n ? from[i * ld + whole * w + j] : R(0);
        }
    }

    // Folds another triangle of the same shape in.
    void join(const R* other) const {
        for (index lo = 0; lo < n; lo += nb) {
            const index rows = std::min(nb, n - lo);
            for (index s = 0; s < strips; ++s)
                std::copy_n(other + (s * strips * w + lo) * w, rows * w, b_strip(s));
            absorb(rows);
        }
    }
};

// Plain version for complex numbers, in separate planes of real and imaginary parts: row i of the triangle or block at i * n.
template <class R>
struct ComplexFold {
    index n, nb;
    R *rr, *ri, *br, *bi, *wr, *wi;

    void absorb(index rows) const {
        for (index j = 0; j < n; ++j) {
            R sigma = 0;
            for (index i = 0; i < rows; ++i) sigma += br[i * n + j] * br[i * n + j] + bi[i * n + j] * bi[i * n + j];
            R* hr = rr + j * n;
            R* hi = ri + j * n;
            const R ar = hr[j], ai = hi[j];
            if (sigma == 0) continue;
            // H = I - tau v v^H with v = (1, x / (alpha - beta)), tau = (beta - alpha) / beta: H^H applied gives beta, real
            const R beta = -std::copysign(std::sqrt(ar * ar + ai * ai + sigma), ar);
            R tr = (beta - ar) / beta, ti = ai / beta;  // conj(tau)
            const R dr = ar - beta, di = ai, d2 = dr * dr + di * di;
            const R sr = dr / d2, si = -di / d2;
            for (index i = 0; i < rows; ++i) {
                const R xr = br[i * n + j], xi = bi[i * n + j];
                br[i * n + j] = xr * sr - xi * si;
                bi[i * n + j] = xr * si + xi * sr;
            }
            if (sigma < few_digits<R>) {  // |tau|^2 (1 + |v|^2) = 2 Re tau makes H unitary
                R squares = 0;
                for (index i = 0; i < rows; ++i) squares += br[i * n + j] * br[i * n + j] + bi[i * n + j] * bi[i * n + j];
                const R factor = 2 * tr / ((tr * tr + ti * ti) * (1 + squares));
                tr *= factor;
                ti *= factor;
            }
            hr[j] = beta;
            hi[j] = 0;
            for (index c = j + 1; c < n; ++c) {
                wr[c] = hr[c];
                wi[c] = hi[c];
            }
            for (index i = 0; i < rows; ++i) {
                const R vr = br[i * n + j], vi = bi[i * n + j];
                const R* __restrict pr = br + i * n;
                const R* __restrict pi = bi + i * n;
                for (index c = j + 1; c < n; ++c) {
                    wr[c] += vr * pr[c] + vi * pi[c];
                    wi[c] += vr * pi[c] - vi * pr[c];
                }
            }
            for (index c = j + 1; c < n; ++c) {
                const R xr = wr[c] * tr - wi[c] * ti, xi = wr[c] * ti + wi[c] * tr;
                wr[c] = xr;
                wi[c] = xi;
                hr[c] -= xr;
                hi[c] -= xi;
            }
            for (index i = 0; i < rows; ++i) {
                const R vr = br[i * n + j], vi = bi[i * n + j];
                R* __restrict pr = br + i * n;
                R* __restrict pi = bi + i * n;
                for (index c = j + 1; c < n; ++c) {
                    pr[c] -= vr * wr[c] - vi * wi[c];
                    pi[c] -= vr * wi[c] + vi * wr[c];
                }
            }
        }
    }
};

// Folds of one type behind one face: size of a triangle, start, rows in, triangles together, triangle out.
template <class T>
struct Folder {
    using R = real_t<T>;
    index n, nb;
    Fold<R> fold{};
    ComplexFold<R> planes{};

    static index triangle_size(index n) {
        if constexpr (is_complex<T>) return 2 * n * n;
        else return Fold<R>::triangle_size(n);
    }

    Folder(index n_, index nb_, Workspace::Frame& frame) : n(n_), nb(nb_) {
        if constexpr (is_complex<T>) {
            R* space = frame.take<R>(2 * nb * n + 2 * n);
            planes = {n, nb, nullptr, nullptr, space, space + nb * n, space + 2 * nb * n, space + 2 * nb * n + n};
        } else {
            const index width = Fold<R>::padded(n);
            fold = {n, width / Fold<R>::w, nb, nullptr, frame.take<R>(nb * width)};
        }
    }

    void into(R* triangle) {
        if constexpr (is_complex<T>) {
            planes.rr = triangle;
            planes.ri = triangle + n * n;
        } else {
            fold.r = triangle;
        }
    }

    // rows of 2 n (complex) or n real numbers
    void rows(const R* from, index ld, index count, bool in_place) {
        if constexpr (is_complex<T>) {
            for (index i = 0; i < count; ++i)
                for (index j = 0; j < n; ++j) {
                    planes.br[i * n + j] = from[i * ld + 2 * j];
                    planes.bi[i * n + j] = from[i * ld + 2 * j + 1];
                }
            planes.absorb(count);
        } else {
            fold.load(from, ld, count);
            if (in_place) fold.absorb(count, from + count * ld, count * ld);
            else fold.absorb(count);
        }
    }

    void join(const R* other) {
        if constexpr (is_complex<T>) {
            for (index lo = 0; lo < n; lo += nb) {
                const index count = std::min(nb, n - lo);
                std::copy_n(other + lo * n, count * n, planes.br);
                std::copy_n(other + n * n + lo * n, count * n, planes.bi);
                planes.absorb(count);
            }
        } else {
            fold.join(other);
        }
    }

    static void store(const R* triangle, index n, T* out) {
        for (index i = 0; i < n; ++i)
            for (index j = 0; j < n; ++j) {
                if (j < i) out[i * n + j] = T(0);
                else if constexpr (is_complex<T>) out[i * n + j] = T(triangle[i * n + j], triangle[n * n + i * n + j]);
                else {
                    constexpr index w = Fold<R>::w;
                    out[i * n + j] = triangle[(j / w * Fold<R>::padded(n) + i) * w + j % w];
                }
            }
    }
};

// r (n x n, row-major) = the triangular factor of y: 2 m n^2 flops (real), one read.
template <class T>
void tall_triangle(Mat<const T> y, T* r, Workspace& ws, int nthreads) {
    using R = real_t<T>;
    const TallRows<T> tall(y);
    const index n = tall.cols;
    const index nb = n >= 512 ? 64 : 128;
    // As many panels as a few megabytes of triangles allow: they bound the length of a chain of roundings, too.
    const index most = std::clamp<index>((index{1} << 21) / (n * n), 8, 256);
    const index panels = std::clamp<index>(tall.rows / std::max(4 * nb, 4 * n), 1, most);
    const index per_panel = (tall.rows + panels - 1) / panels;
    const index size = Folder<T>::triangle_size(n);
    Workspace::Frame frame(ws);
    R* triangles = frame.take<R>(panels * size);
    parallel_for(panels, nthreads, 1, [=](index first, index last) {
        Workspace::Frame own(local_workspace());
        Folder<T> folder(n, nb, own);
        R* scratch = own.take<R>(tall.scratch(nb));
        for (index p = first; p < last; ++p) {
            R* triangle = triangles + p * size;
            std::fill_n(triangle, size, R(0));
            folder.into(triangle);
            const index end = std::min(tall.rows, (p + 1) * per_panel);
            for (index lo = p * per_panel; lo < end; lo += nb) {
                const index count = std::min(nb, end - lo);
                folder.rows(tall.block(lo, count, scratch), tall.ld(), count, tall.l.by_row);
            }
        }
    });
    for (index gap = 1; gap < panels; gap *= 2)
        parallel_for((panels - gap + 2 * gap - 1) / (2 * gap), nthreads, 1, [=](index first, index last) {
            Workspace::Frame own(local_workspace());
            Folder<T> folder(n, nb, own);
            for (index k = first; k < last; ++k) {
                folder.into(triangles + 2 * gap * k * size);
                folder.join(triangles + (2 * gap * k + gap) * size);
            }
        });
    Folder<T>::store(triangles, n, r);
}

}  // namespace tensorfact

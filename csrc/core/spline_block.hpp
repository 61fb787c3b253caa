// B-spline values or derivatives of a block of points, in cache: what every spline kernel is made of.
//
// de Boor (1972), equation for the local values; a derivative differences the values of lower degree (de Boor, "A Practical Guide to
// Splines", X.15). All terms of the values are positive, so small ones are as accurate as large ones.
#pragma once

#include <cstring>
#include <type_traits>

#include "spline_knots.hpp"
#include "stream.hpp"

namespace tensorfact {

inline constexpr index spline_block = 256;

// Where a block goes: degree + 1 rows of values, `stride` apart, and the index of the first of those functions at each point. Past the
// caches where `stream` is true; rows are then whole vectors and aligned to them.
template <class T>
struct BlockOut {
    T* values;
    index stride;
    std::int32_t* first;
    bool stream;
};

// Returns whether all points lie in [lo, hi], of which uniform knots take the nearest end else; other knots ask for points inside.
template <class T>
using SplineBlock = bool (*)(const SplineBranch<T>& s, const T* x, index n, const BlockOut<T>& out);

// As wide as the registers: compilers take comparisons of wider vectors apart, one element at a time.
#if defined(__AVX512F__)
inline constexpr std::size_t pack_bytes = 64;
#elif defined(__AVX2__)
inline constexpr std::size_t pack_bytes = 32;
#else
inline constexpr std::size_t pack_bytes = 16;
#endif

template <class T>
struct Pack {
    typedef T type __attribute__((vector_size(pack_bytes)));
    typedef std::int32_t count __attribute__((vector_size(pack_bytes / sizeof(T) * sizeof(std::int32_t))));
    static constexpr index lanes = static_cast<index>(pack_bytes / sizeof(T));
};

template <class T>
inline typename Pack<T>::type gather(const T* table, const typename Pack<T>::count& at) {
#if defined(__AVX512F__)
    // With a mask: without one, the compiler's own header starts from a vector that it then warns about.
    if constexpr (std::is_same_v<T, float>)
        return (typename Pack<T>::type)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)at, table, 4);
    else return (typename Pack<T>::type)_mm512_mask_i32gather_pd(_mm512_setzero_pd(), 0xff, (__m256i)at, table, 8);
#else
    typename Pack<T>::type found;
#pragma GCC unroll 16
    for (index i = 0; i < Pack<T>::lanes; ++i) found[i] = table[at[i]];
    return found;
#endif
}

// The local recurrence at one point of interval k. P, NU < 0: taken from the branch.
template <class T, int P, int NU>
inline void local_values(const SplineBranch<T>& s, T x, index k, T* __restrict values) {
    const int p = P < 0 ? s.degree : P, nu = NU < 0 ? s.nu : NU;
    const T* __restrict t = s.t + k;
    const T* __restrict inverse = s.inverse + (k - s.degree) * triangle(p);
    values[0] = 1;
#pragma GCC unroll 8
    for (int d = 1; d <= p - nu; ++d) {
        T carry = 0;
#pragma GCC unroll 8
        for (int q = 0; q < d; ++q) {
            const T u = values[q] * *inverse++;
            values[q] = carry + (t[1 + q] - x) * u;
            carry = (x - t[1 - d + q]) * u;
        }
        values[d] = carry;
    }
#pragma GCC unroll 8
    for (int d = std::max(1, p - nu + 1); d <= p; ++d) {
        T carry = 0;
#pragma GCC unroll 8
        for (int q = 0; q < d; ++q) {
            const T u = values[q] * *inverse++;
            values[q] = carry - u;
            carry = u;
        }
        values[d] = carry;
    }
}

template <class T, int P, int NU>
bool general_block(const SplineBranch<T>& s, const T* x, index n, const BlockOut<T>& out) {
    T* __restrict values = out.values;
    std::int32_t* __restrict first = out.first;
    const int p = P < 0 ? s.degree : P;
    for (index j = 0; j < n; ++j) first[j] = s.knot[interval_of(s, x[j])] - p;
    for (index j = 0; j < n; ++j) {
        T local[max_degree + 1];
        local_values<T, P, NU>(s, x[j], first[j] + p, local);
#pragma GCC unroll 8
        for (int q = 0; q <= p; ++q) values[q * out.stride + j] = local[q];
    }
    return true;
}

// Uniform breakpoints: knot distances are small integers in units of the step, cut off at repeated ends, so that many points go through
// the recurrence at once and nothing is looked up but the ends of the interval. x is padded, and so are values and first unless streamed.
template <class T, int P, int NU>
bool uniform_block(const SplineBranch<T>& s, const T* x, index n, const BlockOut<T>& out) {
    using V = typename Pack<T>::type;
    using I = typename Pack<T>::count;
    const T per_step = 1 / s.step;
    const T last = static_cast<T>(s.count - P - 1);
    const V lo = V{} + s.lo, hi = V{} + s.hi;
    auto outside = lo != lo;
    for (index j = 0; j < n; j += Pack<T>::lanes) {
        V given;
        std::memcpy(&given, x + j, sizeof given);
        V at = given > lo ? given : lo;  // NaN goes to lo
        at = at < hi ? at : hi;
        outside |= given != at;
        // The estimate is right or one too low. Position in the interval by its own ends: rounded knots at 200 intervals are off by
        // 100 eps of a step. Reciprocals of lengths are such that u is never below 1 at the end.
        I first = __builtin_convertvector((at - lo) * per_step - s.bias, I);
        V u = (at - gather(s.t + P, first)) * gather(s.inverse, first);
        const V i0 = __builtin_convertvector(first, V);
        const auto next = (u >= 1) & (i0 < last);
        u = next ? u - 1 : u;
        const V i = next ? i0 + 1 : i0;
        first = __builtin_convertvector(i, I);
        u = u < 1 ? u : V{} + 1;
        const V v = 1 - u;
        const V before = i + s.beyond, after = (last - i) + s.beyond;
        // Knots to the left of the interval's start and to the right of its end, in steps, and their distances from the point.
        V left[P], right[P], from[P], to[P], local[P + 1];
        from[0] = u, to[0] = v;
#pragma GCC unroll 8
        for (int q = 1; q < P; ++q) {
            const V steps = V{} + static_cast<T>(q);
            left[q] = before < steps ? before : steps;
            right[q] = after < steps ? after : steps;
            from[q] = u + left[q];
            to[q] = v + right[q];
        }
        local[0] = v, local[1] = u;  // degree 1, which is where the derivatives of lower order begin too: NU < P
#pragma GCC unroll 8
        for (int d = 2; d <= P; ++d) {
            V carry{};
#pragma GCC unroll 8
            for (int q = 0; q < d; ++q) {
                // Length of the support in steps, less one: 0 .. d - 1.
                const V more = q == 0 ? left[d - 1] : q == d - 1 ? right[q] : left[d - q - 1] + right[q];
                V w = local[q];
                if (d == 2) w *= 1 - T(0.5) * more;
                else if (d == 3) w *= 1 + more * (T(1) / 6 * more - T(2) / 3);  // 1, 1/2, 1/3
                else w /= 1 + more;
                if (d <= P - NU) {
                    local[q] = q == 0 ? to[q] * w : carry + to[q] * w;
                    carry = from[d - q - 1] * w;
                } else {
                    w *= static_cast<T>(d) * per_step;
                    local[q] = q == 0 ? -w : carry - w;
                    carry = w;
                }
            }
            local[d] = carry;
        }
#pragma GCC unroll 8
        for (int q = 0; q <= P; ++q) {
            T* to = out.values + q * out.stride + j;
            if (out.stream) stream_store(to, local[q]);
            else *reinterpret_cast<V*>(to) = local[q];
        }
        *reinterpret_cast<I*>(out.first + j) = first;
    }
    bool inside = true;
    for (index i = 0; i < Pack<T>::lanes; ++i) inside = inside && !outside[i];
    return inside;
}

template <class T, int P>
SplineBlock<T> block_of_degree(int nu, bool uniform) {
    switch (nu) {
        case 0: return uniform ? &uniform_block<T, P, 0> : &general_block<T, P, 0>;
        case 1:
            if constexpr (P > 1)
                if (uniform) return &uniform_block<T, P, 1>;
            return &general_block<T, P, 1>;
        case 2:
            if constexpr (P > 2)
                if (uniform) return &uniform_block<T, P, 2>;
            return &general_block<T, P, 2>;
        default: return &general_block<T, -1, -1>;
    }
}

template <class T>
SplineBlock<T> block_for(const SplineBranch<T>& s) {
    switch (s.degree) {
        case 1: return block_of_degree<T, 1>(s.nu, s.uniform);
        case 2: return block_of_degree<T, 2>(s.nu, s.uniform);
        case 3: return block_of_degree<T, 3>(s.nu, s.uniform);
        case 4: return block_of_degree<T, 4>(s.nu, s.uniform);
        case 5: return block_of_degree<T, 5>(s.nu, s.uniform);
        default: return &general_block<T, -1, -1>;
    }
}

// Slopes of the local functions at an end, for linear tails.
template <class T>
void end_slopes(const SplineBranch<T>& s, T x, index k, T* slopes) {
    const int p = s.degree;
    const T* t = s.t + k;
    for (int q = 0; q <= p; ++q) slopes[q] = 0;
    if (p == 0) return;
    slopes[0] = 1;
    for (int d = 1; d <= p; ++d) {
        T carry = 0;
        for (int q = 0; q < d; ++q) {
            const T u = slopes[q] / (t[1 + q] - t[1 - d + q]);
            slopes[q] = d < p ? carry + (t[1 + q] - x) * u : carry - static_cast<T>(p) * u;
            carry = d < p ? (x - t[1 - d + q]) * u : static_cast<T>(p) * u;
        }
        slopes[d] = carry;
    }
}

// Copies up to `spline_block` points, aligned and padded, those outside moved to the ends; says whether there are such.
template <class T>
bool brought_inside(const SplineBranch<T>& s, const T* x, index n, T* inside) {
    using V = typename Pack<T>::type;
    constexpr index lanes = Pack<T>::lanes;
    const V lo = V{} + s.lo, hi = V{} + s.hi;
    V least = lo, most = lo, poison{};
    for (index j = 0; j < n; j += lanes) {
        V at = lo;
        if (j + lanes <= n) std::memcpy(&at, x + j, sizeof at);
        else std::memcpy(&at, x + j, static_cast<std::size_t>(n - j) * sizeof(T));
        poison += at - at;  // NaN for NaN and infinity
        least = at < least ? at : least;
        most = at > most ? at : most;
        at = at > lo ? at : lo;  // NaN goes to lo
        *reinterpret_cast<V*>(inside + j) = at < hi ? at : hi;
    }
    bool outside = false;
    for (index i = 0; i < lanes; ++i) outside = outside || least[i] < s.lo || most[i] > s.hi || poison[i] != 0;
    return outside;
}

// Values of up to `spline_block` points anywhere, rows `spline_block` apart: tails outside the knots, NaN where x is NaN.
template <class T>
void evaluate_block(const SplineBranch<T>& s, SplineBlock<T> block, const T* x, index n, T* values, std::int32_t* first) {
    alignas(64) T inside[spline_block];
    const bool outside = brought_inside(s, x, n, inside);
    block(s, inside, n, {values, spline_block, first, false});
    if (s.nu > s.degree)
        for (index q = 0; q <= s.degree; ++q) std::fill_n(values + q * spline_block, n, T(0));
    if (!outside) return;
    for (index j = 0; j < n; ++j) {
        if (x[j] >= s.lo && x[j] <= s.hi) continue;
        T* at = values + j;
        T slopes[max_degree + 1];
        const bool linear = s.nu == 0 && !s.clamp && x[j] == x[j];
        if (linear) end_slopes(s, inside[j], first[j] + s.degree, slopes);
        for (int q = 0; q <= s.degree; ++q) {
            if (x[j] != x[j]) at[q * spline_block] = std::numeric_limits<T>::quiet_NaN();
            else if (linear) at[q * spline_block] += slopes[q] * (x[j] - inside[j]);
            else if (s.nu >= 2 || (s.nu == 1 && s.clamp)) at[q * spline_block] = 0;
        }
    }
}

}  // namespace tensorfact

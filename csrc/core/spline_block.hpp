// B-spline values or derivatives of a block of points, in cache: what every spline kernel is made of.
//
// de Boor (1972), equation for the local values; a derivative differences the values of lower degree (de Boor, "A Practical Guide to
// Splines", X.15). All terms of the values are positive, so small ones are as accurate as large ones.
#pragma once

#include <cstring>

#include "spline_knots.hpp"

namespace tensorfact {

inline constexpr index spline_block = 256;

// `values` holds degree + 1 rows of `spline_block` points, `first` the index of the first of those functions. x lies in [lo, hi].
template <class T>
using SplineBlock = void (*)(const SplineBranch<T>& s, const T* x, index n, T* values, std::int32_t* first);

template <class T>
struct Pack {
    typedef T type __attribute__((vector_size(64)));
    typedef std::int32_t count __attribute__((vector_size(64 / sizeof(T) * sizeof(std::int32_t))));
    static constexpr index lanes = 64 / static_cast<index>(sizeof(T));
};

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
void general_block(const SplineBranch<T>& s, const T* x, index n, T* __restrict values, std::int32_t* __restrict first) {
    const int p = P < 0 ? s.degree : P;
    for (index j = 0; j < n; ++j) first[j] = s.knot[interval_of(s, x[j])] - p;
    for (index j = 0; j < n; ++j) {
        T local[max_degree + 1];
        local_values<T, P, NU>(s, x[j], first[j] + p, local);
#pragma GCC unroll 8
        for (int q = 0; q <= p; ++q) values[q * spline_block + j] = local[q];
    }
}

// Uniform breakpoints: knot distances are small integers in units of the step, cut off at repeated ends, so that many points go through
// the recurrence at once and nothing is looked up but the start of the interval. x, values and first are aligned and padded.
template <class T, int P, int NU>
void uniform_block(const SplineBranch<T>& s, const T* x, index n, T* __restrict values, std::int32_t* __restrict first) {
    using V = typename Pack<T>::type;
    using I = typename Pack<T>::count;
    constexpr index lanes = Pack<T>::lanes;
    const T per_step = 1 / s.step;
    const index intervals = s.count - P;
    alignas(64) T start[spline_block];
    for (index j = 0; j < n; j += lanes) {
        const V at = (*reinterpret_cast<const V*>(x + j) - s.lo) * per_step - s.bias;
        *reinterpret_cast<I*>(first + j) = __builtin_convertvector(at, I);
    }
    const T* breaks = s.t + P;
    for (index j = 0; j < n; ++j) {  // the estimate is right or one too low
        index i = first[j];
        i += x[j] >= s.next[i];
        first[j] = static_cast<std::int32_t>(i);
        start[j] = breaks[i];
    }
    for (index j = 0; j < n; j += lanes) {
        const V i = __builtin_convertvector(*reinterpret_cast<const I*>(first + j), V);
        V u = (*reinterpret_cast<const V*>(x + j) - *reinterpret_cast<const V*>(start + j)) * per_step;
        u = u < 1 ? u : V{} + 1;
        const V v = 1 - u;
        const V before = i + s.beyond, after = (static_cast<T>(intervals - 1) - i) + s.beyond;
        // Knots to the left of the interval's start and to the right of its end, in steps.
        V left[P], right[P], local[P + 1];
#pragma GCC unroll 8
        for (int q = 0; q < P; ++q) {
            const V steps = V{} + static_cast<T>(q);
            left[q] = q == 0 ? V{} : before < steps ? before : steps;
            right[q] = q == 0 ? V{} : after < steps ? after : steps;
        }
        local[0] = V{} + 1;
#pragma GCC unroll 8
        for (int d = 1; d <= P; ++d) {
            V carry{};
#pragma GCC unroll 8
            for (int q = 0; q < d; ++q) {
                const V more = left[d - q - 1] + right[q];  // length of the support in steps, less one: 0 .. d - 1
                V w = local[q];
                if (d == 2) w *= 1 - T(0.5) * more;
                else if (d == 3) w *= 1 + more * (T(1) / 6 * more - T(2) / 3);  // 1, 1/2, 1/3
                else if (d > 3) w /= 1 + more;
                if (d <= P - NU) {
                    local[q] = carry + (v + right[q]) * w;
                    carry = (u + left[d - q - 1]) * w;
                } else {
                    w *= static_cast<T>(d) * per_step;
                    local[q] = carry - w;
                    carry = w;
                }
            }
            local[d] = carry;
        }
#pragma GCC unroll 8
        for (int q = 0; q <= P; ++q) *reinterpret_cast<V*>(values + q * spline_block + j) = local[q];
    }
}

template <class T, int P>
SplineBlock<T> block_of_degree(int nu, bool uniform) {
    switch (nu) {
        case 0: return uniform ? &uniform_block<T, P, 0> : &general_block<T, P, 0>;
        case 1: return uniform && P > 1 ? &uniform_block<T, P, 1> : &general_block<T, P, 1>;
        case 2: return uniform && P > 2 ? &uniform_block<T, P, 2> : &general_block<T, P, 2>;
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

// Values of up to `spline_block` points anywhere: tails outside the knots, NaN where x is NaN.
template <class T>
void evaluate_block(const SplineBranch<T>& s, SplineBlock<T> block, const T* x, index n, T* values, std::int32_t* first) {
    using V = typename Pack<T>::type;
    constexpr index lanes = Pack<T>::lanes;
    alignas(64) T inside[spline_block];
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
    block(s, inside, n, values, first);
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

// One branch of B-splines made ready for many points: interval search in constant time, reciprocals of knot distances.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "view.hpp"
#include "workspace.hpp"

namespace tensorfact {

inline constexpr int max_degree = 7;

template <class T>
struct SplineBranch {
    const T* t;      // knots, t[degree] .. t[count] is where the basis sums to one
    index count;     // basis functions
    int degree, nu;  // order of the derivative
    bool clamp;      // constant tails; else linear ones
    T lo, hi;        // ends of the first and the last interval that is not empty
    // Intervals that are not empty: t[knot[m]] <= x < next[m]; the last one is closed, its next is infinity.
    index intervals;
    const T* next;
    const std::int32_t* knot;
    // General knots: bucket j holds an interval that surely begins before its points do, at most `steps` too low.
    index buckets, steps;
    T per_bucket;
    const std::int32_t* bucket;
    const T* inverse;  // reciprocals of knot distances: `triangle(degree)` for each knot interval, one for each of uniform knots
    // Uniform knots: distance of breakpoints, and how many steps the knots go on beyond each end (0 where they are repeated).
    bool uniform;
    T step, bias, beyond;
};

// Number of reciprocals of one interval.
constexpr index triangle(int degree) { return static_cast<index>(degree) * (degree + 1) / 2; }

// Whether breakpoints are equally spaced to the accuracy of their own rounding, and the end knots repeated or spaced alike. The basis
// of exactly uniform knots then differs from that of the given ones by less than 40 eps of its maximum.
template <class T>
bool uniform_knots(const T* t, index count, int degree, T& step, T& beyond) {
    const index intervals = count - degree;
    const T allowed = 128 * std::numeric_limits<T>::epsilon();
    step = (t[count] - t[degree]) / static_cast<T>(intervals);
    const auto steady = [&](index i) { return std::abs(t[i + 1] - t[i] - step) <= allowed * step; };
    // Beyond the range of T, 1 / step or the span would give positions that are no numbers.
    if (degree == 0 || !(step > 0) || !std::isfinite(step) || !std::isfinite(1 / step) || static_cast<T>(intervals) * std::numeric_limits<T>::epsilon() * 1024 > T(0.5)) return false;
    for (index i = degree; i < count; ++i)
        if (!steady(i)) return false;
    bool repeated = true, spaced = true;
    for (index i = 0; i < degree; ++i) {
        repeated = repeated && t[i] == t[degree] && t[count + 1 + i] == t[count];
        spaced = spaced && steady(i) && steady(count + i);
    }
    beyond = repeated ? T(0) : static_cast<T>(degree);
    return repeated || spaced;
}

inline constexpr index most_buckets = 4096;

template <class T>
index bucket_of(const SplineBranch<T>& s, T x) {
    const T at = (x - s.lo) * s.per_bucket;  // grows with x, whatever the rounding
    return at > 0 ? static_cast<index>(std::min(static_cast<T>(s.buckets - 1), at)) : 0;
}

// Interval of lo <= x <= hi. Branches would be mispredicted for every other point, so the common case has none.
template <class T>
index interval_of(const SplineBranch<T>& s, T x) {
    const index j = bucket_of(s, x);
    index m = s.bucket[j];
    if (s.steps <= 4) {
        for (index step = 0; step < s.steps; ++step) m += x >= s.next[m];
        return m;
    }
    index last = s.bucket[j + 1];
    while (m < last) {  // knots that cluster
        const index middle = (m + last) / 2;
        if (x >= s.next[middle]) m = middle + 1;
        else last = middle;
    }
    return m;
}

template <class T>
struct SplineScratch {
    std::int32_t *bucket, *knot;
    T *inverse, *next;
};

template <class T>
SplineScratch<T> spline_scratch(index branches, index count, int degree, Workspace::Frame& frame) {
    const index intervals = count - degree;
    return {frame.take<std::int32_t>(branches * (std::min(most_buckets, 32 * intervals) + 1)), frame.take<std::int32_t>(branches * intervals),
            frame.take<T>(branches * intervals * std::max<index>(1, triangle(degree))), frame.take<T>(branches * intervals)};
}

template <class T>
void fill_buckets(SplineBranch<T>& s, index most, std::int32_t* bucket) {
    T shortest = s.hi - s.lo;
    for (index m = 0; m + 1 < s.intervals; ++m) shortest = std::min(shortest, s.next[m] - s.t[s.knot[m]]);
    const T wanted = (s.hi - s.lo) / shortest + 1;  // then no bucket has two breakpoints
    s.buckets = wanted < static_cast<T>(most) ? static_cast<index>(wanted) : most;
    s.per_bucket = static_cast<T>(s.buckets) / (s.hi - s.lo);
    if (!std::isfinite(s.per_bucket)) s.per_bucket = 0;  // an interval of denormal length: one bucket and bisection
    index m = 0;
    for (index j = 0; j <= s.buckets; ++j) {
        while (m + 1 < s.intervals && bucket_of(s, s.next[m]) < j) ++m;
        bucket[j] = static_cast<std::int32_t>(j == s.buckets ? s.intervals - 1 : m);
        if (j > 0) s.steps = std::max<index>(s.steps, bucket[j] - bucket[j - 1]);
    }
    s.bucket = bucket;
}

template <class T>
SplineBranch<T> prepare(const T* t, index branch, index count, int degree, int nu, bool clamp, SplineScratch<T> scratch) {
    const index all = count - degree;
    SplineBranch<T> s{};
    s.t = t, s.count = count, s.degree = degree, s.nu = nu, s.clamp = clamp;
    T* next = scratch.next + branch * all;
    std::int32_t* knot = scratch.knot + branch * all;
    for (index k = degree; k < count; ++k)
        if (t[k] < t[k + 1]) {
            knot[s.intervals] = static_cast<std::int32_t>(k);
            next[s.intervals++] = t[k + 1];
        }
    require(s.intervals > 0, "knots of branch ", branch, " must span an interval, got [", t[degree], ", ", t[count], "]");
    s.next = next, s.knot = knot;
    s.lo = t[knot[0]], s.hi = next[s.intervals - 1];
    next[s.intervals - 1] = std::numeric_limits<T>::infinity();

    s.uniform = degree <= 5 && nu < std::min(degree, 3) && uniform_knots(t, count, degree, s.step, s.beyond);
    s.bias = 1024 * std::numeric_limits<T>::epsilon() * static_cast<T>(all);
    const index most = std::min(most_buckets, 32 * all);
    fill_buckets(s, most, scratch.bucket + branch * (most + 1));
    T* inverse = scratch.inverse + branch * all * triangle(degree);
    s.inverse = inverse;
    for (index k = degree; k < count; ++k) {
        if (s.uniform) {
            const T length = t[k + 1] - t[k], share = 1 / length;
            *inverse++ = length * share < 1 ? std::nextafter(share, std::numeric_limits<T>::infinity()) : share;
            continue;
        }
        for (int d = 1; d <= degree; ++d)
            for (int q = 0; q < d; ++q) {
                const T length = t[k + 1 + q] - t[k + 1 - d + q];
                *inverse++ = length > 0 ? (d > degree - nu ? static_cast<T>(d) : T(1)) / length : T(0);  // 0: an empty interval
            }
    }
    return s;
}

}  // namespace tensorfact

// Short vectors through the compilers' own extension: the widest that the build's instruction set has.
#pragma once

#include "view.hpp"

namespace tensorfact {

#if defined(__AVX512F__)
inline constexpr index vector_bytes = 64, vector_registers = 32;
#elif defined(__AVX__)
inline constexpr index vector_bytes = 32, vector_registers = 16;
#else
inline constexpr index vector_bytes = 16, vector_registers = 16;
#endif

template <class R>
inline constexpr index lanes = vector_bytes / static_cast<index>(sizeof(R));

// `aligned` to one number only, so that a reference may point anywhere.
template <class R>
struct vector_of {
    typedef R type __attribute__((vector_size(vector_bytes), aligned(alignof(R)), may_alias));
};
template <class R>
using Vec = typename vector_of<R>::type;

template <class R>
inline Vec<R>& vec(R* p) {
    return *reinterpret_cast<Vec<R>*>(p);
}
template <class R>
inline const Vec<R>& vec(const R* p) {
    return *reinterpret_cast<const Vec<R>*>(p);
}

// Squares of the numbers of a vector, added to double precision sums.
struct SumSquares {
    Vec<double> low{}, high{};

    void add(const double* p) { low += vec(p) * vec(p); }
    void add(const float* p) {
        typedef float Half __attribute__((vector_size(vector_bytes / 2), aligned(alignof(float)), may_alias));
        const auto a = __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
        const auto b = __builtin_convertvector(*reinterpret_cast<const Half*>(p + lanes<float> / 2), Vec<double>);
        low += a * a;
        high += b * b;
    }
    double total() const {
        double sum = 0;
        for (index k = 0; k < lanes<double>; ++k) sum += low[k] + high[k];
        return sum;
    }
};

}  // namespace tensorfact

// Small row-major products whose operands are read where they lie: register tiles and nothing around them.
//
// For operands that fit the caches and are used a few times only: a general GEMM would spend its time on packing them.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <utility>

#include "view.hpp"

namespace tensorfact::tiled {

#if defined(__AVX512F__)
inline constexpr std::size_t vector_bytes = 64;
inline constexpr index widest = 4;                              // vectors across a tile
inline constexpr std::array<index, widest> heights{16, 12, 8, 6};  // rows of a tile of 1, 2, ... vectors, for 32 registers
#else
#if defined(__AVX__)
inline constexpr std::size_t vector_bytes = 32;
#else
inline constexpr std::size_t vector_bytes = 16;
#endif
inline constexpr index widest = 2;
inline constexpr std::array<index, widest> heights{8, 6};  // 16 registers
#endif

template <class T>
inline constexpr index lanes = static_cast<index>(vector_bytes / sizeof(T));

#if defined(__GNUC__)
template <class T>
struct vector_of {
    typedef T type __attribute__((vector_size(vector_bytes)));
};
template <class T>
using Vector = typename vector_of<T>::type;
#else
template <class T>
struct Vector {
    T x[lanes<T>];

    friend Vector operator*(T a, Vector b) {
        for (T& each : b.x) each *= a;
        return b;
    }
    Vector& operator+=(const Vector& b) {
        for (index i = 0; i < lanes<T>; ++i) x[i] += b.x[i];
        return *this;
    }
};
#endif

template <class T>
Vector<T> load(const T* p) {
    Vector<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
void store(T* p, const Vector<T>& v) {
    std::memcpy(p, &v, sizeof v);
}

// Copies the first `count` < lanes numbers, by halves: a memcpy of unknown length is a call.
template <class T>
void copy_part(T* to, const T* from, index count) {
#define TENSORFACT_HALF(h)                               \
    if constexpr (lanes<T> > (h)) {                      \
        if (count & (h)) {                               \
            std::memcpy(to, from, (h) * sizeof(T));      \
            to += (h);                                   \
            from += (h);                                 \
        }                                                \
    }
    TENSORFACT_HALF(8)
    TENSORFACT_HALF(4)
    TENSORFACT_HALF(2)
    TENSORFACT_HALF(1)
#undef TENSORFACT_HALF
}

// c = a b, or init + a b with `init` laid out as c. Row-major; b may be read up to one vector beyond the end of a row.
template <class T>
struct Product {
    const T* a;
    index lda;
    const T* b;
    index ldb, terms;
    const T* init;  // may be null
    T* c;
    index ldc;
};

// Rows x Width vectors of c, the last of them with `tail` numbers. Every element sums over its terms in order, whatever the tiles.
template <class T, index Rows, index Width>
void multiply_tile(const Product<T>& p, index tail) {
    constexpr index w = lanes<T>;
    Vector<T> sum[Rows][Width];
    for (index i = 0; i < Rows; ++i)
        for (index j = 0; j < Width; ++j) {
            if (!p.init) sum[i][j] = Vector<T>{};
            else if (j + 1 < Width || tail == w) sum[i][j] = load(p.init + i * p.ldc + j * w);
            else {
                T part[w] = {};
                copy_part(part, p.init + i * p.ldc + j * w, tail);
                sum[i][j] = load(part);
            }
        }
    const T *a = p.a, *b = p.b;
    const index lda = p.lda, ldb = p.ldb;
    for (index k = 0; k < p.terms; ++k, ++a, b += ldb) {
        Vector<T> line[Width];
        for (index j = 0; j < Width; ++j) line[j] = load(b + j * w);
        for (index i = 0; i < Rows; ++i)
            for (index j = 0; j < Width; ++j) sum[i][j] += a[i * lda] * line[j];
    }
    for (index i = 0; i < Rows; ++i)
        for (index j = 0; j < Width; ++j) {
            if (j + 1 < Width || tail == w) store(p.c + i * p.ldc + j * w, sum[i][j]);
            else {
                T part[w];
                store(part, sum[i][j]);
                copy_part(p.c + i * p.ldc + j * w, part, tail);
            }
        }
}

template <class T>
using Tile = void (*)(const Product<T>&, index);

template <class T, index Width>
inline constexpr auto tiles = []<index... I>(std::integer_sequence<index, I...>) {
    return std::array<Tile<T>, sizeof...(I)>{multiply_tile<T, I + 1, Width>...};
}(std::make_integer_sequence<index, heights[Width - 1]>{});

template <class T, index Width>
void multiply_panel(const Product<T>& whole, index rows, index tail) {
    constexpr index highest = heights[Width - 1];
    const index count = (rows + highest - 1) / highest;  // of nearly equal height
    Product<T> p = whole;
    for (index t = 0; t < count; ++t) {
        const index first = rows * t / count, height = rows * (t + 1) / count - first;
        p.a = whole.a + first * whole.lda;
        p.c = whole.c + first * whole.ldc;
        if (whole.init) p.init = whole.init + first * whole.ldc;
        tiles<T, Width>[static_cast<std::size_t>(height - 1)](p, tail);
    }
}

// All of c (rows x columns), in panels of nearly equal width.
template <class T>
void multiply(const Product<T>& whole, index rows, index columns) {
    constexpr index w = lanes<T>;
    const index vectors = (columns + w - 1) / w, panels = (vectors + widest - 1) / widest;
    Product<T> p = whole;
    for (index q = 0; q < panels; ++q) {
        const index first = vectors * q / panels, width = vectors * (q + 1) / panels - first;
        const index tail = q + 1 < panels ? w : columns - (vectors - 1) * w;
        p.b = whole.b + first * w;
        p.c = whole.c + first * w;
        if (whole.init) p.init = whole.init + first * w;
        if constexpr (widest > 2) {
            if (width == 4) multiply_panel<T, 4>(p, rows, tail);
            if (width == 3) multiply_panel<T, 3>(p, rows, tail);
        }
        if (width == 2) multiply_panel<T, 2>(p, rows, tail);
        if (width == 1) multiply_panel<T, 1>(p, rows, tail);
    }
}

}  // namespace tensorfact::tiled

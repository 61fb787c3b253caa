// Non-owning strided arrays: pointer, shape, strides in elements. libstdc++ has no std::mdspan through GCC 14.
#pragma once

#include <algorithm>
#include <array>
#include <complex>
#include <cstddef>
#include <type_traits>

#include "error.hpp"

namespace tensorfact {

using index = std::ptrdiff_t;

template <class T, std::size_t N>
struct View {
    T* data;
    std::array<index, N> shape;
    std::array<index, N> strides;

    operator View<const T, N>() const
        requires(!std::is_const_v<T>)
    {
        return {data, shape, strides};
    }
};

template <class T>
using Mat = View<T, 2>;

// A matrix as `count` contiguous lines of `length` elements, `ld` apart: what BLAS reads in place.
// `by_row` says whether a line is a row of the matrix (else a column).
template <class T>
struct Lines {
    T* data;
    index count, length, ld;
    bool by_row;

    bool dense() const { return ld == length || count <= 1 || length == 0; }
};

template <class T>
Lines<T> lines(Mat<T> a, const char* name) {
    const auto [rows, cols] = a.shape;
    if (rows == 0 || cols == 0) return {a.data, rows, cols, std::max<index>(1, cols), true};  // its strides mean nothing
    // The stride of an axis of length one means nothing, so it must not decide.
    const auto fits = [&](index count, index step, index length, index inner) {
        return (length <= 1 || inner == 1) && (count <= 1 || step >= std::max<index>(1, length));
    };
    if (fits(rows, a.strides[0], cols, a.strides[1]))
        return {a.data, rows, cols, rows > 1 ? a.strides[0] : std::max<index>(1, cols), true};
    require(fits(cols, a.strides[1], rows, a.strides[0]), name, " must be row- or column-contiguous, got strides (", a.strides[0],
            ", ", a.strides[1], ") for shape (", rows, ", ", cols, ")");
    return {a.data, cols, rows, cols > 1 ? a.strides[1] : std::max<index>(1, rows), false};
}

// The data of a C-contiguous matrix.
template <class T>
T* contiguous(Mat<T> a, const char* name) {
    const auto l = lines(a, name);
    require(l.count == 0 || (l.by_row && l.dense()), name, " must be C-contiguous, got strides (", a.strides[0], ", ", a.strides[1], ") for shape (",
            a.shape[0], ", ", a.shape[1], ")");
    return l.data;
}

template <class T>
struct real_of {
    using type = T;
};
template <class T>
struct real_of<std::complex<T>> {
    using type = T;
};
template <class T>
using real_t = typename real_of<std::remove_const_t<T>>::type;
template <class T>
inline constexpr bool is_complex = !std::is_same_v<std::remove_const_t<T>, real_t<T>>;

template <class T>
T conjugate(T x) {
    if constexpr (is_complex<T>) return std::conj(x);
    else return x;
}

}  // namespace tensorfact

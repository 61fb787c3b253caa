// The only header that knows both worlds: NumPy arrays in, views out. No arithmetic, no copies.
#pragma once

#include <pybind11/complex.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "../core/view.hpp"

namespace tensorfact::bind {

namespace py = pybind11;
using nogil = py::gil_scoped_release;

// Bind every array argument with .noconvert(): the dtype then selects the overload and nothing is copied silently.
template <class T>
using Array = py::array_t<T, 0>;

template <class T>
std::array<index, 2> element_strides(const Array<T>& a) {
    std::array<index, 2> strides{};
    for (std::size_t i = 0; i < 2; ++i) {
        const index bytes = a.strides(static_cast<index>(i));
        require(bytes % static_cast<index>(sizeof(T)) == 0, "strides must be whole elements of ", sizeof(T), " bytes, got ", bytes);
        strides[i] = bytes / static_cast<index>(sizeof(T));
    }
    return strides;
}

template <class T>
void require_matrix(const Array<T>& a, const char* name) {
    require(a.ndim() == 2, name, " must have 2 axes, got ", a.ndim());
}

template <class T>
Mat<const T> in(const Array<T>& a, const char* name) {
    require_matrix(a, name);
    return {a.data(), {a.shape(0), a.shape(1)}, element_strides(a)};
}

template <class T>
Mat<T> out(Array<T>& a, const char* name) {
    require_matrix(a, name);
    require(a.writeable(), name, " must be writeable");
    const auto strides = element_strides(a);
    for (std::size_t i = 0; i < 2; ++i)
        require(a.size() == 0 || a.shape(static_cast<index>(i)) <= 1 || strides[i] != 0, name, " must not repeat elements (zero stride on axis ", i, ")");
    return {a.mutable_data(), {a.shape(0), a.shape(1)}, strides};
}

}  // namespace tensorfact::bind

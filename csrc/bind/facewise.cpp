#include "../core/facewise.hpp"

#include <cstdint>

#include "convert.hpp"

namespace tensorfact::bind {
namespace {

using namespace py::literals;

template <class T>
const T* transform(const Array<T>& z, index p, const char* name) {
    const auto view = in(z, name);
    require(view.shape[0] == p && view.shape[1] == p, name, " must have shape (", p, ", ", p, "), got (", view.shape[0], ", ", view.shape[1], ")");
    return contiguous(view, name);
}

template <class T>
void bind_facewise_of(py::module_& m) {
    m.def(
        "facewise",
        [](const Array<T>& x, const Array<T>& faces, const Array<T>& forward, const Array<T>& inverse, const Array<T>& bias, Array<T>& y, bool last,
           int nthreads) {
            const auto x_ = in(x, "x"), faces_ = in(faces, "faces"), bias_ = in(bias, "bias");
            const auto y_ = out(y, "y");
            const index p = forward.ndim() == 2 ? forward.shape(0) : 0;
            require(p >= 1 && faces_.shape[0] % p == 0, "faces must have a multiple of ", p, " rows, got ", faces_.shape[0]);
            const T *there = transform(forward, p, "forward"), *back = transform(inverse, p, "inverse");
            const index l = faces_.shape[0] / p, n = faces_.shape[1];
            const Faces<T> w{contiguous(faces_, "faces"), p, l, n, l * n, n, 1};
            const T* offset = contiguous(bias_, "bias");
            require(bias_.shape[1] == 0 || bias_.shape[1] == y_.shape[1], "bias must have ", y_.shape[1], " columns or none, got ", bias_.shape[1]);
            nogil released;
            return facewise<T>(x_, w, there, back, bias_.shape[1] ? offset : nullptr, y_, last, local_workspace(), nthreads);
        },
        py::arg("x").noconvert(), py::arg("faces").noconvert(), py::arg("forward").noconvert(), py::arg("inverse").noconvert(),
        py::arg("bias").noconvert(), py::arg("y").noconvert(), "last"_a, "nthreads"_a);
    m.def(
        "tube_faces",
        [](const Array<T>& x, const Array<T>& forward, Array<T>& faces, bool last, int nthreads) {
            const auto x_ = in(x, "x");
            const auto faces_ = out(faces, "faces");
            const index p = forward.ndim() == 2 ? forward.shape(0) : 0;
            require(p >= 1 && p <= max_tube && x_.shape[1] % p == 0, "x must have a multiple of ", p, " columns, got ", x_.shape[1]);
            const T* there = transform(forward, p, "forward");
            require(faces_.shape[0] == p * x_.shape[0] && faces_.shape[1] == x_.shape[1] / p, "faces must have shape (", p * x_.shape[0], ", ",
                    x_.shape[1] / p, "), got (", faces_.shape[0], ", ", faces_.shape[1], ")");
            T* to = contiguous(faces_, "faces");
            nogil released;
            return tube_faces<T>(x_, p, there, to, last, nthreads);
        },
        py::arg("x").noconvert(), py::arg("forward").noconvert(), py::arg("faces").noconvert(), "last"_a, "nthreads"_a);
}

// The same by addresses, for tensors that NumPy cannot see without a detour: the caller answers for types, sizes and contiguity.
// `sizes` is (tokens, p, l, n), `strides` those of the faces.
template <class T>
bool run_facewise_at(std::uintptr_t x, std::uintptr_t faces, std::uintptr_t forward, std::uintptr_t inverse, std::uintptr_t bias, std::uintptr_t y,
                     std::array<index, 4> sizes, std::array<index, 3> strides, bool last, int nthreads) {
    const auto [tokens, p, l, n] = sizes;
    const auto at = [](std::uintptr_t address) { return reinterpret_cast<const T*>(address); };
    const Faces<T> w{at(faces), p, l, n, strides[0], strides[1], strides[2]};
    nogil released;
    return facewise<T>({at(x), {tokens, p * l}, {p * l, 1}}, w, at(forward), at(inverse), at(bias),
                       {reinterpret_cast<T*>(y), {tokens, p * n}, {p * n, 1}}, last, local_workspace(), nthreads);
}

template <class T>
bool run_tube_faces_at(std::uintptr_t x, std::uintptr_t forward, std::uintptr_t faces, index rows, index columns, index p, bool last, int nthreads) {
    nogil released;
    return tube_faces<T>({reinterpret_cast<const T*>(x), {rows, columns * p}, {columns * p, 1}}, p, reinterpret_cast<const T*>(forward),
                         reinterpret_cast<T*>(faces), last, nthreads);
}

}  // namespace

void bind_facewise(py::module_& m) {
    bind_facewise_of<float>(m);
    bind_facewise_of<double>(m);
    m.def(
        "facewise_at",
        [](bool wide, std::uintptr_t x, std::uintptr_t faces, std::uintptr_t forward, std::uintptr_t inverse, std::uintptr_t bias, std::uintptr_t y,
           const py::tuple& sizes, const py::tuple& strides, bool last, int nthreads) {
            std::array<index, 4> size{};
            std::array<index, 3> stride{};
            for (std::size_t k = 0; k < 4; ++k) size[k] = sizes[k].cast<index>();
            for (std::size_t k = 0; k < 3; ++k) stride[k] = strides[k].cast<index>();
            return (wide ? run_facewise_at<double> : run_facewise_at<float>)(x, faces, forward, inverse, bias, y, size, stride, last, nthreads);
        },
        "wide"_a, "x"_a, "faces"_a, "forward"_a, "inverse"_a, "bias"_a, "y"_a, "sizes"_a, "strides"_a, "last"_a, "nthreads"_a);
    m.def(
        "tube_faces_at",
        [](bool wide, std::uintptr_t x, std::uintptr_t forward, std::uintptr_t faces, index rows, index columns, index p, bool last, int nthreads) {
            return (wide ? run_tube_faces_at<double> : run_tube_faces_at<float>)(x, forward, faces, rows, columns, p, last, nthreads);
        },
        "wide"_a, "x"_a, "forward"_a, "faces"_a, "rows"_a, "columns"_a, "p"_a, "last"_a, "nthreads"_a);
}

}  // namespace tensorfact::bind

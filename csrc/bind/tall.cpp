#include "../core/tall.hpp"

#include "../core/tall_gram.hpp"
#include "../core/tall_product.hpp"
#include "../core/tall_triangle.hpp"
#include "convert.hpp"

namespace tensorfact::bind {
namespace {

using namespace py::literals;

template <class T>
struct Double {
    using type = double;
};
template <class R>
struct Double<std::complex<R>> {
    using type = std::complex<double>;
};

template <class T>
void bind_tall_of(py::module_& m) {
    m.def(
        "row_sketch",
        [](const Array<T>& y, const Array<std::uint32_t>& codes, Array<T>& z, int nthreads) {
            const auto y_ = in(y, "y");
            const auto codes_ = in(codes, "codes");
            const auto z_ = out(z, "z");
            require(codes_.shape[0] == 1 && codes_.shape[1] == y_.shape[0], "codes must have shape (1, ", y_.shape[0], ")");
            require(z_.shape[1] == y_.shape[1], "z must have ", y_.shape[1], " columns, got ", z_.shape[1]);
            const std::uint32_t* first = contiguous(codes_, "codes");
            T* to = contiguous(z_, "z");
            nogil released;
            return row_sketch<T>(y_, first, to, z_.shape[0], local_workspace(), nthreads);
        },
        py::arg("y").noconvert(), py::arg("codes").noconvert(), py::arg("z").noconvert(), "nthreads"_a);
    m.def(
        "tall_triangle",
        [](const Array<T>& y, Array<T>& r, int nthreads) {
            const auto y_ = in(y, "y");
            const auto r_ = out(r, "r");
            require(r_.shape[0] == y_.shape[1] && r_.shape[1] == y_.shape[1], "r must have shape (", y_.shape[1], ", ", y_.shape[1], ")");
            T* to = contiguous(r_, "r");
            nogil released;
            tall_triangle<T>(y_, to, local_workspace(), nthreads);
        },
        py::arg("y").noconvert(), py::arg("r").noconvert(), "nthreads"_a);
    using Acc = typename Double<T>::type;
    m.def(
        "tall_gram",
        [](const Array<T>& y, Array<Acc>& g, int nthreads) {
            const auto y_ = in(y, "y");
            const auto g_ = out(g, "g");
            require(g_.shape[0] == y_.shape[1] && g_.shape[1] == y_.shape[1], "g must have shape (", y_.shape[1], ", ", y_.shape[1], ")");
            Acc* to = contiguous(g_, "g");
            nogil released;
            tall_gram<T, Acc>(y_, to, local_workspace(), nthreads);
        },
        py::arg("y").noconvert(), py::arg("g").noconvert(), "nthreads"_a);
    m.def(
        "tall_product",
        [](const Array<T>& y, const Array<T>& v, Array<T>& w, Array<double>& sums, bool residual, int nthreads) {
            const auto y_ = in(y, "y"), v_ = in(v, "v");
            const auto w_ = out(w, "w");
            const auto sums_ = out(sums, "sums");
            require(sums_.shape[0] == 1 && sums_.shape[1] == 2, "sums must have shape (1, 2)");
            double* to = contiguous(sums_, "sums");
            nogil released;
            tall_product<T>(y_, v_, w_, to, residual, local_workspace(), nthreads);
        },
        py::arg("y").noconvert(), py::arg("v").noconvert(), py::arg("w").noconvert(), py::arg("sums").noconvert(), "residual"_a,
        "nthreads"_a);
}

}  // namespace

void bind_tall(py::module_& m) {
    bind_tall_of<float>(m);
    bind_tall_of<double>(m);
    bind_tall_of<std::complex<float>>(m);
    bind_tall_of<std::complex<double>>(m);
}

}  // namespace tensorfact::bind

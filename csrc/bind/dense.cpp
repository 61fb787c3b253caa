#include "../core/dense.hpp"

#include "convert.hpp"

namespace tensorfact::bind {
namespace {

using namespace py::literals;

template <class T>
void bind_sum_squares(py::module_& m) {
    m.def(
        "sum_squares",
        [](const Array<T>& a, int nthreads) {
            const auto view = in(a, "a");
            nogil released;
            return sum_squares<T>(view, local_workspace(), nthreads);
        },
        py::arg("a").noconvert(), "nthreads"_a);
}

template <class T>
void bind_normal_apply(py::module_& m) {
    m.def(
        "normal_apply",
        [](const Array<T>& a, const Array<T>& x, Array<T>& sum, index block_rows) {
            const auto a_ = in(a, "a"), x_ = in(x, "x");
            const auto sum_ = out(sum, "out");
            nogil released;
            normal_apply<T>(a_, x_, sum_, block_rows, local_workspace());
        },
        py::arg("a").noconvert(), py::arg("x").noconvert(), py::arg("out").noconvert(), "block_rows"_a);
}

template <class T>
void bind_matmul(py::module_& m) {
    m.def(
        "matmul",
        [](const Array<T>& a, const Array<T>& b, Array<T>& product) {
            const auto a_ = in(a, "a"), b_ = in(b, "b");
            const auto product_ = out(product, "out");
            nogil released;
            matmul<T>(a_, b_, product_);
        },
        py::arg("a").noconvert(), py::arg("b").noconvert(), py::arg("out").noconvert());
}

template <class T>
void bind_eigh(py::module_& m) {
    m.def(
        "eigh",
        [](Array<T>& a, Array<real_t<T>>& values) {
            const auto a_ = out(a, "a");
            const auto values_ = out(values, "values");
            nogil released;
            return eigh<T>(a_, values_, local_workspace());
        },
        py::arg("a").noconvert(), py::arg("values").noconvert());
}

template <class T, class Acc>
void bind_gram(py::module_& m) {
    m.def(
        "gram",
        [](const Array<T>& a, Array<Acc>& g, int nthreads) {
            const auto a_ = in(a, "a");
            const auto g_ = out(g, "out");
            nogil released;
            gram<T, Acc>(a_, g_, local_workspace(), nthreads);
        },
        py::arg("a").noconvert(), py::arg("out").noconvert(), "nthreads"_a);
    m.def(
        "cholesky_qr",
        [](const Array<T>& y, Array<T>& q, Array<T>& r, Array<Acc>& g, int nthreads) {
            const auto y_ = in(y, "y");
            const auto q_ = out(q, "q"), r_ = out(r, "r");
            const auto g_ = out(g, "g");
            nogil released;
            return cholesky_qr<T, Acc>(y_, q_, r_, g_, local_workspace(), nthreads);
        },
        py::arg("y").noconvert(), py::arg("q").noconvert(), py::arg("r").noconvert(), py::arg("g").noconvert(), "nthreads"_a);
}

}  // namespace

void bind_dense(py::module_& m) {
    bind_sum_squares<float>(m);
    bind_sum_squares<double>(m);
    bind_normal_apply<float>(m);
    bind_normal_apply<double>(m);
    bind_normal_apply<std::complex<float>>(m);
    bind_normal_apply<std::complex<double>>(m);
    bind_matmul<float>(m);
    bind_matmul<double>(m);
    bind_matmul<std::complex<float>>(m);
    bind_matmul<std::complex<double>>(m);
    bind_eigh<float>(m);
    bind_eigh<double>(m);
    bind_eigh<std::complex<float>>(m);
    bind_eigh<std::complex<double>>(m);
    bind_gram<float, float>(m);
    bind_gram<float, double>(m);
    bind_gram<double, double>(m);
    bind_gram<std::complex<float>, std::complex<float>>(m);
    bind_gram<std::complex<float>, std::complex<double>>(m);
    bind_gram<std::complex<double>, std::complex<double>>(m);
}

}  // namespace tensorfact::bind

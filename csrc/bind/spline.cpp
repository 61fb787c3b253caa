#include "../core/spline.hpp"

#include "convert.hpp"

namespace tensorfact::bind {
namespace {

using namespace py::literals;

template <class T>
void bind_spline_basis(py::module_& m) {
    m.def(
        "spline_basis",
        [](const Array<T>& x, const Array<T>& knots, int degree, int nu, bool clamp, Array<T>& values, Array<std::int32_t>& first,
           int nthreads) {
            const auto x_ = in(x, "x"), knots_ = in(knots, "knots");
            const auto values_ = out(values, "values");
            const auto first_ = out(first, "first");
            nogil released;
            spline_basis<T>(x_, knots_, degree, nu, clamp, values_, first_, local_workspace(), nthreads);
        },
        py::arg("x").noconvert(), py::arg("knots").noconvert(), "degree"_a, "nu"_a, "clamp"_a, py::arg("values").noconvert(),
        py::arg("first").noconvert(), "nthreads"_a);
    m.def(
        "spline_uniform",
        [](const Array<T>& knots, int degree) {
            const auto knots_ = in(knots, "knots");
            require(knots_.shape[0] == 1 && knots_.shape[1] > 2 * degree + 1, "knots must be one row of at least ", 2 * degree + 2);
            T step, beyond;
            return uniform_knots(contiguous(knots_, "knots"), knots_.shape[1] - degree - 1, degree, step, beyond);
        },
        py::arg("knots").noconvert(), "degree"_a);
}

template <class T>
void bind_spline_values(py::module_& m) {
    m.def(
        "spline_values",
        [](const Array<T>& x, const Array<T>& knots, int degree, int nu, bool clamp, const Array<T>& coefficients, Array<T>& y,
           int nthreads) {
            const auto x_ = in(x, "x"), knots_ = in(knots, "knots"), c_ = in(coefficients, "coefficients");
            const auto y_ = out(y, "out");
            nogil released;
            spline_values<T>(x_, knots_, degree, nu, clamp, c_, y_, local_workspace(), nthreads);
        },
        py::arg("x").noconvert(), py::arg("knots").noconvert(), "degree"_a, "nu"_a, "clamp"_a, py::arg("coefficients").noconvert(),
        py::arg("out").noconvert(), "nthreads"_a);
}

template <class T>
void bind_spline_gram(py::module_& m) {
    m.def(
        "spline_gram",
        [](const Array<T>& x, const Array<T>& knots, int degree, int nu, bool clamp, const Array<T>& weights, const Array<T>& y,
           Array<double>& band, Array<double>& rhs, int nthreads) {
            const auto x_ = in(x, "x"), knots_ = in(knots, "knots"), w_ = in(weights, "weights"), y_ = in(y, "y");
            const auto band_ = out(band, "band"), rhs_ = out(rhs, "rhs");
            nogil released;
            spline_gram<T>(x_, knots_, degree, nu, clamp, w_, y_, band_, rhs_, local_workspace(), nthreads);
        },
        py::arg("x").noconvert(), py::arg("knots").noconvert(), "degree"_a, "nu"_a, "clamp"_a, py::arg("weights").noconvert(),
        py::arg("y").noconvert(), py::arg("band").noconvert(), py::arg("rhs").noconvert(), "nthreads"_a);
}

}  // namespace

void bind_spline(py::module_& m) {
    bind_spline_basis<float>(m);
    bind_spline_basis<double>(m);
    bind_spline_values<float>(m);
    bind_spline_values<double>(m);
    bind_spline_gram<float>(m);
    bind_spline_gram<double>(m);
    m.def(
        "spline_solve",
        [](Array<double>& band, Array<double>& rhs, index branches, int nthreads) {
            const auto band_ = out(band, "band"), rhs_ = out(rhs, "rhs");
            nogil released;
            return spline_solve(band_, rhs_, branches, nthreads);
        },
        py::arg("band").noconvert(), py::arg("rhs").noconvert(), "branches"_a, "nthreads"_a);
}

}  // namespace tensorfact::bind

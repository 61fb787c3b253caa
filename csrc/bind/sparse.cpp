#include "../core/sparse.hpp"

#include "convert.hpp"

namespace tensorfact::bind {
namespace {

using namespace py::literals;

template <class T>
void bind_sparse_of(py::module_& m) {
    m.def(
        "sparse_product",
        [](const Array<T>& x, const Array<T>& values, const Array<std::uint8_t>& rows, const Array<std::uint8_t>& columns,
           const Array<std::int64_t>& starts, const Array<T>& bias, Array<T>& y, int nthreads) {
            const auto x_ = in(x, "x"), values_ = in(values, "values"), bias_ = in(bias, "bias");
            const auto rows_ = in(rows, "rows"), columns_ = in(columns, "columns");
            const auto starts_ = in(starts, "starts");
            const auto y_ = out(y, "y");
            const T* offset = contiguous(bias_, "bias");
            require(bias_.shape[0] == 1 && (bias_.shape[1] == 0 || bias_.shape[1] == y_.shape[1]), "bias must have ", y_.shape[1],
                    " columns or none, got ", bias_.shape[1]);
            nogil released;
            const Sparse<T> plan(x_.shape[1], y_.shape[1], values_, rows_, columns_, starts_);
            sparse_product<T>(x_, plan, bias_.shape[1] ? offset : nullptr, y_, nthreads);
        },
        py::arg("x").noconvert(), py::arg("values").noconvert(), py::arg("rows").noconvert(), py::arg("columns").noconvert(),
        py::arg("starts").noconvert(), py::arg("bias").noconvert(), py::arg("y").noconvert(), "nthreads"_a);
}

}  // namespace

void bind_sparse(py::module_& m) {
    bind_sparse_of<float>(m);
    bind_sparse_of<double>(m);
}

}  // namespace tensorfact::bind

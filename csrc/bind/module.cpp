// Table of contents of the compiled module: one line for each kernel family, the error translation, the version.
#include "../core/error.hpp"
#include "../core/parallel.hpp"
#include "convert.hpp"

#define TENSORFACT_STRING_(x) #x
#define TENSORFACT_STRING(x) TENSORFACT_STRING_(x)

namespace tensorfact::bind {

void bind_lapack(py::module_& m);
void bind_chain(py::module_& m);
void bind_dense(py::module_& m);
void bind_facewise(py::module_& m);
void bind_tall(py::module_& m);
void bind_spline(py::module_& m);
void bind_sparse(py::module_& m);

namespace {

// For the tests of the pool: runs an empty region, or one whose last chunk throws.
int probe_pool(int nthreads, bool fail) {
    std::atomic<int> chunks{0};
    {
        nogil released;
        parallel_for(64, nthreads, 1, [&](index lo, index hi) {
            chunks += static_cast<int>(hi - lo);
            if (fail && hi == 64) throw LinAlgError("probe_pool: failure in a chunk");
        });
    }
    return chunks;
}

}  // namespace
}  // namespace tensorfact::bind

PYBIND11_MODULE(TENSORFACT_MODULE, m, pybind11::mod_gil_not_used()) {
    using namespace tensorfact;
    static const pybind11::handle lin_alg_error = pybind11::object(pybind11::module_::import("numpy.linalg").attr("LinAlgError")).release();
    pybind11::register_local_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const LinAlgError& e) {
            PyErr_SetString(lin_alg_error.ptr(), e.what());
        }
    });
    Pool::survive_fork();
    m.attr("__version__") = TENSORFACT_STRING(TENSORFACT_VERSION);
    m.def("isa", [] { return TENSORFACT_STRING(TENSORFACT_ISA); });
    m.def("probe_pool", &bind::probe_pool, pybind11::arg("nthreads"), pybind11::arg("fail"));
    bind::bind_lapack(m);
    bind::bind_chain(m);
    bind::bind_dense(m);
    bind::bind_facewise(m);
    bind::bind_tall(m);
    bind::bind_spline(m);
    bind::bind_sparse(m);
}
